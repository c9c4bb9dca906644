"""Give a dataset its tags: the pipeline of `tags/`, the text vectors of the tags, the files."""

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd

from dataset_tools.dataset.dataset import Dataset, update_dataset
from dataset_tools.dataset.provenance import (
    BY_MODEL,
    by_model,
    counted,
    digest,
    note_of,
    reason_to_skip,
    say_refused,
    trial_of,
)
from dataset_tools.encoders.loading import load_encoder
from dataset_tools.llm.session import NotAsked, Session
from dataset_tools.options import TagOptions
from dataset_tools.tags.generate import item_fields
from dataset_tools.tags.listing import COMMON, RARE
from dataset_tools.tags.pipeline import Tagged, edit_log, make_tags, report
from dataset_tools.tags.refine import VAGUE
from recbole_tema.data.cells import tag_text, tag_token
from recbole_tema.errors import ConfigError, DataError

log = logging.getLogger(__name__)

FITS_NONE = "fit no item"
PIPELINE_ENCODER = "minilm"  # the thresholds of cosines in `tags/` are for its vectors


def has_llm_tags(dataset: Dataset) -> bool:
    """Whether the tags are a language model's, of all items, complete with their vectors."""
    return by_model(dataset, "tags") and dataset.has("tag_emb")


def item_digest(dataset: Dataset) -> str:
    """Digest of all that a question for tags can show of the items."""
    fields = [f"{name}={text}" for row in item_fields(dataset) for name, text in row.items()]
    return digest(dataset.column("item_id"), dataset.column("domain"), fields)


def tag_dataset(
    dataset: Dataset, session: Session, text_encoder: str, options: TagOptions, force: bool
) -> str:
    """Write tags, tag_weights, NAME.tag, the report and the log of edits; returns what was done.

    Args:
        dataset: Changed in place to what was written.
        session: The language model and its answers.
        text_encoder: Spec of the encoder of the tags' vectors, see `load_encoder`.
        options: Numbers of the pipeline.
        force: Tag again where there are tags.

    Raises:
        BackendError: the model cannot go on; run again to go on from there.
        ConfigError: no rating can reach `min_score`.
        DataError: no item got a tag, or a file cannot be written.
    """
    inputs = item_digest(dataset)
    maker, total = f"{BY_MODEL}{session.backend.identity},", len(dataset.items)
    skip = reason_to_skip(dataset, "tags", maker, inputs, options.limit)
    if skip and not force:
        return skip if session.dry else _with_vectors(dataset, text_encoder, skip)
    if options.min_score > 1 and not session.backend.likelihoods:
        raise ConfigError(
            f"--min_score {options.min_score:g}: {session.backend.identity} rates from 0 to 1; "
            "give a number of that range"
        )
    if not session.dry:
        say_refused(dataset, "tags", "tag_weights", "tag_emb")
    encoder = load_encoder(text_encoder)
    near = encoder if text_encoder == PIPELINE_ENCODER else load_encoder(PIPELINE_ENCODER)
    try:
        tagged = make_tags(dataset, session, Remembered(near.texts), options)
    except NotAsked as task:
        return _rest_of_dry_run(dataset, options, str(task))
    if session.dry:
        return "every answer is kept: nothing would be asked"
    used = sorted({tag for row in tagged.rows for tag in row})
    if not used:
        raise DataError(f"{dataset.path('item')}: {why_none(tagged, options)}")
    edits = ("same",) if session.backend.likelihoods else ("refine",)
    made_by = BY_MODEL + session.made_by("tag", *edits, "more_tags", "match")
    update_dataset(
        dataset,
        items=with_tags(dataset, tagged.rows, tagged.scores),
        tags=tag_table(dataset.column("domain"), tagged.rows, used, encoder.texts(used)),
        generated={
            "tags": note_of(f"{made_by}, candidates by {near.name}", inputs),
            "tag_weights": f"raw scores of the tags by the same model: {_kind(session)}",
            "tag_emb": f"{encoder.name} of the tag",
        },
        notes={"tagging": _numbers(tagged, options)},
        reports={
            f"{dataset.name}.tags.md": report(dataset, tagged, made_by),
            f"{dataset.name}.tag-edits.tsv": edit_log(tagged),
        },
    )
    n_items = sum(map(bool, tagged.rows))
    beyond = total - (trial_of(options.limit, total) or total)
    others = {
        "beyond --limit": beyond,
        "without a title": tagged.raw.silent,
        "without a tag that fits": total - n_items - beyond - tagged.raw.silent,
    }
    what = f"items have tags, {len(used):,} different ones"
    return f"{dataset.path('item')}: {counted(n_items, total, what, others)}"


