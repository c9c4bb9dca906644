"""Item vectors from the language model, for LLM4CDSR: NAME.itemllm."""

import logging

import numpy as np

from dataset_tools.dataset.dataset import Dataset, update_dataset
from dataset_tools.dataset.provenance import (
    BY_MODEL,
    counted,
    digest,
    note_of,
    reason_to_skip,
    say_refused,
)
from dataset_tools.llm.prompts import field_text
from dataset_tools.llm.requests import Embedding
from dataset_tools.llm.session import NotAsked, Session
from dataset_tools.tags.generate import item_fields
from recbole_tema.data.cells import tag_text
from recbole_tema.errors import DataError

log = logging.getLogger(__name__)

PARTS = ("title", "category", "brand", "description")


def item_words(dataset: Dataset, augmented: bool = False) -> list[str]:
    """What is encoded of each item: its domain, texts and tags; "" for an item without a title.

    Args:
        augmented: With `augmented_text`, which makes it the paper's LLM-augmented text. The
            shop's own description then stands last: an encoder that reads 77 tokens cuts the end.
    """
    texts = []
    columns = [dataset.column(name) for name in ("domain", "tags", "augmented_text")]
    for fields, domain, tags, told in zip(item_fields(dataset), *columns, strict=True):
        if not field_text(fields["title"]):
            texts.append("")
            continue
        parts = [field_text(fields[name]) for name in PARTS]
        parts.append(", ".join(tag_text(tag) for tag in tags.split()))
        if augmented and told:
            description = parts.pop(PARTS.index("description"))
            parts += [told.rstrip("."), description]
        texts.append(f"{domain}: " + ". ".join(part for part in parts if part))
    return texts


def embed_dataset(
    dataset: Dataset, session: Session, width: int | None, force: bool, raw: bool = False
) -> str:
    """Write NAME.itemllm: pooled states of a local model, or a server's embeddings.

    Args:
        dataset: Changed in place to what was written.
        session: The language model and its answers.
        width: Principal components to keep; None for the model's own width.
        raw: Leave the vectors as the model gives them, see `centred`.
        force: Write again where there are vectors.

    Raises:
        BackendError: the model cannot go on; run again to go on from there.
        DataError: no item has a title, or `width` is more than there are items or numbers.
    """
    texts = item_words(dataset)
    inputs = digest(dataset.column("item_id"), texts)
    maker = f"{BY_MODEL}{session.backend.identity}"
    skip = reason_to_skip(dataset, "llm_emb", f"{maker},", inputs)
    if skip and not force:
        return skip
    rows = [row for row, text in enumerate(texts) if text]
    if not rows:
        raise DataError(f"{dataset.path('item')}: no item has a title; there is nothing to embed")
    if not session.dry:
        say_refused(dataset, "llm_emb")
    try:
        answers = session.ask("embed", [Embedding(texts[row]) for row in rows])
    except NotAsked:
        return "nothing was asked"
    if session.dry:
        return "every answer is kept: nothing would be asked"
    good = [i for i, answer in enumerate(answers) if not answer.fault]
    if not good:
        raise DataError(f"{session.backend.identity}: gave no vector of {len(rows)} items")
    matrix = np.stack([np.asarray(answers[i].value, np.float32) for i in good])
    note = f"{maker}, of domain, texts and tags"
    if not raw:
        matrix, note = centred(matrix), f"{note}, centred, of norm 1"
    if width is not None:
        matrix, note = principal(matrix, width), f"{note}, {width} principal components"
    items = dataset.column("item_id")
    tokens = [items[rows[i]] for i in good]
    update_dataset(
        dataset,
        features={"itemllm": (tokens, matrix)},
        generated={"llm_emb": note_of(note, inputs)},
    )
    others = {
        "without a title": len(items) - len(rows),
        "without an answer of the model": len(rows) - len(tokens),
    }
    what = f"items have vectors of {matrix.shape[1]} numbers"
    return f"{dataset.path('itemllm')}: {counted(len(tokens), len(items), what, others)}"


def centred(matrix: np.ndarray) -> np.ndarray:
    """(n, d) -> (n, d): without the mean of the items, of norm 1.

    States of a language model share one large direction (of SmolLM2's the mean cosine of two items
    is 0.92), which says nothing of an item and hides what does.
    """
    around = matrix.astype(np.float64) - matrix.mean(0, dtype=np.float64)
    norms = np.linalg.norm(around, axis=1, keepdims=True)
    return (around / np.where(norms > 0, norms, 1)).astype(np.float32)


def principal(matrix: np.ndarray, width: int) -> np.ndarray:
    """(n, d) -> (n, width): principal components, as scikit-learn's full SVD gives them.

    Raises:
        DataError: `width` is more than n or d.
    """
    from sklearn.decomposition import PCA

    if not 1 <= width <= min(matrix.shape):
        raise DataError(
            f"--pca {width}: {matrix.shape[0]} vectors of {matrix.shape[1]} numbers have at most "
            f"{min(matrix.shape)} components"
        )
    pca = PCA(width, svd_solver="full")
    return pca.fit_transform(matrix.astype(np.float64)).astype(np.float32)
