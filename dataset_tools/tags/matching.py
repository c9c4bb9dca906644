"""Stage 2 of TEMA: which tags of the list fit an item, and how well.

An item's candidates are its own raw tags mapped onto the list, and the tags nearest to its text.
The language model that made the tags scores them. The scores of what is kept are stored as they
are, for models to normalise: ratings from 0 to 1, or of a model that gives likelihoods how many
times as likely a tag is for the item as for an item on average.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dataset_tools.dataset.dataset import Dataset
from dataset_tools.llm.prompts import PromptFile, field_text
from dataset_tools.llm.requests import Prompt, Scoring
from dataset_tools.llm.session import Session
from dataset_tools.options import TagOptions
from dataset_tools.tags.generate import RawTags, item_fields
from dataset_tools.tags.listing import TagList

BORROWED = 10  # items' worth of the mean over all tags, in the mean of one tag
LARGEST_LOG = 80.0  # of a score that is stored: beyond it a float32 ends
UNSCORED = 1.0  # of a tag that the model gave and did not score


def candidates(
    own: Sequence[Sequence[str]],
    tags: Sequence[str],
    nearness: np.ndarray | None,
    near: int,
    most: int,
) -> list[list[str]]:
    """Tags to score for each item (n): its own first, then the nearest by text.

    Args:
        own: Tags of each item that are on the list.
        tags: The list (t), in the order of the columns of `nearness`.
        nearness: (n, t) cosines of item texts and tags; None where there is no text encoder.
        near: How many of the nearest tags to add.
        most: Longest row.
    """
    rows = []
    for row, mine in enumerate(own):
        chosen = list(dict.fromkeys(mine))
        if nearness is not None and near:
            # A stable sort: equal cosines, the same candidates on every machine.
            order = np.argsort(-nearness[row], kind="stable")[: near + len(chosen)]
            extra = [tags[column] for column in order if tags[column] not in chosen]
            chosen += extra[:near]
        rows.append(chosen[:most])
    return rows


def match_requests(
    dataset: Dataset, prompts: PromptFile, options: Sequence[Sequence[str]]
) -> dict[int, Scoring]:
    """row -> the question how well its candidates fit; items without any have none."""
    fields, domains = item_fields(dataset), dataset.column("domain")
    return {
        row: Scoring(
            prompt := prompts.prompt(domains[row], fields[row]),
            rating_prompt(prompt, tags),
            tuple(tags),
        )
        for row, tags in enumerate(options)
        if tags
    }


def rating_prompt(prompt: Prompt, options: Sequence[str]) -> Prompt:
    """The task for a model that writes: rate each option from 0 to 1, as JSON."""
    numbered = "\n".join(f"{place}. {option}" for place, option in enumerate(options, start=1))
    system = (
        f"{prompt.system}\nYou rate how well each of the numbered tags fits the item, from 0 "
        '(wrong) to 1 (exactly right). Answer with a JSON object: {"scores": [...]}, one number '
        "a tag, in their order."
    )
    return Prompt(system, (), f"{prompt.user}\n\nTags:\n{numbered}")


def fitting(
    tags: Sequence[str], scores: Sequence[float], likelihoods: bool, options: TagOptions
) -> tuple[list[str], list[float]]:
    """The tags that fit, best first, and their scores, which are > 0.

    Args:
        tags: The candidates.
        scores: One each: a log-likelihood as `centred` gives it, or a rating from 0 to 1.
        likelihoods: Which of the two; the score of a log-likelihood is its exponential.
        options: `top`, the most tags of an item; `threshold`, the least score in relation to the
            best one; `min_score`, the least score. The best tag is kept unless its score is 0 or
            below `min_score`.

    >>> fitting(["tea", "cup", "car"], [0.0, 0.0, -9.0], True, TagOptions(threshold=0.1))
    (['tea', 'cup'], [1.0, 1.0])
    >>> fitting(["tea", "cup", "car"], [0.8, 0.4, 0.3], False, TagOptions(min_score=0.4))
    (['tea', 'cup'], [0.8, 0.4])
    """
    values = np.asarray(scores, dtype=np.float64)
    if len(values) == 0:
        return [], []
    fit = np.exp(values - values.max()) if likelihoods else values
    if fit.max() <= 0:
        return [], []
    raw = np.exp(np.clip(values, -LARGEST_LOG, LARGEST_LOG)) if likelihoods else values
    order = np.argsort(-fit, kind="stable")[: options.top]
    near = fit[order] >= options.threshold * fit.max()
    kept = order[near & (raw[order] > 0) & (raw[order] >= options.min_score)]
    return [tags[i] for i in kept], [float(f"{value:.6g}") for value in raw[kept]]


def centred(
    options: Sequence[Sequence[str]], scores: Sequence[Sequence[float]]
) -> list[list[float]]:
    """Log-likelihoods less the mean of each tag over the items that it was scored for.

    Some tags are likely answers whatever the item: `film-noir`, whose second half follows from the
    first, got a place at half of all films. A tag of few items borrows its mean from all tags.

    Args:
        options: The tags of each item (n).
        scores: Their mean log-probabilities a token.

    >>> centred([["tea", "cup"]] * 40, [[-1, -4]] * 20 + [[-3, -2]] * 20)[0]
    [1.1, -1.1]
    """
    known: dict[str, list[float]] = {}
    for tags, values in zip(options, scores, strict=True):
        for tag, value in zip(tags, values, strict=True):
            known.setdefault(tag, []).append(value)
    if not known:
        return []
    overall = float(np.mean([value for values in known.values() for value in values]))
    mean = {
        tag: (sum(values) + BORROWED * overall) / (len(values) + BORROWED)
        for tag, values in known.items()
    }
    return [
        [float(value - mean[tag]) for tag, value in zip(tags, values, strict=True)]
        for tags, values in zip(options, scores, strict=True)
    ]


def own_tags(raw: Sequence[Sequence[str]], tags: TagList) -> list[list[str]]:
    """Each item's raw tags mapped onto the list, without repeats and what was dropped."""
    mapped = [[tags.resolve(tag) for tag in row] for row in raw]
    return [list(dict.fromkeys(tag for tag in row if tag)) for row in mapped]


def match(
    dataset: Dataset,
    session: Session,
    encode: Callable,
    raw: RawTags,
    tags: TagList,
    options: TagOptions,
) -> tuple[list[list[str]], list[list[float]], int]:
    """Stage 2: tags and scores of each item, and of how many items the model gave no scores.

    Items that were not asked about have no tags.
    """
    names = sorted(tags.counts)
    rows: list[list[str]] = [[] for _ in dataset.items.index]
    values: list[list[float]] = [[] for _ in rows]
    if not names:
        return rows, values, 0
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
    likelihoods = session.backend.likelihoods
    for row, request in requests.items():
        if row in scores:
            rows[row], values[row] = fitting(request.options, scores[row], likelihoods, options)
        else:  # the model's own tags stand, all alike
            rows[row] = own[row][: options.top]
            values[row] = [UNSCORED] * len(rows[row])
    return rows, values, len(requests) - len(scores)


def item_texts(dataset: Dataset, rows: Sequence[int]) -> list[str]:
    """What a text encoder reads of each item to find tags near it: title and category."""
    fields = item_fields(dataset)
    pairs = [(field_text(fields[r]["title"]), field_text(fields[r]["category"])) for r in rows]
    return [", ".join(filter(None, pair)) for pair in pairs]
