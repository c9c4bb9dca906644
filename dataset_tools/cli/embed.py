"""`embed NAME`: item vectors from the language model."""

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
  python -m dataset_tools embed shop
  python -m dataset_tools embed shop --model ./Qwen3-0.6B --pca 128
  python -m dataset_tools embed shop --backend openai --model text-embedding-3-small"""
)
@click.argument("name")
@data_path_option
@force_option
@click.option("--pca", type=click.IntRange(1), help="Principal components to keep.  [default: all]")
@click.option(
    "--raw",
    is_flag=True,
    help="Leave the vectors as the model gives them; else the mean of the items is taken off, and "
    "they are scaled to norm 1.",
)
@model_options
@one_line_errors
def embed(
    name: str, data_path: Path | None, force: bool, pca: int | None, raw: bool, llm: dict
) -> None:
    """Give the items of dataset NAME vectors by a language model: NAME.itemllm."""
    from dataset_tools.enrich.embeddings import embed_dataset

    dataset = open_dataset(name, data_path)
    with open_session(dataset, llm) as session:
        done = embed_dataset(dataset, session, pca, force, raw)
        finish(session, llm["dry_run"])
    click.echo(done)
