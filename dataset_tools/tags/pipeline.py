"""Stages 1 and 2 of TEMA from a dataset to its tags: generate, list, refine, match, write."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from dataset_tools.dataset.dataset import Dataset
from dataset_tools.llm.prompts import field_text
from dataset_tools.llm.session import Session
from dataset_tools.options import TagOptions
from dataset_tools.tags.generate import RawTags, generate, item_fields
from dataset_tools.tags.listing import TagList, drop_extremes, first_list, merge_near
from dataset_tools.tags.matching import candidates, centred, match_requests, own_tags, weights
from dataset_tools.tags.rounds import refine

log = logging.getLogger(__name__)

Encode = Callable[[Sequence[str]], np.ndarray]  # texts (n) -> float32 (n, d) of norm 1


@dataclass
class Tagged:
    """What the pipeline made.

    Attributes:
        raw: The model's own tags of each item, cleaned.
        tags: The list after the last round.
        rows: Tags of each item (n), best first.
        weights: Their weights, which sum to 1 for each item.
        sizes: (what was done, size of the list, tags shared by domains), in order.
        min_items: Fewest items of a tag, after `least_items`.
        stages: Counts for the report.
    """

    raw: RawTags
    tags: TagList
    rows: list[list[str]]
    weights: list[list[float]]
    sizes: list[tuple[str, int, int]]
    min_items: int
    stages: dict[str, int] = field(default_factory=dict)


def make_tags(dataset: Dataset, session: Session, encode: Encode, options: TagOptions) -> Tagged:
    """Run all stages.

    Args:
        dataset: With titles; other columns go into the prompts.
        session: The language model and its answers.
        encode: The text encoder, for near-duplicates and for candidates.
        options: Numbers.

    Raises:
        BackendError: the model cannot go on; the answers so far are kept.
        DataError: a prompt file is wrong, or the disk is full.
    """
    raw = generate(dataset, session, options)
    domains = dataset.column("domain")
    tags = first_list(raw.tags, domains)
    sizes = [_raw_size(raw.tags, domains), _size("spellings merged", tags)]
    names = sorted(tags.counts)
    if names:
        merge_near(tags, encode(names), names, options.merge_cosine)
        sizes.append(_size("near-duplicates merged", tags))
    n_items = Counter(domains[: options.limit])
    options = replace(options, min_items=least_items(options, n_items.total()))
    drop_extremes(tags, n_items, options.min_items, options.max_share)
    sizes.append(_size("too rare and too common dropped", tags))
    for number in range(1, options.rounds + 1):
        edits = refine(dataset, session, encode, raw, tags, options, number)
        sizes.append(_size(f"round {number}: {edits} edits", tags))
        if not edits:
            break
    rows, scored = match(dataset, session, encode, raw, tags, options)
    result = Tagged(raw, tags, rows, scored, sizes, options.min_items)
    used = {tag for row in rows for tag in row}
    result.stages = {"tags that fit no item": len(set(tags.counts) - used)}
    return result


def least_items(options: TagOptions, n_items: int) -> int:
    """`min_items`, but no more than one in fifty of `n_items`, so that a trial run keeps tags."""
    return min(options.min_items, max(1, n_items // 50))


def match(
    dataset: Dataset,
    session: Session,
    encode: Encode,
    raw: RawTags,
    tags: TagList,
    options: TagOptions,
) -> tuple[list[list[str]], list[list[float]]]:
    """Stage 2: tags and weights of each item; items that were not asked about have none."""
    names = sorted(tags.counts)
    rows: list[list[str]] = [[] for _ in dataset.items.index]
    values: list[list[float]] = [[] for _ in rows]
    if not names:
        return rows, values
    own = own_tags(raw.tags, tags)
    titles = dataset.column("title")[: options.limit]
    asked = [row for row, title in enumerate(titles) if field_text(title)]
    nearness = encode(item_texts(dataset, asked)) @ encode(names).T
    most = options.tags_per_item + options.near
    chosen = candidates([own[row] for row in asked], names, nearness, options.near, most)
    options_of = dict(zip(asked, chosen, strict=True))
    requests = match_requests(
        dataset, session.prompt("match"), [options_of.get(row, []) for row in range(len(rows))]
    )
    answers = session.ask("match", list(requests.values()))
    scores: dict[int, Any] = {
        row: a.value for row, a in zip(requests, answers, strict=True) if not a.fault
    }
    if session.backend.likelihoods:
        known = [requests[row].options for row in scores]
        scores = dict(zip(scores, centred(known, list(scores.values())), strict=True))
    for row, request in requests.items():
        if row in scores:
            likelihoods, top = session.backend.likelihoods, options.top
            rows[row], values[row] = weights(
                request.options, scores[row], likelihoods, top, options.threshold
            )
        else:
            # The model's own tags stand, unweighted, where it gave no scores.
            rows[row] = own[row][: options.top]
            n = max(1, len(rows[row]))
            values[row] = [float(f"{1 / n:.6g}") for _ in rows[row]]
    return rows, values


def item_texts(dataset: Dataset, rows: Sequence[int]) -> list[str]:
    """What a text encoder reads of each item to find tags near it: title and category."""
    fields = item_fields(dataset)
    pairs = [(field_text(fields[r]["title"]), field_text(fields[r]["category"])) for r in rows]
    return [", ".join(filter(None, pair)) for pair in pairs]


def _raw_size(raw: Sequence[Sequence[str]], domains: Sequence[str]) -> tuple[str, int, int]:
    pairs = {(tag, domain) for row, domain in zip(raw, domains, strict=True) for tag in row}
    in_domains = Counter(tag for tag, _ in pairs)
    return "raw tags", len(in_domains), sum(n > 1 for n in in_domains.values())


def _size(what: str, tags: TagList) -> tuple[str, int, int]:
    return what, len(tags.counts), len(tags.shared())
