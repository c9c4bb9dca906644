"""Stage 2 of TEMA: which tags of the list fit an item, and how well.

An item's candidates are its own raw tags mapped onto the list, and the tags nearest to its text.
The language model that made the tags scores them; what is kept is weighted by the scores.
"""

from collections.abc import Sequence

import numpy as np

from dataset_tools.dataset.dataset import Dataset
from dataset_tools.llm.prompts import PromptFile
from dataset_tools.llm.requests import Prompt, Scoring
from dataset_tools.tags.generate import item_fields
from dataset_tools.tags.listing import TagList

BORROWED = 10  # items' worth of the mean over all tags, in the mean of one tag


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


def weights(
    tags: Sequence[str], scores: Sequence[float], likelihoods: bool, top: int, threshold: float
) -> tuple[list[str], list[float]]:
    """The tags that fit, best first, and their weights, which sum to 1.

    Args:
        tags: The candidates.
        scores: One each: mean log-probability a token, or a rating from 0 to 1.
        likelihoods: Which of the two.
        top: Most tags of an item.
        threshold: Least score in relation to the best one (likelihoods: of the probabilities,
            ratings: of the ratings). The best tag is kept unless its rating is 0.

    >>> weights(["tea", "cup", "car"], [-1.0, -1.0, -9.0], True, 5, 0.1)
    (['tea', 'cup'], [0.5, 0.5])
    """
    values = np.asarray(scores, dtype=np.float64)
    if len(values) == 0:
        return [], []
    fit = np.exp(values - values.max()) if likelihoods else values
    if fit.max() <= 0:
        return [], []
    order = np.argsort(-fit, kind="stable")[:top]
    kept = [int(i) for i in order if fit[i] >= threshold * fit.max()]
    share = fit[kept] / fit[kept].sum()
    return [tags[i] for i in kept], [float(f"{value:.6g}") for value in share]


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
