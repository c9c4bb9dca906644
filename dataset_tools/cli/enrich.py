"""`enrich NAME`: whatever the dataset lacks, in order."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dataset_tools.cli.options import encoder_option, enriching
from dataset_tools.options import (
    IMAGES_HELP,
    AugmentOptions,
    ClipOptions,
    ProfileOptions,
    TagOptions,
)

if TYPE_CHECKING:
    from dataset_tools.dataset.dataset import Dataset
    from dataset_tools.llm.session import Session


@enriching(
    """\b
Examples:
  python -m dataset_tools enrich ml-100k-genre
  python -m dataset_tools enrich ml-100k-genre --force
  python -m dataset_tools enrich shop --images ./photos --text_encoder clip:./clip-vit-b32""",
    click.option(
        "--limit", type=click.IntRange(1), help="Tags of the first items, profiles of users."
    ),
    click.option(
        "--images", type=click.Path(exists=True, file_okay=False, path_type=Path), help=IMAGES_HELP
    ),
    click.option("--augment", is_flag=True, help="Texts of the items too, see `augment`."),
    encoder_option,
)
def enrich(
    dataset: "Dataset",
    session: "Session",
    force: bool,
    limit: int | None,
    images: Path | None,
    augment: bool,
    text_encoder: str,
) -> str:
    """Run what dataset NAME lacks: tag, embed, profile, clip, each with its defaults; with
    --augment also augment.

    A step whose result is there is skipped; --force makes all anew, from the answers that are kept
    as far as their questions are the same.
    """
    from dataset_tools.enrich.augment import augment_dataset
    from dataset_tools.enrich.embeddings import embed_dataset
    from dataset_tools.enrich.features import clip_dataset
    from dataset_tools.enrich.profiles import profile_dataset
    from dataset_tools.enrich.tags import tag_dataset

    click.echo(tag_dataset(dataset, session, text_encoder, TagOptions(limit=limit), force))
    _end_of_part(session, "tag")
    if augment:
        click.echo(augment_dataset(dataset, session, AugmentOptions(limit=limit), force))
        _end_of_part(session, "augment")
    click.echo(embed_dataset(dataset, session, None, force))
    _end_of_part(session, "embed")
    done = profile_dataset(dataset, session, "minilm", ProfileOptions(limit=limit), force)
    if session.dry:
        return done
    click.echo(done)
    return clip_dataset(dataset, text_encoder, ClipOptions(images=images), force)


def _end_of_part(session: "Session", step: str) -> None:
    """A part writes nothing into the dataset, and the next step reads what this one would write."""
    from dataset_tools.llm.asking import PartDone

    if session.store.part[1] > 1 and session.tallies:
        raise PartDone(
            f"{step}: every answer is there; run `{step}` without --part, which writes them, then "
            "this again for what comes next"
        )
