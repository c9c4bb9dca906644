"""`clip NAME`: text and image vectors."""

from pathlib import Path

import click

from dataset_tools.cli.options import (
    data_path_option,
    encoder_option,
    force_option,
    one_line_errors,
    open_dataset,
)


@click.command(
    epilog="""\b
Examples:
  python -m dataset_tools clip shop
  python -m dataset_tools clip shop --text_encoder clip:./clip-vit-base-patch32 --images ./photos
  python -m dataset_tools clip shop --text_encoder open_clip:ViT-B-32:./vit_b_32.safetensors \\
      --image_cache ./image-cache"""
)
@click.argument("name")
@data_path_option
@force_option
@encoder_option
@click.option(
    "--image_encoder", help="clip:... or open_clip:....  [default: that of the texts, if it can]"
)
@click.option(
    "--images",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of images named by item id.  [default: the column image_url, if there is one]",
)
@click.option(
    "--image_cache",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of downloaded images.  [default: images in the dataset's folder]",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 256),
    default=16,
    show_default=True,
    help="Downloads at a time.",
)
@click.option(
    "--allow_private", is_flag=True, help="Download from private and loopback addresses too."
)
@click.option(
    "--retry_failed",
    is_flag=True,
    help="Ask again for images that were not to be had, and for kept ones that do not open.",
)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda or auto.")
@click.option(
    "--batch_size",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Texts or images encoded together; a smaller one needs less of the device's memory.",
)
@one_line_errors
def clip(name: str, data_path: Path | None, force: bool, text_encoder: str, **options) -> None:
    """Give the items of dataset NAME text vectors, and image vectors where they have images.

    NAME.itemtext holds the vectors of title, category, brand, description and tags, NAME.itemimage
    those of images from a folder or from the column image_url.
    """
    from dataset_tools.enrich.features import ClipOptions, clip_dataset

    dataset = open_dataset(name, data_path)
    click.echo(clip_dataset(dataset, text_encoder, ClipOptions(**options), force))
