"""`augment NAME`: what a language model says of each item."""

from typing import TYPE_CHECKING, Any

from dataset_tools.cli.options import enriching, options_of
from dataset_tools.options import AugmentOptions

if TYPE_CHECKING:
    from dataset_tools.dataset.dataset import Dataset
    from dataset_tools.llm.session import Session


@enriching(
    """\b
Examples:
  python -m dataset_tools augment shop --limit 20
  python -m dataset_tools augment shop --dry-run --price_in 0.3 --price_out 1.1
  python -m dataset_tools augment shop --backend openai --model deepseek-chat \\
      --base_url https://api.deepseek.com --key_variable DEEPSEEK_API_KEY
  python -m dataset_tools augment shop --part 1/4""",
    *options_of(AugmentOptions),
)
def augment(dataset: "Dataset", session: "Session", force: bool, **numbers: Any) -> str:
    """Give the items of dataset NAME texts by a language model: NAME.item's augmented_text.

    Key terms, a summary and who likes it, which `clip` then encodes with the tags.
    """
    from dataset_tools.enrich.augment import augment_dataset

    return augment_dataset(dataset, session, AugmentOptions(**numbers), force)
