"""`profile NAME`: users' profiles by a language model."""

from typing import TYPE_CHECKING, Any

import click

from dataset_tools.cli.options import enriching, options_of
from dataset_tools.options import ProfileOptions

if TYPE_CHECKING:
    from dataset_tools.dataset.dataset import Dataset
    from dataset_tools.llm.session import Session


@enriching(
    """\b
Examples:
  python -m dataset_tools profile shop --limit 100
  python -m dataset_tools profile shop --text_encoder sentence:./bge-small --clusters 20""",
    *options_of(ProfileOptions),
    click.option(
        "--text_encoder",
        default="minilm",
        show_default=True,
        help="Of the profiles: minilm, sentence:FOLDER, ..., or llm for the language model itself.",
    ),
)
def profile(
    dataset: "Dataset", session: "Session", force: bool, text_encoder: str, **numbers: Any
) -> str:
    """Give the users of dataset NAME profiles: NAME.userllm and, in words, NAME.profiles.tsv.

    Only training events are read: no validation or test target of a user reaches a prompt.
    """
    from dataset_tools.enrich.profiles import profile_dataset

    return profile_dataset(dataset, session, text_encoder, ProfileOptions(**numbers), force)
