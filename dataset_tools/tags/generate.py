"""Stage 1 of TEMA: a domain-aware prompt asks the language model for tags of each item."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dataset_tools.dataset.dataset import Dataset
from dataset_tools.llm.parsing import tag_list
from dataset_tools.llm.prompts import PromptFile, field_text
from dataset_tools.llm.requests import Answer, Completion, Prompt
from dataset_tools.llm.session import Session
from dataset_tools.options import TagOptions
from dataset_tools.tags.clean import copies_of_examples, item_tags, merge_key
from recbole_tema.data.schema import GENERATED_FIELDS

# Columns that a prompt may name although a dataset lacks them; they are empty then.
COMMON_COLUMNS = ("title", "category", "brand", "price", "year", "description")
TEXT = {"type": "string"}  # of a JSON schema
JSON_SYSTEM = 'Answer with a JSON object: {"tags": ["...", "..."]}.'


def object_schema(**properties: Any) -> dict[str, Any]:
    """The JSON schema of an object with these properties, all of them and no others."""
    required = {"required": list(properties), "additionalProperties": False}
    return {"type": "object", "properties": properties} | required


def list_schema(items: Mapping[str, Any] = TEXT) -> dict[str, Any]:
    """The JSON schema of a list, of texts by default."""
    return {"type": "array", "items": items}


JSON_SCHEMA = json.dumps(object_schema(tags=list_schema()))


@dataclass
class RawTags:
    """What the model said of each item.

    Attributes:
        tags: Cleaned tags of each item (n), in the model's order; empty where it gave none.
        refused: Why answers or parts of them are no tags -> how often.
        silent: Items without a title, of which nothing was asked.
    """

    tags: list[list[str]]
    refused: Counter
    silent: int


def item_fields(dataset: Dataset) -> list[dict[str, str]]:
    """The prompt fields of each item: every column of NAME.item but the ids and what is generated.

    Underlines of a category become blanks, for that is how lists of words are stored.
    """
    own = [c for c in dataset.items if c not in ("item_id", "domain", *GENERATED_FIELDS)]
    columns = {name: dataset.column(name) for name in dict.fromkeys([*COMMON_COLUMNS, *own])}
    if "category" in own:
        columns["category"] = [
            ", ".join(part.replace("_", " ") for part in text.split())
            for text in columns["category"]
        ]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def tag_requests(
    dataset: Dataset,
    prompts: PromptFile,
    rows: Sequence[int],
    as_json: bool,
    of_domain: Mapping[str, Mapping[str, str]] | None = None,
) -> dict[int, Completion]:
    """row -> the question for its item; an item without a title has none.

    Args:
        dataset: With the items.
        prompts: tag.yaml or more_tags.yaml.
        rows: The items to ask about.
        as_json: The model can answer in JSON: a schema is sent and the examples are JSON.
        of_domain: Further fields of the prompt: domain -> field -> text.
    """
    fields, domains = item_fields(dataset), dataset.column("domain")
    requests = {}
    for row in rows:
        if not field_text(fields[row]["title"]):
            continue
        more = (of_domain or {}).get(domains[row], {})
        prompt = prompts.prompt(domains[row], {**fields[row], **more})
        if as_json:
            requests[row] = Completion(_json_prompt(prompt), prompts.max_tokens, (), JSON_SCHEMA)
        else:
            requests[row] = Completion(prompt, prompts.max_tokens, ("\n",))
    return requests


def _json_prompt(prompt: Prompt) -> Prompt:
    examples = tuple(
        (user, json.dumps({"tags": [tag.strip() for tag in answer.split(",")]}))
        for user, answer in prompt.examples
    )
    return replace(prompt, system=f"{prompt.system}\n{JSON_SYSTEM}", examples=examples)


def read_answers(
    dataset: Dataset,
    requests: dict[int, Completion],
    answers: Sequence[Answer],
    limit: int,
    offered: Mapping[str, str] | None = None,
) -> RawTags:
    """Clean tags out of the answers, in the order of `requests`; at most `limit` an item.

    Several words of the instructions are an echo of them and no tag, but for what was `offered`
    there as answers: domain -> text.
    """
    titles, domain_of = dataset.column("title"), dataset.column("domain")
    domains = frozenset(merge_key(name) for name in set(domain_of))
    tags: list[list[str]] = [[] for _ in titles]
    refused: Counter = Counter()
    for (row, request), answer in zip(requests.items(), answers, strict=True):
        if answer.fault:
            refused[f"no answer: {answer.fault}"] += 1
            continue
        listed = tag_list(str(answer.value))
        # A comma list of a local model may be cut off in the middle of a tag. Of JSON the backend
        # has left out what was not complete; its tokens are those of all tries.
        is_cut = request.schema is None and answer.tokens_out >= request.max_tokens
        if is_cut and len(listed) > 1:
            listed.pop()
            refused["cut off at the end"] += 1
        choice = field_text((offered or {}).get(domain_of[row], ""))
        told = request.prompt.system.replace(choice, "; ") if choice else request.prompt.system
        found, reasons = item_tags(listed, titles[row], limit, domains, told)
        refused.update(reasons)
        if copies_of_examples(found, _others_examples(request.prompt, titles[row])):
            refused["copy of an example"] += len(found)
            continue
        if not found:
            refused["an answer without a tag"] += 1
        tags[row] = found
    return RawTags(tags, refused, len(titles) - len(requests))


def _others_examples(prompt: Prompt, title: str) -> list[list[str]]:
    """Tags of the few-shot examples, without one that is about the very item."""
    title = field_text(title)
    return [tag_list(answer) for user, answer in prompt.examples if title not in user]


def generate(dataset: Dataset, session: Session, options: TagOptions) -> RawTags:
    """Stage 1, first half: the model's own tags of the first `options.limit` items."""
    rows = range(len(dataset.items))[: options.limit]
    as_json = not session.backend.likelihoods
    requests = tag_requests(dataset, session.prompt("tag"), rows, as_json)
    answers = session.ask("tag", list(requests.values()))
    raw = read_answers(dataset, requests, answers, options.tags_per_item)
    raw.silent -= len(dataset.items) - len(rows)
    return raw
