"""One round of self-refinement: ask, check, edit the list."""

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dataset_tools.dataset.dataset import Dataset
from dataset_tools.llm.parsing import tag_list
from dataset_tools.llm.session import Session
from dataset_tools.options import TagOptions
from dataset_tools.tags.clean import merge_key
from dataset_tools.tags.generate import RawTags, read_answers, tag_requests
from dataset_tools.tags.listing import TagList
from dataset_tools.tags.matching import match_requests, own_tags
from dataset_tools.tags.refine import (
    VAGUE,
    Edits,
    apply_edits,
    edit_requests,
    judge_requests,
    judged_merges,
    list_pieces,
    near_pairs,
    read_edits,
    specificity,
)

log = logging.getLogger(__name__)

PAIR_COSINE = 0.68  # of text vectors, from which on two tags may be synonyms
LEAST_GAIN = 1.5  # log-probability a token, over the prior, both ways, for a merge
PROBED_ITEMS = 400  # items a round on which tags are tested for saying anything
LEAST_PROBES = 3  # items of a tag before it may be called vague
FEW_TAGS = 3  # an item with fewer tags on the list is asked about again
KNOWN_TAGS = 24  # tags in use that are shown with that question


def refine(
    dataset: Dataset,
    session: Session,
    encode: Callable,
    raw: RawTags,
    tags: TagList,
    options: TagOptions,
    number: int,
) -> int:
    """Round `number`; edits `tags`, and `raw` where items got more tags. Returns the edits."""
    when = f"round {number}"
    if not tags.counts:
        return 0
    if session.backend.likelihoods:
        edits = _judged(dataset, session, encode, raw, tags, options, number)
    else:
        pieces = list_pieces(tags, sorted(set(dataset.column("domain"))))
        asked = edit_requests(tags, session.prompt("refine"), pieces)
        edits = read_edits(tags, session.ask("refine", asked), [piece for _, piece in pieces])
    made = apply_edits(tags, edits, when)
    for reason, count in edits.refused.items():
        log.info("%s: %d times %s", when, count, reason)
    return made + _more(dataset, session, raw, tags, options, when)


def _judged(
    dataset: Dataset,
    session: Session,
    encode: Callable,
    raw: RawTags,
    tags: TagList,
    options: "TagOptions",
    number: int,
) -> Edits:
    """Edits by likelihoods: synonyms among near pairs, tags that tell nothing of their items."""
    edits = Edits()
    names = sorted(tags.counts)
    pairs = near_pairs(tags, names, encode(names), PAIR_COSINE)
    if pairs:
        both = list(dict.fromkeys(pairs + [(into, tag) for tag, into in pairs]))
        asked, alone = judge_requests(both, session.prompt("same"))
        answers = session.ask("same", asked + alone)
        words = [request.options[0] for request in alone]
        priors = {
            word: float(np.asarray(answer.value)[0])
            for word, answer in zip(words, answers[len(asked) :], strict=True)
            if not answer.fault
        }
        about = zip(both, answers[: len(asked)], strict=True)
        sound = {pair: answer for pair, answer in about if not answer.fault}
        edits.merges = judged_merges(pairs, sound, priors, LEAST_GAIN)
    merged = {tag for tag, _, _ in edits.merges}
    for tag, (gain, items) in _specificities(dataset, session, raw, tags, options, number).items():
        if gain <= 0 and items >= LEAST_PROBES and tag not in merged:
            edits.drops.append((tag, f"{VAGUE}: {gain:+.2f} log-probability over other items"))
    return edits


def _specificities(
    dataset: Dataset,
    session: Session,
    raw: RawTags,
    tags: TagList,
    options: "TagOptions",
    number: int,
) -> dict[str, tuple[float, int]]:
    """Score sampled items' own tags, and as many others, and compare."""
    rng = np.random.default_rng([options.seed, number])
    own = own_tags(raw.tags, tags)
    with_tags = [row for row, mine in enumerate(own) if mine]
    rows = sorted(rng.permutation(with_tags)[:PROBED_ITEMS].tolist())
    names = sorted(tags.counts)
    choices: list[list[str]] = [[] for _ in own]
    for row in rows:
        others = [names[i] for i in rng.permutation(len(names))[: 2 * len(own[row])]]
        choices[row] = own[row] + [t for t in others if t not in own[row]][: len(own[row])]
    requests = match_requests(dataset, session.prompt("match"), choices)
    answers = session.ask("probe", list(requests.values()))
    good = [row for row, answer in zip(requests, answers, strict=True) if not answer.fault]
    values: dict[int, Any] = {
        row: a.value for row, a in zip(requests, answers, strict=True) if not a.fault
    }
    return specificity(
        [own[row] for row in good], [choices[row] for row in good], [values[row] for row in good]
    )


def _more(
    dataset: Dataset,
    session: Session,
    raw: RawTags,
    tags: TagList,
    options: "TagOptions",
    when: str,
) -> int:
    """Ask again about items with few tags; tags that several of them get join the list."""
    own = own_tags(raw.tags, tags)
    domains = dataset.column("domain")
    rows = [row for row in range(len(own))[: options.limit] if len(own[row]) < FEW_TAGS]
    known = {
        domain: ", ".join(
            sorted(tags.counts, key=lambda t: (-tags.counts[t][domain], t))[:KNOWN_TAGS]
        )
        for domain in sorted(set(domains))
    }
    requests = tag_requests(
        dataset,
        session.prompt("more_tags"),
        rows,
        as_json=not session.backend.likelihoods,
        of_domain={domain: {"known": text} for domain, text in known.items()},
    )
    answers = session.ask("more_tags", list(requests.values()))
    found = read_answers(dataset, requests, answers, options.tags_per_item, offered=known)
    raw.refused.update(found.refused)
    # A small model repeats the examples; what is theirs alone is no new tag.
    examples = [text for r in requests.values() for _, text in r.prompt.examples]
    theirs = {merge_key(tag) for text in set(examples) for tag in tag_list(text)}
    added = _add_new(
        tags,
        [[tag for tag in found.tags[r] if merge_key(tag) not in theirs] for r in requests],
        [domains[r] for r in requests],
        options.min_items,
        when,
    )
    spelled = {merge_key(tag): tag for tag in sorted(tags.counts)}
    for row in requests:
        mine = [tags.resolve(t) or spelled.get(merge_key(t), "") for t in found.tags[row]]
        fresh = [tag for tag in dict.fromkeys(mine) if tag and tag not in own[row]]
        for tag in fresh:
            tags.counts[tag][domains[row]] += tag not in added  # those are counted
        raw.tags[row] = raw.tags[row] + fresh
    return len(added)


def _add_new(
    tags: TagList,
    found: Sequence[Sequence[str]],
    domains: Sequence[str],
    min_items: int,
    when: str,
) -> set[str]:
    """Add tags of at least `min_items` items that the list never had; returns them.

    A tag that was dropped or merged before does not come back by this door.
    """
    seen = {merge_key(tag) for tag in tags.target}
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
            tags.add(when, tag, counts[key], f"given to {items} items with few tags")
            added.add(tag)
    return added