def why_none(tagged: Tagged, options: TagOptions) -> str:
    """Why no item has a tag: where the tags went, in numbers that add up, and what to do."""
    edits = Counter(
        why.partition(":")[0] if edit == "drop" else edit for _, edit, _, _, why in tagged.tags.log
    )
    said = tagged.sizes[0][1] + edits.pop("add", 0)
    if not said:
        return (
            "the model gave no tag that can be used "
            f"({dict(tagged.raw.refused) or 'no item has a title'}); use a better model"
        )
    advice = {
        RARE: f"of fewer than {tagged.min_items} items; lower --min_items",
        COMMON: f"of more than {options.max_share:.0%} of the items; raise --max_share or --limit",
        VAGUE: "by the rounds of refinement; lower --rounds",
        FITS_NONE: f"lower {'--min_score' if options.min_score else '--threshold'}, or use a "
        "better model",
    }
    merged = edits.pop("merge", 0)
    went = {**edits, FITS_NONE: len(tagged.tags.counts)}
    parts = [f"{merged:,} merged into others"] if merged else []
    for reason, n in sorted(went.items(), key=lambda pair: -pair[1]):
        if n:
            parts.append(f"{n:,} {reason} ({advice.get(reason, 'dropped')})")
    return f"no tag is left of {said:,} that the model gave: {', '.join(parts)}"


def _with_vectors(dataset: Dataset, text_encoder: str, skip: str) -> str:
    """`skip`, after tags without NAME.tag have got their vectors, which TEMA needs."""
    if dataset.path("tag").is_file():
        return skip
    say_refused(dataset, "tag_emb")
    rows = [[tag_text(token) for token in text.split()] for text in dataset.column("tags")]
    used = sorted({tag for row in rows for tag in row})
    encoder = load_encoder(text_encoder)
    update_dataset(
        dataset,
        tags=tag_table(dataset.column("domain"), rows, used, encoder.texts(used)),
        generated={"tag_emb": f"{encoder.name} of the tag"},
    )
    return f"{skip}\n{dataset.path('tag')}: vectors of these {len(used)} tags"


class Remembered:
    """A text encoder that encodes each text once a run.

    The pipeline asks for the vectors of nearly the same list after every edit.
    """

    def __init__(self, encode: Callable[[Sequence[str]], np.ndarray]) -> None:
        self.encode = encode
        self.vectors: dict[str, np.ndarray] = {}

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        new = [text for text in dict.fromkeys(texts) if text not in self.vectors]
        if new:
            self.vectors.update(zip(new, self.encode(new), strict=True))
        return np.stack([self.vectors[text] for text in texts])  # (n, d)


def with_tags(dataset: Dataset, rows: list[list[str]], scores: list[list[float]]) -> pd.DataFrame:
    """The items with new tags (n) and their scores (n); further columns as they were."""
    items = dataset.items.copy()
    items["tags"] = [[tag_token(tag) for tag in row] for row in rows]
    items["tag_weights"] = scores
    return items


def tag_table(
    of_items: Iterable[str], rows: Iterable[Sequence[str]], used: list[str], vectors: np.ndarray
) -> pd.DataFrame:
    """NAME.tag: the `used` tags (t), the domains whose items have them, their vectors (t, d).

    Args:
        of_items: The domain of each item (n).
        rows: Its tags.
    """
    domains = defaultdict(set)
    for domain, row in zip(of_items, rows, strict=True):
        for tag in row:
            domains[tag].add(domain)
    return pd.DataFrame(
        {
            "tag_id": [tag_token(tag) for tag in used],
            "tag_domain": [sorted(domains[tag]) for tag in used],
            "tag_emb": list(vectors),
        }
    )


def _kind(session: Session) -> str:
    if session.backend.likelihoods:
        return "length-normalised likelihoods over the tag's mean"
    return "ratings from 0 to 1"


def _numbers(tagged: Tagged, options: TagOptions) -> dict:
    sizes = {what: {"tags": tags, "shared": shared} for what, tags, shared in tagged.sizes}
    return {"options": dict(vars(options)), "list": sizes, "refused": dict(tagged.raw.refused)}


def _rest_of_dry_run(dataset: Dataset, options: TagOptions, task: str) -> str:
    """What cannot be counted before the first answers are there, in words."""
    n_items = len(dataset.items[: options.limit])
    return (
        f"stopped before '{task}', on whose answers the rest depends. A whole run asks about each "
        f"of {n_items} items once for tags and once for scores, and some more for "
        f"{options.rounds} rounds of refinement: reckon with two to three times the calls of 'tag'"
    )
