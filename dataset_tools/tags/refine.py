"""Self-refinement of the tag list: the model that made the tags edits the list, round by round.

Two ways. A model that follows instructions gets the list in pieces and answers with edits as JSON
(`edit_*`). A small local model cannot do that, but its likelihoods can judge single questions
(`judge_*`): is one tag another word for the other, and does a tag tell anything about the items
that have it?
"""

import json
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dataset_tools.dataset.dataset import Dataset
from dataset_tools.llm.parsing import json_value, tag_list
from dataset_tools.llm.prompts import PromptFile
from dataset_tools.llm.requests import Answer, Completion, Prompt, Scoring
from dataset_tools.llm.session import Session
from dataset_tools.options import TagOptions
from dataset_tools.tags.clean import clean_tag, merge_key, singular
from dataset_tools.tags.generate import (
    TEXT,
    RawTags,
    list_schema,
    object_schema,
    read_answers,
    tag_requests,
)
from dataset_tools.tags.listing import Edits, TagList
from dataset_tools.tags.matching import match_requests, own_tags

log = logging.getLogger(__name__)

VAGUE = "vague"  # why a tag was dropped
PIECE = 120  # tags of one editing question
MAX_DROPPED = 0.3  # share of a piece that one answer may drop: more is a misunderstanding
MAX_MERGED = 0.6  # share of a piece that one answer may merge into others
MAX_ADDED = 20  # tags that one answer may add
PAIR_COSINE = 0.68  # of text vectors, from which on two tags may be synonyms
LEAST_GAIN = 1.5  # log-probability a token, over the prior, both ways, for a merge
PROBED_ITEMS = 400  # items a round on which tags are tested for saying anything
LEAST_PROBES = 3  # items of a tag before it may be called vague
FEW_TAGS = 3  # an item with fewer tags on the list is asked about again
KNOWN_TAGS = 24  # tags in use that are shown with that question
MERGE = object_schema(tag=TEXT, into=TEXT)
EDIT_SCHEMA = json.dumps(
    object_schema(merge=list_schema(MERGE), drop=list_schema(), add=list_schema())
)


@dataclass(frozen=True)
class Refinement:
    """What a round of refinement works on; `tags` is edited, and `raw` where items get more tags.

    Attributes:
        dataset: With the items.
        session: The language model and its answers.
        encode: The text encoder, for pairs that may be synonyms.
        raw: The model's own tags of each item.
        tags: The list.
        options: Numbers.
    """

    dataset: Dataset
    session: Session
    encode: Callable
    raw: RawTags
    tags: TagList
    options: TagOptions

    def round(self, number: int) -> int:
        """Round `number`; returns the edits."""
        when, tags = f"round {number}", self.tags
        if not tags.counts:
            return 0
        if self.session.backend.likelihoods:
            edits = self._judged(number)
        else:
            pieces = list_pieces(tags, sorted(set(self.dataset.column("domain"))))
            asked = edit_requests(tags, self.session.prompt("refine"), pieces)
            answers = self.session.ask("refine", asked)
            edits = read_edits(tags, answers, [piece for _, piece in pieces])
        made = tags.apply(edits, when)
        for reason, count in edits.refused.items():
            log.info("%s: %d times %s", when, count, reason)
        return made + self._more(when)

    def _judged(self, number: int) -> Edits:
        """Edits by likelihoods: synonyms among near pairs, tags that say nothing of their items."""
        edits = Edits()
        names = sorted(self.tags.counts)
        pairs = near_pairs(self.tags, names, self.encode(names), PAIR_COSINE)
        if pairs:
            both = list(dict.fromkeys(pairs + [(into, tag) for tag, into in pairs]))
            asked, alone = judge_requests(both, self.session.prompt("same"))
            answers = self.session.ask("same", asked + alone)
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
        for tag, (gain, items) in self._specificities(number).items():
            if gain <= 0 and items >= LEAST_PROBES and tag not in merged:
                edits.drops.append((tag, f"{VAGUE}: {gain:+.2f} log-probability over other items"))
        return edits

    def _specificities(self, number: int) -> dict[str, tuple[float, int]]:
        """Score sampled items' own tags, and as many others, and compare."""
        rng = np.random.default_rng([self.options.seed, number])
        own = own_tags(self.raw.tags, self.tags)
        with_tags = [row for row, mine in enumerate(own) if mine]
        rows = sorted(rng.permutation(with_tags)[:PROBED_ITEMS].tolist())
        names = sorted(self.tags.counts)
        choices: list[list[str]] = [[] for _ in own]
        for row in rows:
            others = [names[i] for i in rng.permutation(len(names))[: 2 * len(own[row])]]
            choices[row] = own[row] + [t for t in others if t not in own[row]][: len(own[row])]
        requests = match_requests(self.dataset, self.session.prompt("match"), choices)
        answers = self.session.ask("probe", list(requests.values()))
        values: dict[int, Any] = {
            row: a.value for row, a in zip(requests, answers, strict=True) if not a.fault
        }
        scored = list(values)
        return specificity(
            [own[r] for r in scored], [choices[r] for r in scored], list(values.values())
        )

    def _more(self, when: str) -> int:
        """Ask again about items with few tags; tags that several of them get join the list."""
        tags, raw, options = self.tags, self.raw, self.options
        own = own_tags(raw.tags, tags)
        domains = self.dataset.column("domain")
        rows = [row for row in range(len(own))[: options.limit] if len(own[row]) < FEW_TAGS]
        known = {
            domain: ", ".join(
                sorted(tags.counts, key=lambda t: (-tags.counts[t][domain], t))[:KNOWN_TAGS]
            )
            for domain in sorted(set(domains))
        }
        requests = tag_requests(
            self.dataset,
            self.session.prompt("more_tags"),
            rows,
            as_json=not self.session.backend.likelihoods,
            of_domain={domain: {"known": text} for domain, text in known.items()},
        )
        answers = self.session.ask("more_tags", list(requests.values()))
        found = read_answers(self.dataset, requests, answers, options.tags_per_item, offered=known)
        raw.refused.update(found.refused)
        # A small model repeats the examples; what is theirs alone is no new tag.
        examples = [text for r in requests.values() for _, text in r.prompt.examples]
        theirs = {merge_key(tag) for text in set(examples) for tag in tag_list(text)}
        new = [[tag for tag in found.tags[r] if merge_key(tag) not in theirs] for r in requests]
        added = tags.add_new(new, [domains[r] for r in requests], options.min_items, when)
        spelled = {merge_key(tag): tag for tag in sorted(tags.counts)}
        for row in requests:
            mine = [tags.resolve(t) or spelled.get(merge_key(t), "") for t in found.tags[row]]
            fresh = [tag for tag in dict.fromkeys(mine) if tag and tag not in own[row]]
            for tag in fresh:
                tags.counts[tag][domains[row]] += tag not in added  # those are counted
            raw.tags[row] = raw.tags[row] + fresh
        return len(added)


