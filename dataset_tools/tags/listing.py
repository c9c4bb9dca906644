"""The tag list: raw tags of all items, merged, without the too rare and the too common."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dataset_tools.tags.clean import merge_key

RARE, COMMON = "too rare", "too common"  # why a tag was dropped
BLOCK = 512  # tags that are compared with all others at once


@dataclass
class Edits:
    """Edits of one round, checked against the list.

    Attributes:
        merges: (tag, into, reason).
        drops: (tag, reason).
        adds: (tag, domain or "" for all, reason).
        refused: Edits that made no sense -> how many.
    """

    merges: list[tuple[str, str, str]] = field(default_factory=list)
    drops: list[tuple[str, str]] = field(default_factory=list)
    adds: list[tuple[str, str, str]] = field(default_factory=list)
    refused: Counter = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.merges) + len(self.drops) + len(self.adds)


@dataclass
class TagList:
    """Tags in use, and where every raw tag went.

    Attributes:
        counts: tag -> items that have it by their own raw tags, per domain.
        target: raw tag -> the tag that stands for it, "" where it was dropped.
        log: One line an edit: round, action (merge, drop, add), tag, into, reason.
    """

    counts: dict[str, Counter]
    target: dict[str, str]
    log: list[tuple[str, str, str, str, str]] = field(default_factory=list)

    def items(self, tag: str) -> int:
        """Items of all domains that have `tag`."""
        return self.counts[tag].total()

    def resolve(self, raw: str) -> str:
        """The tag that stands for `raw` now, "" where it was dropped or never seen."""
        seen = set()
        while (after := self.target.get(raw, "")) != raw and after and raw not in seen:
            seen.add(raw)
            raw = after
        return raw if raw in self.counts else ""

    def merge(self, when: str, tag: str, into: str, reason: str) -> None:
        """Let `into` stand for `tag` too."""
        self.counts[into] += self.counts.pop(tag)
        self.target[tag] = into
        self.log.append((when, "merge", tag, into, reason))

    def drop(self, when: str, tag: str, reason: str) -> None:
        """Take `tag` off the list."""
        del self.counts[tag]
        self.target[tag] = ""
        self.log.append((when, "drop", tag, "", reason))

    def add(self, when: str, tag: str, counts: Mapping[str, int], reason: str) -> None:
        """Put `tag` on the list."""
        self.counts[tag] = Counter(counts)
        self.target[tag] = tag
        self.log.append((when, "add", tag, "", reason))

    def apply(self, edits: Edits, when: str) -> int:
        """Edit the list; returns how many edits were made. Later edits see what earlier did."""
        before = len(self.log)
        for tag, into, reason in edits.merges:
            target = self.resolve(into)
            if tag in self.counts and target and target != tag:
                self.merge(when, tag, target, reason)
        for tag, reason in edits.drops:
            if tag in self.counts:
                self.drop(when, tag, reason)
        for tag, domain, reason in edits.adds:
            if tag not in self.counts:
                self.add(when, tag, {domain: 0} if domain else {}, reason)
        return len(self.log) - before

    def add_new(
        self, found: Sequence[Sequence[str]], domains: Sequence[str], min_items: int, when: str
    ) -> set[str]:
        """Add tags that at least `min_items` items were `found` to have, and that the list never
        had; returns them.

        A tag that was dropped or merged before does not come back by this door.
        """
        seen = {merge_key(tag) for tag in self.target}
        counts: dict[str, Counter] = defaultdict(Counter)
        spellings: dict[str, Counter] = defaultdict(Counter)
        for row, domain in zip(found, domains, strict=True):
            for tag in row:
                if (key := merge_key(tag)) not in seen:
                    counts[key][domain] += 1
                    spellings[key][tag] += 1
        added = set()
        for key in sorted(counts):
            if (items := counts[key].total()) >= min_items:
                tag = min(spellings[key], key=lambda t: (-spellings[key][t], t))
                self.add(when, tag, counts[key], f"given to {items} items with few tags")
                added.add(tag)
        return added

    def shared(self) -> list[str]:
        """Tags that items of more than one domain have."""
        return sorted(t for t, c in self.counts.items() if sum(n > 0 for n in c.values()) > 1)


def first_list(raw: Sequence[Sequence[str]], domains: Sequence[str]) -> TagList:
    """The list of all raw tags of items (n) of `domains` (n): spellings of one tag merged.

    The most used spelling stands for the others, the shortest and first in the alphabet on a tie.
    """
    counts: dict[str, Counter] = defaultdict(Counter)
    for tags, domain in zip(raw, domains, strict=True):
        for tag in dict.fromkeys(tags):
            counts[tag][domain] += 1
    result = TagList(dict(counts), {tag: tag for tag in counts})
    spellings: dict[str, list[str]] = defaultdict(list)
    for tag in sorted(counts):
        spellings[merge_key(tag)].append(tag)
    for tags in spellings.values():
        best = min(tags, key=lambda tag: (-counts[tag].total(), len(tag), tag))
        for tag in tags:
            if tag != best:
                result.merge("list", tag, best, "another spelling")
    return result


def merge_near(tags: TagList, vectors: np.ndarray, order: Sequence[str], least: float) -> None:
    """Merge tags whose text vectors (n, d), of norm 1, in `order` are at least `least` alike.

    The more used one stays. From the most used tag on, so that the result does not depend on the
    order of the items.
    """
    ranked = sorted(range(len(order)), key=lambda i: (-tags.items(order[i]), order[i]))
    names, sorted_vectors = [order[i] for i in ranked], vectors[ranked]
    for start in range(0, len(names), BLOCK):
        # Only the tags after the block's first can be rarer than one of the block.
        block = sorted_vectors[start : start + BLOCK] @ sorted_vectors[start:].T
        for row, column in np.argwhere(block >= least).tolist():
            tag, into = names[start + column], names[start + row]
            if column > row and tag in tags.counts and into in tags.counts:
                cosine = block[row, column]
                tags.merge("list", tag, into, f"text vectors {cosine:.2f} alike")


def drop_extremes(
    tags: TagList, n_items: Mapping[str, int], min_items: int, max_share: float
) -> None:
    """Drop tags of fewer than `min_items` items, or of more than `max_share` of all items.

    A tag that most items of one domain have only tells the domain, which the model knows. In a
    trial of a few items one of them is a large share: a tag of `min_items` is not too common.
    """
    total = sum(n_items.values())
    for tag in sorted(tags.counts):
        used = tags.counts[tag]
        widest = max(used[d] / n_items[d] for d in n_items)
        if used.total() < min_items:
            tags.drop("list", tag, f"{RARE}: {used.total()} items")
        elif used.total() > min_items and (
            used.total() > max_share * total or widest > min(1.0, 2 * max_share)
        ):
            tags.drop("list", tag, f"{COMMON}: {used.total()} items")
