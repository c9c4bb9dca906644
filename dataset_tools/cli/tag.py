"""`tag NAME`: tags by a language model, refined and matched."""

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
  python -m dataset_tools tag ml-100k-genre --force
  python -m dataset_tools tag shop --dry-run --price_in 0.3 --price_out 1.1
  python -m dataset_tools tag shop --backend openai --model deepseek-chat \\
      --base_url https://api.deepseek.com --key_variable DEEPSEEK_API_KEY
  python -m dataset_tools tag shop --part 1/4"""
)
@click.argument("name")
@data_path_option
@force_option
@click.option("--limit", type=click.IntRange(1), help="Only the first items of the file.")
@click.option(
    "--tags_per_item",
    type=click.IntRange(1, 40),
    default=6,
    show_default=True,
    help="Most raw tags of an item.",
)
@click.option(
    "--min_items",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    help="Tags of fewer items are dropped from the list; at most one in fifty of the items counts.",
)
@click.option(
    "--max_share",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.25,
    show_default=True,
    help="Tags of a larger share of all items are dropped.",
)
@click.option(
    "--rounds",
    type=click.IntRange(0, 20),
    default=2,
    show_default=True,
    help="Most rounds of refinement; it ends earlier when the list is stable.",
)
@click.option(
    "--near",
    type=click.IntRange(0, 100),
    default=6,
    show_default=True,
    help="Candidates of an item besides its own tags: the nearest by text.",
)
@click.option(
    "--top", type=click.IntRange(1, 100), default=6, show_default=True, help="Most tags of an item."
)
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1),
    default=0.2,
    show_default=True,
    help="Least score of a tag, in relation to the item's best one.",
)
@click.option("--seed", type=int, default=2020, show_default=True, help="Of what is sampled.")
@encoder_option
@model_options
@one_line_errors
def tag(name: str, data_path: Path | None, force: bool, text_encoder: str, llm: dict, **numbers):
    """Give the items of dataset NAME tags: NAME.item's tags and tag_weights, and NAME.tag."""
    from dataset_tools.enrich.tags import tag_dataset
    from dataset_tools.tags.generate import TagOptions

    dataset = open_dataset(name, data_path)
    with open_session(dataset, llm) as session:
        done = tag_dataset(dataset, session, text_encoder, TagOptions(**numbers), force)
        finish(session, llm["dry_run"])
    click.echo(done)