def list_pieces(tags: TagList, domains: Sequence[str]) -> list[tuple[str, list[str]]]:
    """(domain, tags) of each editing question: the tags of a domain, neighbours in the alphabet."""
    pieces = []
    for domain in domains:
        mine = sorted(tag for tag, counts in tags.counts.items() if counts[domain])
        pieces += [(domain, mine[i : i + PIECE]) for i in range(0, len(mine), PIECE)]
    return pieces


def edit_requests(
    tags: TagList, prompts: PromptFile, pieces: Sequence[tuple[str, Sequence[str]]]
) -> list[Completion]:
    """The question for edits of each piece; see `list_pieces`."""
    requests = []
    for domain, piece in pieces:
        lines = ", ".join(f"{tag} ({tags.counts[tag][domain]})" for tag in piece)
        prompt = prompts.prompt(domain, {})
        # After the template: a list is longer than a prompt's field may be.
        prompt = Prompt(prompt.system, prompt.examples, f"{prompt.user}\n{lines}")
        requests.append(Completion(prompt, prompts.max_tokens, (), EDIT_SCHEMA))
    return requests


def read_edits(tags: TagList, answers: Sequence[Answer], pieces: Sequence[Sequence[str]]) -> Edits:
    """The edits of all answers that make sense for the list; a tag is edited once.

    Args:
        tags: The list.
        answers: To the questions of `edit_requests`.
        pieces: The tags that each of these questions showed; an answer may drop or merge a share
            of them and no others.
    """
    edits = Edits()
    used: set[str] = set()
    for answer, piece in zip(answers, pieces, strict=True):
        try:
            data = json_value(str(answer.value)) if not answer.fault else None
        except ValueError:
            data = None
        if not isinstance(data, dict):
            edits.refused[answer.fault or "an answer that is no JSON object"] += 1
            continue
        _read_merges(tags, data.get("merge"), piece, edits, used)
        _read_drops(data.get("drop"), piece, edits, used)
        _read_adds(tags, data.get("add"), edits, used)
    return edits


def _read_merges(
    tags: TagList, merges: object, piece: Sequence[str], edits: Edits, used: set
) -> None:
    sound = []
    for entry in _list(merges):
        entry = entry if isinstance(entry, dict) else {}
        tag, into = _as_tag(entry.get("tag")), _as_tag(entry.get("into"))
        if tag in piece and into in tags.counts and tag != into:
            sound.append((tag, into))
        else:
            edits.refused["a merge of tags that are not on the list"] += 1
    if len(set(sound)) > MAX_MERGED * len(piece):
        edits.refused["an answer that merges more than it may"] += 1
        return
    for tag, into in sound:
        if tag not in used and into not in used:
            used.add(tag)
            edits.merges.append((tag, into, "synonym, by the model"))
        else:
            edits.refused["a second edit of a tag"] += 1


def _read_drops(drops: object, piece: Sequence[str], edits: Edits, used: set) -> None:
    named = dict.fromkeys(tag for tag in map(_as_tag, _list(drops)) if tag in piece)
    if len(named) > MAX_DROPPED * len(piece):
        edits.refused["an answer that drops more than it may"] += 1
        return
    kept = {into for _, into, _ in edits.merges}  # a tag that stands for others stays
    for tag in named:
        if tag not in used and tag not in kept:
            used.add(tag)
            edits.drops.append((tag, f"{VAGUE}: by the model"))
        else:
            edits.refused["a second edit of a tag"] += 1


