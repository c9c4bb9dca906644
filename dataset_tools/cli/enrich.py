"""`enrich NAME`: whatever the dataset lacks, in order."""

from pathlib import Path

import click

from dataset_tools.cli.options import (
    data_path_option,
    encoder_option,
    finish,
    force_option,
    model_options,
    one_line_errors,
    open_dataset,
    open_session,
)


@click.command(
    epilog="""\b
Examples:
  python -m dataset_tools enrich ml-100k-genre
  python -m dataset_tools enrich ml-100k-genre --force
  python -m dataset_tools enrich shop --images ./photos --text_encoder clip:./clip-vit-b32"""
)
@click.argument("name")
@data_path_option
@force_option
@click.option("--limit", type=click.IntRange(1), help="Tags of the first items, profiles of users.")
@click.option(
    "--images",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of images named by item id.  [default: the column image_url, if there is one]",
)
@encoder_option
@model_options
@one_line_errors
def enrich(
    name: str,
    data_path: Path | None,
    force: bool,
    limit: int | None,
    images: Path | None,
    text_encoder: str,
    llm: dict,
) -> None:
    """Run what dataset NAME lacks: tag, embed, profile, clip, each with its defaults.

    A step whose result is there is skipped; --force makes all anew, from the answers that are kept
    as far as their questions are the same.
    """
    from dataset_tools.enrich.embeddings import embed_dataset
    from dataset_tools.enrich.features import ClipOptions, clip_dataset
    from dataset_tools.enrich.profiles import ProfileOptions, profile_dataset
    from dataset_tools.enrich.tags import tag_dataset
    from dataset_tools.tags.generate import TagOptions

    dataset = open_dataset(name, data_path)
    with open_session(dataset, llm) as session:
        click.echo(tag_dataset(dataset, session, text_encoder, TagOptions(limit=limit), force))
        click.echo(embed_dataset(dataset, session, None, force))
        options = ProfileOptions(limit=limit)
        click.echo(profile_dataset(dataset, session, "minilm", options, force))
        if not session.dry:
            click.echo(clip_dataset(dataset, text_encoder, ClipOptions(images=images), force))
        finish(session, llm["dry_run"])
