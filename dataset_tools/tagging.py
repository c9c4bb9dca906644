"""Give a dataset its tags: the pipeline of `tags/`, the text vectors of the tags, the files."""

import hashlib
import logging
from collections import defaultdict

import numpy as np
import pandas as pd

from dataset_tools.clip.encoders import load_encoder
from dataset_tools.llm.session import NotAsked, Session
from dataset_tools.tags.pipeline import Tagged, TagOptions, make_tags
from dataset_tools.tags.report import edit_log, report
from dataset_tools.update import Dataset, update_dataset
from recbole_tema.atomic import tag_token
from recbole_tema.errors import DataError

log = logging.getLogger(__name__)

BY_MODEL = "language model "  # begins the card's note of every field that one made


def has_llm_tags(dataset: Dataset) -> bool:
    """Whether the tags are a language model's, of all items, complete with their vectors."""
    made = dataset.generated("tags").startswith(BY_MODEL) and not was_limited(dataset, "tagging")
    return made and "tags" in dataset.items and dataset.path("tag").is_file()


def was_limited(dataset: Dataset, note: str) -> bool:
    """Whether the card's `note` on a run says that it was a trial of the first items or users."""
    stated = dataset.card.get(note)
    options = stated.get("options") if isinstance(stated, dict) else None
    return isinstance(options, dict) and options.get("limit") is not None


def tag_dataset(
    dataset: Dataset, session: Session, text_encoder: str, options: TagOptions, force: bool
) -> str:
    """Write tags, tag_weights, NAME.tag, the report and the log of edits; returns what was done.

    Args:
        dataset: Changed in place to what was written.
        session: The language model and its answers.
        text_encoder: Spec of the encoder of tags and titles, see `load_encoder`.
        options: Numbers of the pipeline.
        force: Tag again where there are a language model's tags.

    Raises:
        BackendError: the model cannot go on; run again to go on from there.
        DataError: no item got a tag, or a file cannot be written.
    """
    if has_llm_tags(dataset) and not force:
        return f"{dataset.name} has tags by a {dataset.generated('tags')}; --force makes them anew"
    encoder = load_encoder(text_encoder)
    try:
        tagged = make_tags(dataset, session, Remembered(encoder.texts), options)
    except NotAsked as task:
        return _rest_of_dry_run(dataset, session, options, str(task))
    if session.dry:
        return "every answer is kept: nothing would be asked"
    used = sorted({tag for row in tagged.rows for tag in row})
    if not used:
        raise DataError(
            f"{dataset.path('item')}: no tag is left of what the model said "
            f"({dict(tagged.raw.refused)}); lower --min_items, or use a better model"
        )
    made_by = BY_MODEL + session.made_by("tag", "match")
    update_dataset(
        dataset,
        items=with_tags(dataset, tagged.rows, tagged.weights),
        tags=tag_table(dataset, tagged.rows, used, encoder.texts(used)),
        generated={
            "tags": made_by,
            "tag_weights": f"scores of the tags by the same model, {_kind(session)}, normalised",
            "tag_emb": f"{encoder.name} of the tag",
        },
        notes={"tagging": _numbers(tagged, options)},
        reports={
            f"{dataset.name}.tags.md": report(dataset, tagged, made_by),
            f"{dataset.name}.tag-edits.tsv": edit_log(tagged),
        },
    )
    n_items = sum(bool(row) for row in tagged.rows)
    return f"{dataset.path('item')}: {n_items} of {len(tagged.rows)} items have {len(used)} tags"


class Remembered:
    """A text encoder that encodes each text once a run.

    The pipeline asks for the vectors of nearly the same list after every edit.
    """

    def __init__(self, encode) -> None:
        self.encode = encode
        self.vectors: dict[str, np.ndarray] = {}

    def __call__(self, texts) -> np.ndarray:
        new = [text for text in dict.fromkeys(texts) if text not in self.vectors]
        if new:
            self.vectors.update(zip(new, self.encode(new), strict=True))
        return np.stack([self.vectors[text] for text in texts])  # (n, d)


def with_tags(dataset: Dataset, rows: list[list[str]], weights: list[list[float]]) -> pd.DataFrame:
    """The items with new tags (n) and weights (n); further columns as they were."""
    items = dataset.items.copy()
    items["tags"] = [[tag_token(tag) for tag in row] for row in rows]
    items["tag_weights"] = weights
    return items


def tag_table(
    dataset: Dataset, rows: list[list[str]], used: list[str], vectors: np.ndarray
) -> pd.DataFrame:
    """NAME.tag: the `used` tags (t), the domains whose items have them, their vectors (t, d)."""
    domains = defaultdict(set)
    for domain, row in zip(dataset.column("domain"), rows, strict=True):
        for tag in row:
            domains[tag].add(domain)
    return pd.DataFrame(
        {
            "tag_id": [tag_token(tag) for tag in used],
            "tag_domain": [sorted(domains[tag]) for tag in used],
            "tag_emb": list(vectors),
        }
    )


def tags_version(dataset: Dataset) -> str:
    """First digits of the SHA-256 of all tags and weights: what was made from them names it."""
    digest = hashlib.sha256()
    for name in ("tags", "tag_weights"):
        digest.update("\n".join(dataset.column(name)).encode())
    return digest.hexdigest()[:8]


def _kind(session: Session) -> str:
    return "length-normalised likelihoods" if session.backend.likelihoods else "ratings"


def _numbers(tagged: Tagged, options: TagOptions) -> dict:
    sizes = {what: {"tags": tags, "shared": shared} for what, tags, shared in tagged.sizes}
    return {"options": {**vars(options)}, "list": sizes, "refused": dict(tagged.raw.refused)}


def _rest_of_dry_run(dataset: Dataset, session: Session, options: TagOptions, task: str) -> str:
    """What cannot be counted before the first answers are there, in words."""
    n_items = len(dataset.items[: options.limit])
    return (
        f"stopped before '{task}', on whose answers the rest depends. A whole run asks about each "
        f"of {n_items} items once for tags and once for scores, and some more for "
        f"{options.rounds} rounds of refinement: reckon with two to three times the calls of 'tag'"
    )
