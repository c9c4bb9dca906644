"""`embed NAME`: item vectors from the language model."""

from typing import TYPE_CHECKING

import click

from dataset_tools.cli.options import enriching

if TYPE_CHECKING:
    from dataset_tools.dataset.dataset import Dataset
    from dataset_tools.llm.session import Session


@enriching(
    """\b
Examples:
  python -m dataset_tools embed shop
  python -m dataset_tools embed shop --model ./Qwen3-0.6B --pca 128
  python -m dataset_tools embed shop --backend openai --model text-embedding-3-small""",
    click.option(
        "--pca", type=click.IntRange(1), help="Principal components to keep.  [default: all]"
    ),
    click.option(
        "--raw",
        is_flag=True,
        help="Leave the vectors as the model gives them; else the mean of the items is taken off, "
        "and they are scaled to norm 1.",
    ),
)
def embed(dataset: "Dataset", session: "Session", force: bool, pca: int | None, raw: bool) -> str:
    """Give the items of dataset NAME vectors by a language model: NAME.itemllm."""
    from dataset_tools.enrich.embeddings import embed_dataset

    return embed_dataset(dataset, session, pca, force, raw)
