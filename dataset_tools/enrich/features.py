"""Text and image vectors of the items of a dataset: NAME.itemtext and NAME.itemimage."""

import logging
from pathlib import Path

from dataset_tools.dataset.dataset import Dataset, update_dataset
from dataset_tools.dataset.provenance import counted, digest, note_of, reason_to_skip, say_refused
from dataset_tools.encoders.encoder import Encoder
from dataset_tools.encoders.loading import load_encoder
from dataset_tools.enrich.embeddings import item_words
from dataset_tools.images.decoding import image_folder
from dataset_tools.options import ClipOptions
from recbole_tema.errors import DataError

log = logging.getLogger(__name__)

URL_COLUMN, AUGMENTED = "image_url", "augmented_text"
CACHE = "images"  # folder of downloads, beside the dataset's files


def clip_dataset(dataset: Dataset, text_encoder: str, options: ClipOptions, force: bool) -> str:
    """Write NAME.itemtext, and NAME.itemimage where there are images; returns what was done.

    Items without an image or with a broken one are listed in NAME.images-missing.tsv, with the
    reason, and have no row.

    Args:
        dataset: Changed in place to what was written.
        text_encoder: Spec, see `load_encoder`.
        options: Where images come from and what encodes.
        force: Write again what is there.

    Raises:
        DataError: no item has a title, an encoder cannot be loaded, or it reads no images.
    """
    encoder = load_encoder(text_encoder, options.device, options.batch_size)
    lines = [_texts(dataset, encoder, options.without_augmented, force)]
    if options.images is None and URL_COLUMN not in dataset.items:
        lines.append(
            f"no images: neither --images nor a column {URL_COLUMN} in {dataset.path('item')}"
        )
    elif options.images is None and not (options.image_encoder or encoder.has_images):
        lines.append(
            f"no image vectors of {URL_COLUMN}: {encoder.name} reads no images; name a CLIP model"
        )
    else:
        if options.image_encoder:
            encoder = load_encoder(options.image_encoder, options.device, options.batch_size)
        lines.append(_images(dataset, encoder, options, force))
    return "\n".join(lines)


def _texts(dataset: Dataset, encoder: Encoder, without_augmented: bool, force: bool) -> str:
    n_told = sum(map(bool, dataset.column(AUGMENTED)))
    alone = without_augmented and n_told > 0
    texts, items = item_words(dataset, augmented=not alone), dataset.column("item_id")
    inputs = digest(items, texts)
    # Texts that were left out because somebody said so are not put in without --force.
    of = f"{encoder.name} of domain, texts and tags" + (" alone" if alone else "")
    skip = reason_to_skip(dataset, "clip_text", f"{of},", inputs)
    if skip and not force:
        return skip
    rows = [row for row, text in enumerate(texts) if text]
    if not rows:
        raise DataError(f"{dataset.path('item')}: no item has a title; there is nothing to encode")
    say_refused(dataset, "clip_text")
    matrix = encoder.texts([texts[row] for row in rows])
    tokens = [items[row] for row in rows]
    told = "" if alone or not n_told else f", augmented texts of {n_told:,} items"
    cut = ""
    if encoder.n_cut:
        cut = f", {encoder.n_cut:,} of {len({*texts} - {''}):,} different texts cut"
        cut += f" after {encoder.max_tokens} tokens"
    note = note_of(f"{of}{told}{cut}", inputs)
    update_dataset(dataset, features={"itemtext": (tokens, matrix)}, generated={"clip_text": note})
    others = {"without a title": len(items) - len(rows)}
    done = counted(len(rows), len(items), f"items have text vectors{told}{cut}", others)
    return f"{dataset.path('itemtext')}: {done}"


def _images(dataset: Dataset, encoder: Encoder, options: ClipOptions, force: bool) -> str:
    # Its HTTP client is of the extra, as the encoder is: the error about a missing one comes first.
    from dataset_tools.images.fetching import Missing, fetch_images, write_missing

    items = dataset.column("item_id")
    paths: dict[str, Path] = {}
    if options.images is not None:
        urls = dict.fromkeys(items, "")
        paths = image_folder(options.images, items)
        sources = [f"{item}\t{paths[item].name}\t{paths[item].stat().st_size}" for item in paths]
    else:
        addresses = zip(items, dataset.column(URL_COLUMN), strict=True)
        urls = {item: url for item, url in addresses if url}
        sources = [f"{item}\t{url}" for item, url in urls.items()]
    inputs = digest(sources)
    skip = reason_to_skip(dataset, "clip_image", encoder.name, inputs)
    # Images that failed may be there now: --retry_failed asks for them.
    again = options.retry_failed and dataset.generated("clip_image").startswith(encoder.name)
    if skip and not force and not again:
        return skip
    encoder.require_images()  # before a download of hours
    say_refused(dataset, "clip_image")
    if options.images is not None:
        missing = {item: Missing("", "no file") for item in items if item not in paths}
    else:
        paths, missing = fetch_images(
            urls,
            options.image_cache or dataset.folder / CACHE,
            workers=options.workers,
            allow_private=options.allow_private,
            retry_failed=options.retry_failed,
        )
        missing |= {item: Missing("", "no address") for item in items if item not in urls}
    ids, matrix, refused = encoder.images(paths)
    missing |= {item: Missing(urls[item], reason) for item, reason in refused.items()}
    listed = dataset.path("images-missing.tsv")
    write_missing(listed, missing)
    if not ids:
        return f"no image vectors: none of {len(items)} items has a sound image; see {listed}"
    update_dataset(
        dataset,
        features={"itemimage": (ids, matrix)},
        generated={"clip_image": note_of(encoder.name, inputs)},
    )
    others = {f"in {listed}, with the reason": len(items) - len(ids)}
    done = counted(len(ids), len(items), "items have image vectors", others)
    return f"{dataset.path('itemimage')}: {done}"