def _read_adds(tags: TagList, adds: object, edits: Edits, used: set) -> None:
    # What was dropped or merged before does not come back.
    known = {merge_key(tag) for tag in tags.target}
    for raw in _list(adds)[:MAX_ADDED]:
        key = merge_key(tag := _as_tag(raw))
        if tag and key not in known and key not in used:
            used.add(key)
            edits.adds.append((tag, "", "missing, by the model"))
        else:
            edits.refused["an addition that is there, was dropped or is no tag"] += 1


def _list(value: object) -> list:
    return value if isinstance(value, list) else []


def _as_tag(value: object) -> str:
    return clean_tag(value)[0] if isinstance(value, str) else ""


def near_pairs(
    tags: TagList, order: Sequence[str], vectors: np.ndarray, least: float, per_tag: int = 3
) -> list[tuple[str, str]]:
    """(rarer, more used) tags whose text vectors are at least `least` alike: maybe synonyms.

    Two tags that have a word in common are not asked about: one is a kind of the other (`tea`,
    `green tea`), or both are kinds of a third; nor are years and other numbers.

    Args:
        tags: The list.
        order: Its tags, in the order of `vectors`.
        vectors: (t, d), of norm 1.
        least: Cosine.
        per_tag: Most pairs of the rarer tag.
    """
    alike = vectors @ vectors.T
    pairs = []
    for row, tag in enumerate(order):
        mine = (tags.items(tag), tag)
        near = np.argsort(-alike[row], kind="stable")[: np.count_nonzero(alike[row] >= least)]
        bigger = [c for c in near.tolist() if (tags.items(order[c]), order[c]) > mine]
        bigger = [c for c in bigger if maybe_synonyms(tag, order[c])]
        pairs += [(tag, order[c]) for c in bigger[:per_tag]]
    return pairs


def maybe_synonyms(one: str, other: str) -> bool:
    """Whether two tags have no word in common and no digits.

    >>> maybe_synonyms("kids", "children"), maybe_synonyms("green tea", "black teas")
    (True, False)
    """
    words = [{singular(word) for word in tag.split()} for tag in (one, other)]
    return not words[0] & words[1] and not any(c.isdigit() for c in one + other)


def judge_requests(
    pairs: Sequence[tuple[str, str]], prompts: PromptFile
) -> tuple[list[Scoring], list[Scoring]]:
    """For each pair: how likely is `into` as another word for `tag`; and for each `into` alone.

    The second list is the prior, asked once a word with nothing before it, so that a word that is
    likely everywhere is not taken for a synonym of everything.
    """
    asked = [_same_question(prompts, tag, into) for tag, into in pairs]
    priors = [_same_question(prompts, "", into) for into in sorted({into for _, into in pairs})]
    return asked, priors


def _same_question(prompts: PromptFile, tag: str, into: str) -> Scoring:
    prompt = prompts.prompt("", {"tag": tag or "something"})
    return Scoring(prompt, prompt, (into,))


def judged_merges(
    pairs: Sequence[tuple[str, str]],
    asked: Mapping[tuple[str, str], Answer],
    priors: Mapping[str, float],
    least: float,
) -> list[tuple[str, str, str]]:
    """Merges of (tag, into) whose gain over the prior is at least `least`, both ways.

    A word that goes with another (`coffee`, `mug`) is likely after it but not before it; synonyms
    are likely both ways.

    Args:
        pairs: The candidates.
        asked: The answer about each pair and each pair turned round, without faults.
        priors: Log-probability a token of each word by itself.
        least: Gain in log-probability a token.
    """
    best: dict[str, tuple[float, str]] = {}
    for tag, into in pairs:
        both = (tag, into), (into, tag)
        if not all(pair in asked and pair[1] in priors for pair in both):
            continue
        gain = min(float(np.asarray(asked[pair].value)[0]) - priors[pair[1]] for pair in both)
        if gain >= least and gain > best.get(tag, (-np.inf, ""))[0]:
            best[tag] = (gain, into)
    return [
        (tag, into, f"synonym: {gain:+.2f} log-probability a token")
        for tag, (gain, into) in sorted(best.items())
    ]


def specificity(
    own: Sequence[Sequence[str]],
    options: Sequence[Sequence[str]],
    scores: Sequence[Sequence[float]],
) -> dict[str, tuple[float, int]]:
    """tag -> (how much likelier the tag is for items that have it than for others, items).

    Args:
        own: Tags that each item (n) has by itself.
        options: Tags that were scored for the item.
        scores: Their scores.
    """
    mine: dict[str, list[float]] = defaultdict(list)
    others: dict[str, list[float]] = defaultdict(list)
    for tags, names, values in zip(own, options, scores, strict=True):
        for name, value in zip(names, values, strict=True):
            (mine if name in tags else others)[name].append(value)
    return {
        tag: (float(np.mean(values) - np.mean(others[tag])), len(values))
        for tag, values in mine.items()
        if others[tag]
    }
