"""What the language model says of each item: `augmented_text` of NAME.item, which `clip` encodes.

Key terms, a summary and who likes it, in one text: with the tags, the paper's LLM-augmented text.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from dataset_tools.dataset.dataset import Dataset, update_dataset
from dataset_tools.dataset.provenance import (
    BY_MODEL,
    counted,
    note_of,
    reason_to_skip,
    say_refused,
    trial_of,
)
from dataset_tools.enrich.tags import item_digest
from dataset_tools.llm.parsing import finished_text, tag_list
from dataset_tools.llm.prompts import PromptFile, field_text
from dataset_tools.llm.requests import Answer, Completion, Prompt
from dataset_tools.llm.session import NotAsked, Session
from dataset_tools.options import AugmentOptions
from dataset_tools.tags.clean import ADDRESS, ELEMENT, copies_of_examples, item_tags, merge_key
from dataset_tools.tags.generate import TEXT, item_fields, list_schema, object_schema
from recbole_tema.errors import DataError

FIELD = "augmented_text"
MOST_TERMS = 8  # of an item; the prompt asks for fewer
MAX_SENTENCE = 240  # characters of the summary, and of who likes it
SCHEMA = json.dumps(object_schema(key_terms=list_schema(), summary=TEXT, audience=TEXT))
JSON_SYSTEM = (
    'Answer with a JSON object: {"key_terms": ["...", "..."], "summary": "...", "audience": "..."}.'
)
LABELS = {"key terms": "key_terms", "summary": "summary", "for": "audience"}
PARTS = tuple(LABELS.values())
LINE = re.compile(rf"^[\s*#-]*({'|'.join(LABELS)})[\s*]*:[\s*]*(.*)$", re.IGNORECASE)


@dataclass
class Described:
    """What the model said of the items.

    Attributes:
        texts: Of each item (n); empty where it said nothing that can be used.
        refused: Why answers or parts of them were left out -> how often.
        asked: Items that were asked about: those with a title, up to the limit.
    """

    texts: list[str]
    refused: Counter
    asked: int


def augment_requests(
    dataset: Dataset, prompts: PromptFile, rows: Sequence[int], as_json: bool
) -> dict[int, Completion]:
    """row -> the question for its item; an item without a title has none."""
    fields, domains = item_fields(dataset), dataset.column("domain")
    requests = {}
    for row in rows:
        if not field_text(fields[row]["title"]):
            continue
        prompt, most = prompts.prompt(domains[row], fields[row]), prompts.max_tokens
        if as_json:
            requests[row] = Completion(_json_prompt(prompt), most, (), SCHEMA)
        else:
            requests[row] = Completion(prompt, most, ("\n\n",))
    return requests


def _json_prompt(prompt: Prompt) -> Prompt:
    examples = []
    for user, answer in prompt.examples:
        parts = labelled(answer)
        terms = tag_list(parts.get("key_terms", ""))
        value = {name: terms if name == "key_terms" else parts.get(name, "") for name in PARTS}
        examples.append((user, json.dumps(value, ensure_ascii=False)))
    return replace(prompt, system=f"{prompt.system}\n{JSON_SYSTEM}", examples=tuple(examples))


def labelled(text: str) -> dict[str, str]:
    """The parts of a text by the labels of its lines, the first of each; a part may stand on the
    line below its label, terms on several.

    >>> labelled("Key terms: tea, cup\\nSummary: Tea.\\nAs you like it\\nFor: all")
    {'key_terms': 'tea, cup', 'summary': 'Tea.', 'audience': 'all'}
    >>> labelled("Key terms:\\n- tea\\n- cup\\nSummary:\\nTea.")
    {'key_terms': 'tea; cup', 'summary': 'Tea.'}
    """
    parts: dict[str, str] = {}
    last = ""
    for line in map(str.strip, text.splitlines()):
        if found := LINE.match(line):
            last = LABELS[found[1].lower()]
            last = "" if last in parts else last  # a second one and what follows it
            parts.setdefault(last, found[2].strip())
        elif last and (not parts[last] or (last == "key_terms" and line[:1] in "-*")):
            parts[last] = "; ".join(filter(None, (parts[last], line.strip("-* "))))
    parts.pop("", None)
    return parts


def read_answers(
    dataset: Dataset, requests: Mapping[int, Completion], answers: Sequence[Answer]
) -> Described:
    """The texts out of the answers, in the order of `requests`."""
    titles = dataset.column("title")
    texts, refused = [""] * len(titles), Counter[str]()
    for (row, request), answer in zip(requests.items(), answers, strict=True):
        if answer.fault:
            refused[f"no answer: {answer.fault}"] += 1
            continue
        parts, title = _parts(answer, request), field_text(titles[row])
        others = [_form(said) for user, said in request.prompt.examples if title not in user]
        if _is_copy(parts, others):
            refused["copy of an example"] += 1
            continue
        texts[row], reasons = described(parts, titles[row])
        refused.update(reasons)
        if not texts[row]:
            refused["an answer that says nothing of the item"] += 1
    return Described(texts, refused, len(requests))


def _is_copy(parts: Mapping[str, str], examples: Sequence[Mapping[str, str]]) -> bool:
    """Whether an answer repeats the terms or the summary of an example."""
    terms = [tag_list(example["key_terms"]) for example in examples]
    summary = merge_key(parts["summary"].rstrip("."))
    told = [merge_key(example["summary"].rstrip(".")) for example in examples]
    return bool(summary in told if summary else False) or copies_of_examples(
        tag_list(parts["key_terms"]), terms
    )


def _form(said: str) -> dict[str, str]:
    """The parts of an answer as texts, whatever it holds: labelled lines, or the JSON of SCHEMA."""
    parts: dict[str, Any] = labelled(said)
    if not parts:
        with suppress(ValueError):
            found = json.loads(said)
            parts = found if isinstance(found, dict) else {}
    values = {name: parts.get(name) or "" for name in PARTS}
    return {
        name: "; ".join(map(str, value)) if isinstance(value, list) else str(value)
        for name, value in values.items()
    }


def _parts(answer: Answer, request: Completion) -> dict[str, str]:
    """The parts of an answer; of a text that was cut off, what is finished."""
    said = str(answer.value)
    if request.schema is not None:
        return _form(said)
    parts = labelled(said)
    if answer.tokens_out >= request.max_tokens and parts:
        last = list(parts)[-1]
        text = parts.pop(last)
        with suppress(ValueError):  # a few words of it: too few to say anything
            if last != "key_terms":
                parts[last] = finished_text(text)
            elif "," in text:
                parts[last] = text.rpartition(",")[0]
    return {name: parts.get(name, "") for name in PARTS}


def described(parts: Mapping[str, str], title: str) -> tuple[str, Counter]:
    """One text of the parts of an answer, and why some of it was left out.

    >>> parts = {"key_terms": "Black tea, tea bags", "summary": "A strong tea", "audience": "all."}
    >>> described(parts, "Assam")[0]
    'black tea, tea bags. A strong tea. For all.'
    """
    terms, refused = item_tags(tag_list(parts["key_terms"]), title, MOST_TERMS)
    said = []
    for name in ("summary", "audience"):
        text, reason = _sentence(parts[name], title)
        if reason:
            refused[f"{name}: {reason}"] += 1
        elif text and name == "audience":
            said.append(text if text.lower().startswith("for ") else f"For {text}")
        elif text:
            said.append(text)
    found = [", ".join(terms)] if terms else []
    # Who likes it says nothing alone: any item is for somebody.
    if not terms and not _sentence(parts["summary"], title)[0]:
        return "", refused
    return " ".join(f"{text.rstrip('.')}." for text in [*found, *said]), refused


def _sentence(raw: str, title: str) -> tuple[str, str]:
    """(text, "") of one line of a model, or ("", why it is none)."""
    text = field_text(ELEMENT.sub(" ", raw)).strip("\"'* ")
    if ADDRESS.search(text):
        return "", "markup or address"
    if merge_key(text.rstrip(".")) == merge_key(field_text(title)):
        return "", "the whole title"
    if len(text) > MAX_SENTENCE:
        try:
            text = finished_text(text[:MAX_SENTENCE])
        except ValueError:
            return "", "too long"
    return text, ""


def augment_dataset(
    dataset: Dataset, session: Session, options: AugmentOptions, force: bool
) -> str:
    """Write augmented_text of NAME.item; returns what was done.

    Args:
        dataset: Changed in place to what was written.
        session: The language model and its answers.
        options: Of how many items.
        force: Write again where there are texts.

    Raises:
        BackendError: the model cannot go on; run again to go on from there.
        DataError: no item has a title, the model says nothing of any, or a file cannot be written.
    """
    inputs, total = item_digest(dataset), len(dataset.items)
    maker = f"{BY_MODEL}{session.backend.identity},"
    skip = reason_to_skip(dataset, FIELD, maker, inputs, options.limit)
    if skip and not force:
        return skip
    rows, as_json = range(total)[: options.limit], not session.backend.likelihoods
    requests = augment_requests(dataset, session.prompt("augment"), rows, as_json)
    if not requests:
        raise DataError(f"{dataset.path('item')}: no item has a title; there is nothing to ask")
    if not session.dry:
        say_refused(dataset, FIELD)
    try:
        answers = session.ask("augment", list(requests.values()))
    except NotAsked:
        return "nothing was asked"
    if session.dry:
        return "every answer is kept: nothing would be asked"
    found = read_answers(dataset, requests, answers)
    n_items = sum(map(bool, found.texts))
    if not n_items:
        raise DataError(
            f"{session.backend.identity}: said nothing that can be used of {found.asked} items "
            f"({dict(found.refused)}); use a better model"
        )
    update_dataset(
        dataset,
        items=dataset.items.assign(**{FIELD: found.texts}),
        generated={FIELD: note_of(f"{BY_MODEL}{session.made_by('augment')}", inputs)},
        notes={
            "augmenting": {"options": dict(vars(options)), "refused": dict(found.refused)},
        },
    )
    beyond = total - (trial_of(options.limit, total) or total)
    others = {
        "beyond --limit": beyond,
        "without a title": total - beyond - found.asked,
        "of which the model said nothing that can be used": found.asked - n_items,
    }
    lines = [
        f"{dataset.path('item')}: {counted(n_items, total, 'items have augmented texts', others)}"
    ]
    if found.refused:
        reasons = ", ".join(f"{reason} ({n:,})" for reason, n in found.refused.most_common())
        lines.append(f"left out of the answers: {reasons}")
    return "\n".join(lines)
