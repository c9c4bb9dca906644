"""Stages 1 and 2 of TEMA from a dataset to its tags: generate, list, refine, match, report."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from tabulate import tabulate

from dataset_tools.dataset.dataset import Dataset
from dataset_tools.llm.session import Session
from dataset_tools.options import TagOptions
from dataset_tools.tags.generate import RawTags, generate
from dataset_tools.tags.listing import TagList, drop_extremes, first_list, merge_near
from dataset_tools.tags.matching import match
from dataset_tools.tags.refine import Refinement

log = logging.getLogger(__name__)

SHOWN_TAGS, SHOWN_ITEMS = 20, 10  # in the report

Encode = Callable[[Sequence[str]], np.ndarray]  # texts (n) -> float32 (n, d) of norm 1


@dataclass
class Tagged:
    """What the pipeline made.

    Attributes:
        raw: The model's own tags of each item, cleaned.
        tags: The list after the last round.
        rows: Tags of each item (n), best first.
        scores: How well each of them fits, see `matching`.
        sizes: (what was done, size of the list, tags shared by domains), in order.
        min_items: Fewest items of a tag, after `least_items`.
        stages: Counts for the report.
    """

    raw: RawTags
    tags: TagList
    rows: list[list[str]]
    scores: list[list[float]]
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
    refinement = Refinement(dataset, session, encode, raw, tags, options)
    for number in range(1, options.rounds + 1):
        edits = refinement.round(number)
        sizes.append(_size(f"round {number}: {edits} edits", tags))
        if not edits:
            break
    rows, scores, unscored = match(dataset, session, encode, raw, tags, options)
    result = Tagged(raw, tags, rows, scores, sizes, options.min_items)
    used = {tag for row in rows for tag in row}
    result.stages = {
        "tags that fit no item": len(set(tags.counts) - used),
        "items without scores": unscored,
    }
    return result


def least_items(options: TagOptions, n_items: int) -> int:
    """`min_items`, but no more than one in fifty of `n_items`, so that a trial run keeps tags."""
    return min(options.min_items, max(1, n_items // 50))


def _raw_size(raw: Sequence[Sequence[str]], domains: Sequence[str]) -> tuple[str, int, int]:
    pairs = {(tag, domain) for row, domain in zip(raw, domains, strict=True) for tag in row}
    in_domains = Counter(tag for tag, _ in pairs)
    return "raw tags", len(in_domains), sum(n > 1 for n in in_domains.values())


def _size(what: str, tags: TagList) -> tuple[str, int, int]:
    return what, len(tags.counts), len(tags.shared())


def report(dataset: Dataset, tagged: Tagged, made_by: str) -> str:
    """NAME.tags.md: list sizes, shared tags, coverage, extremes, refused answers, examples."""
    used = Counter(tag for row in tagged.rows for tag in row)
    domains = dataset.column("domain")
    by_domain: dict[str, Counter[str]] = {d: Counter() for d in sorted(set(domains))}
    for domain, row in zip(domains, tagged.rows, strict=True):
        by_domain[domain].update(row)
    shared = sum(sum(tag in c for c in by_domain.values()) > 1 for tag in used)
    parts = [
        f"# Tags of {dataset.name}\n\nMade by {made_by}.",
        "## The list\n\n"
        + _table(["after", "tags", "in more than one domain"], tagged.sizes)
        + f"\n\nTags that items have at the end: {len(used)}, of which {shared} in more than one "
        f"domain. Tags on the list that fit no item: {tagged.stages['tags that fit no item']}.",
        "## Coverage\n\n" + _coverage(dataset, tagged),
        "## Refused of the model's answers\n\n"
        + _table(["reason", "times", "of"], _refused(tagged.raw.refused)),
        f"## Most and least used\n\n{_extremes(used)}",
        f"## {SHOWN_ITEMS} items\n\n{_examples(dataset, tagged)}",
    ]
    return "\n\n".join(parts) + "\n"


def edit_log(tagged: Tagged) -> str:
    """NAME.tag-edits.tsv: every merge, drop and addition, in order."""
    head = ("when", "edit", "tag", "into", "why")
    return "".join("\t".join(row) + "\n" for row in [head, *tagged.tags.log])


def _table(heads: Sequence[str], rows: Sequence) -> str:
    return tabulate(rows, headers=heads, tablefmt="github")


def _refused(refused: Counter) -> list[tuple[str, int, str]]:
    """(reason, how often, what was refused), the most frequent first."""
    return [
        (reason, count, "answers" if reason.startswith(("no answer", "an answer")) else "tags")
        for reason, count in refused.most_common()
    ]


def _coverage(dataset: Dataset, tagged: Tagged) -> str:
    domains = dataset.column("domain")
    rows = []
    for domain in [*sorted(set(domains)), "all"]:
        mine = [r for d, r in zip(domains, tagged.rows, strict=True) if domain in (d, "all")]
        with_tags = [row for row in mine if row]
        mean = sum(map(len, with_tags)) / max(1, len(with_tags))
        share = len(with_tags) / len(mine)
        rows.append((domain, len(mine), f"{share:.1%}", f"{mean:.2f}"))
    table = _table(["domain", "items", "with tags", "tags of such an item"], rows)
    return (
        f"{table}\n\nItems without a title, of which nothing was asked: {tagged.raw.silent}. Items "
        "whose own tags stand with a score of 1, because the model scored none: "
        f"{tagged.stages['items without scores']}."
    )


def _extremes(used: Counter) -> str:
    ranked = sorted(used.items(), key=lambda pair: (-pair[1], pair[0]))
    most = ", ".join(f"{tag} ({count})" for tag, count in ranked[:SHOWN_TAGS])
    least = ", ".join(f"{tag} ({count})" for tag, count in ranked[-SHOWN_TAGS:])
    return f"Most: {most}\n\nLeast: {least}"


def _examples(dataset: Dataset, tagged: Tagged) -> str:
    """Items spread evenly over the file, so that all domains show."""
    step = max(1, len(tagged.rows) // SHOWN_ITEMS)
    domains, titles = dataset.column("domain"), dataset.column("title")
    rows = []
    for row in list(range(0, len(tagged.rows), step))[:SHOWN_ITEMS]:
        pairs = zip(tagged.rows[row], tagged.scores[row], strict=True)
        tags = ", ".join(f"{tag} {score:.2f}" for tag, score in pairs)
        rows.append((domains[row], titles[row].replace("|", "/"), tags))
    return _table(["domain", "title", "tags and scores"], rows)
