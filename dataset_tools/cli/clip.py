"""`clip NAME`: text and image vectors."""

from typing import TYPE_CHECKING, Any

from dataset_tools.cli.options import encoder_option, enriching, options_of
from dataset_tools.options import ClipOptions

if TYPE_CHECKING:
    from dataset_tools.dataset.dataset import Dataset


@enriching(
    """\b
Examples:
  python -m dataset_tools clip shop
  python -m dataset_tools clip shop --text_encoder clip:./clip-vit-base-patch32 --images ./photos
  python -m dataset_tools clip shop --text_encoder open_clip:ViT-B-32:./vit_b_32.safetensors \\
      --image_cache ./image-cache""",
    encoder_option,
    *options_of(ClipOptions),
    model=False,
)
def clip(dataset: "Dataset", force: bool, text_encoder: str, **options: Any) -> str:
    """Give the items of dataset NAME text vectors, and image vectors where they have images.

    NAME.itemtext holds the vectors of title, category, brand, description, tags and what `augment`
    wrote, NAME.itemimage those of images from a folder or from the column image_url.
    """
    from dataset_tools.enrich.features import clip_dataset

    return clip_dataset(dataset, text_encoder, ClipOptions(**options), force)
