"""Prompt files: what the language models are told, as YAML that a user can edit.

A file is one task. `default` holds the prompt for domains that the file does not name; `domains`
overrides any part of it for a domain. `{field}` in `user` and in the examples is replaced by the
item's text, once: braces inside a title stay as they are.
"""

import hashlib
import html
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from dataset_tools.llm.requests import Prompt
from recbole_tema.data.atomic import clean_text
from recbole_tema.errors import DataError

TASKS = ("tag", "more_tags", "match", "same", "refine", "part", "profile")
PARTS = ("system", "examples", "user")
FIELD = re.compile(r"\{([a-z_]+)\}")
MAX_FIELD = 600  # characters of one field in a prompt; a longer text is cut


@dataclass(frozen=True)
class PromptFile:
    """One task's prompts.

    Attributes:
        where: The file, for messages.
        version: First digits of the SHA-256 of its meaning: comments do not count.
        max_tokens: Longest answer of a local model; a server's may be longer, see `--max_tokens`.
        default: system, examples, user.
        domains: Overrides by domain.
    """

    where: str
    version: str
    max_tokens: int
    default: Mapping[str, Any]
    domains: Mapping[str, Mapping[str, Any]]

    def prompt(self, domain: str, fields: Mapping[str, str]) -> Prompt:
        """The prompt for an item of `domain`.

        Raises:
            DataError: the file names a field that is not among `fields`.
        """
        parts = {**self.default, **self.domains.get(domain, {})}
        known = {"domain": domain, **fields}
        return Prompt(
            system=self._filled(parts["system"], known),
            examples=tuple(
                (self._example(parts, domain, known, ex), str(ex["answer"]))
                for ex in parts["examples"]
            ),
            user=self._filled(parts["user"], known).strip(),
        )

    def _example(self, parts: Mapping, domain: str, known: Mapping, example: Mapping) -> str:
        """An example is put in words as the item is, with empty text for what it does not give."""
        blank = dict.fromkeys(known, "")
        return self._filled(parts["user"], {**blank, "domain": domain, **example}).strip()

    def _filled(self, template: str, fields: Mapping[str, Any]) -> str:
        def value(match: re.Match) -> str:
            if match[1] not in fields:
                near = get_close_matches(match[1], fields, n=1, cutoff=0.0)[0]
                raise DataError(
                    f"{self.where}: field {{{match[1]}}} is unknown; nearest: {{{near}}} "
                    f"(there are: {', '.join(sorted(fields))})"
                )
            return field_text(fields[match[1]])

        lines = [FIELD.sub(value, line) for line in template.split("\n")]
        # A line whose field is empty ("Category: ") says nothing and goes.
        kept = [
            line
            for line, raw in zip(lines, template.split("\n"), strict=True)
            if not FIELD.search(raw) or any(field_text(fields[f]) for f in FIELD.findall(raw))
        ]
        return "\n".join(kept)


def field_text(value: Any) -> str:
    """A text of the dataset as it may stand in a prompt: one line, no control characters, cut.

    >>> field_text("Salt &amp;\\tPepper")
    'Salt & Pepper'
    """
    return clean_text(html.unescape(str(value)))[:MAX_FIELD].strip()


def load_prompt(task: str, folder: Path | None = None) -> PromptFile:
    """The prompt file of `task`: `folder/TASK.yaml` where that exists, else the packaged one.

    Raises:
        DataError: the file cannot be read, is not YAML, or lacks a part or has an unknown one.
    """
    path = folder / f"{task}.yaml" if folder else None
    if folder is not None and not folder.is_dir():
        raise DataError(f"{folder}: no such folder of prompts; --prompts names a folder")
    if path is None or not path.is_file():
        path = files("dataset_tools") / "prompts" / f"{task}.yaml"
    try:
        data = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: cannot be read as YAML: {reason}") from None
    return _checked(str(path), data)


def check_prompts(folder: Path | None) -> None:
    """Read every prompt of `folder` now, so that a mistake shows before the first question.

    Raises:
        DataError: see `load_prompt`; or a YAML file that is no task's.
    """
    for path in sorted(folder.glob("*.y*ml")) if folder else ():
        if path.stem not in TASKS or path.suffix != ".yaml":
            near = get_close_matches(path.stem, TASKS, n=1, cutoff=0.0)[0]
            raise DataError(
                f"{path}: no task has this prompt; nearest: {near}.yaml (tasks: {', '.join(TASKS)})"
            )
    for task in TASKS:
        load_prompt(task, folder)


def _checked(where: str, data: Any) -> PromptFile:
    if not isinstance(data, dict):
        raise DataError(f"{where}: holds no keys; it needs max_tokens and default")
    unknown = set(data) - {"max_tokens", "default", "domains"}
    if unknown or not {"max_tokens", "default"} <= set(data):
        raise DataError(
            f"{where}: has the keys {', '.join(map(str, data))}; a prompt file has max_tokens, "
            "default and maybe domains"
        )
    tokens = data["max_tokens"]
    if not isinstance(tokens, int) or isinstance(tokens, bool) or not 1 <= tokens <= 8192:
        raise DataError(f"{where}: max_tokens is {tokens!r}; give a number from 1 to 8192")
    default = data["default"]
    _check_parts(where, "default", default, required=PARTS)
    domains = data.get("domains") or {}
    if not isinstance(domains, dict):
        raise DataError(f"{where}: domains is {domains!r}; give the parts by domain")
    for name, parts in domains.items():
        if not isinstance(name, str):
            raise DataError(f"{where}: the domain {name!r} is no text; put it in quotes")
        _check_parts(where, f"domains: {name}", parts, required=())
    # A date in YAML is no text, so that JSON does not know it: its own text stands for it.
    meaning = json.dumps(data, sort_keys=True, ensure_ascii=False, default=str)
    version = hashlib.sha256(meaning.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return PromptFile(where, version, tokens, default, domains)


def _check_parts(where: str, place: str, parts: Any, required) -> None:
    if not isinstance(parts, dict) or set(parts) - set(PARTS) or set(required) - set(parts):
        found = ", ".join(map(str, parts)) if isinstance(parts, dict) else repr(parts)
        raise DataError(f"{where}, {place}: has {found}; its parts are {', '.join(PARTS)}")
    for part in ("system", "user"):
        if not isinstance(parts.get(part, ""), str):
            raise DataError(f"{where}, {place}: {part} is no text")
    if not isinstance(parts.get("examples", []), list):
        raise DataError(f"{where}, {place}: examples is no list")
    for example in parts.get("examples", []):
        if not isinstance(example, dict) or "answer" not in example:
            raise DataError(f"{where}, {place}: the example {example!r} has no answer")
        if not all(isinstance(field, str) for field in example):
            raise DataError(f"{where}, {place}: the example {example!r} has a field without a name")
