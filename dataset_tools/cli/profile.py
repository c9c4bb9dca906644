"""`profile NAME`: users' profiles by a language model."""

from pathlib import Path

import click

from dataset_tools.cli.options import (
    data_path_option,
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
  python -m dataset_tools profile shop --limit 100
  python -m dataset_tools profile shop --text_encoder sentence:./bge-small --clusters 20"""
)
@click.argument("name")
@data_path_option
@force_option
@click.option("--limit", type=click.IntRange(1), help="Only the first users in order of their ids.")
@click.option(
    "--clusters",
    type=click.IntRange(1),
    default=10,
    show_default=True,
    help="Of all items, by k-means of their vectors.",
)
@click.option(
    "--parts",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="Most clusters of a user that are put in words, the largest first.",
)
@click.option(
    "--part_items",
    type=click.IntRange(1, 40),
    default=8,
    show_default=True,
    help="Most items of such a part, the newest ones.",
)
@click.option("--seed", type=int, default=2020, show_default=True, help="Of the clusters.")
@click.option(
    "--text_encoder",
    default="minilm",
    show_default=True,
    help="Of the profiles: minilm, sentence:FOLDER, ..., or llm for the language model itself.",
)
@model_options
@one_line_errors
def profile(
    name: str, data_path: Path | None, force: bool, text_encoder: str, llm: dict, **numbers
):
    """Give the users of dataset NAME profiles: NAME.userllm and, in words, NAME.profiles.tsv.

    Only training events are read: no validation or test target of a user reaches a prompt.
    """
    from dataset_tools.enrich.profiles import ProfileOptions, profile_dataset

    dataset = open_dataset(name, data_path)
    with open_session(dataset, llm) as session:
        done = profile_dataset(dataset, session, text_encoder, ProfileOptions(**numbers), force)
        finish(session, llm["dry_run"])
    click.echo(done)
