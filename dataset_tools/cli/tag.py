"""`tag NAME`: tags by a language model, refined and matched."""

from typing import TYPE_CHECKING, Any

from dataset_tools.cli.options import encoder_option, enriching, options_of
from dataset_tools.options import TagOptions

if TYPE_CHECKING:
    from dataset_tools.dataset.dataset import Dataset
    from dataset_tools.llm.session import Session


@enriching(
    """\b
Examples:
  python -m dataset_tools tag ml-100k-genre --force
  python -m dataset_tools tag shop --dry-run --price_in 0.3 --price_out 1.1
  python -m dataset_tools tag shop --backend openai --model deepseek-chat \\
      --base_url https://api.deepseek.com --key_variable DEEPSEEK_API_KEY
  python -m dataset_tools tag shop --part 1/4""",
    *options_of(TagOptions),
    encoder_option,
)
def tag(
    dataset: "Dataset", session: "Session", force: bool, text_encoder: str, **numbers: Any
) -> str:
    """Give the items of dataset NAME tags: NAME.item's tags and tag_weights, and NAME.tag."""
    from dataset_tools.enrich.tags import tag_dataset

    return tag_dataset(dataset, session, text_encoder, TagOptions(**numbers), force)
