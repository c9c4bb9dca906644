"""Prompt files: what the language models are told, as YAML that a user can edit.

A file is one task. `default` holds the prompt for domains that the file does not name; `domains`
overrides any part of it for a domain. `{field}` in `user` and in the examples is replaced by the
item's text, once: braces inside a title stay as they are.
"""

import hashlib
import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from dataset_tools.llm.requests import Prompt
from recbole_tema.data.cells import clean_text
from recbole_tema.errors import DataError

TASKS = ("tag", "more_tags", "match", "same", "refine", "augment", "part", "profile")
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
        # An example is put in words as the item is, with empty text for what it does not give.
        blank = dict.fromkeys(known, "") | {"domain": domain}
        examples = tuple(
            (self._filled(parts["user"], blank | example), str(example["answer"]))
            for example in parts["examples"]
        )
        system = self._filled(parts["system"], known, strip=False)
        return Prompt(system, examples, self._filled(parts["user"], known))

    def _filled(self, template: str, fields: Mapping[str, Any], strip: bool = True) -> str:
        kept = []
        for line in template.split("\n"):
            names = FIELD.findall(line)
            for name in set(names) - set(fields):
                near = get_close_matches(name, fields, n=1, cutoff=0.0)[0]
                raise DataError(
                    f"{self.where}: field {{{name}}} is unknown; nearest: {{{near}}} "
                    f"(there are: {', '.join(sorted(fields))})"
                )
            values = {name: field_text(fields[name]) for name in names}
            # A line whose field is empty ("Category: ") says nothing and goes.
            if not names or any(values.values()):
                parts = FIELD.split(line)  # every second one is a name
                parts[1::2] = [values[name] for name in parts[1::2]]
                kept.append("".join(parts))
        text = "\n".join(kept)
        return text.strip() if strip else text


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
    needed = {"max_tokens", "default"}
    if not needed <= set(data) <= needed | {"domains"}:
        raise DataError(
            f"{where}: has the keys {', '.join(map(str, data))}; a prompt file has max_tokens, "
            "default and maybe domains"
        )
    tokens, domains = data["max_tokens"], data.get("domains") or {}
    if type(tokens) is not int or not 1 <= tokens <= 8192:
        raise DataError(f"{where}: max_tokens is {tokens!r}; give a number from 1 to 8192")
    _check_parts(f"{where}, default", data["default"], required=PARTS)
    if not isinstance(domains, dict):
        raise DataError(f"{where}: domains is {domains!r}; give the parts by domain")
    for name, parts in domains.items():
        if not isinstance(name, str):
            raise DataError(f"{where}: the domain {name!r} is no text; put it in quotes")
        _check_parts(f"{where}, domains: {name}", parts)
    # A date in YAML is no text, so that JSON does not know it: its own text stands for it.
    meaning = json.dumps(data, sort_keys=True, ensure_ascii=False, default=str)
    version = hashlib.sha256(meaning.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return PromptFile(where, version, tokens, data["default"], domains)


def _check_parts(where: str, parts: Any, required: Sequence[str] = ()) -> None:
    if not isinstance(parts, dict) or not set(required) <= set(parts) <= set(PARTS):
        found = ", ".join(map(str, parts)) if isinstance(parts, dict) else repr(parts)
        raise DataError(f"{where}: has {found}; its parts are {', '.join(PARTS)}")
    for part, kind, name in (
        ("system", str, "text"),
        ("user", str, "text"),
        ("examples", list, "list"),
    ):
        if not isinstance(parts.get(part, kind()), kind):
            raise DataError(f"{where}: {part} is no {name}")
    for example in parts.get("examples", []):
        if not isinstance(example, dict) or "answer" not in example:
            raise DataError(f"{where}: the example {example!r} has no answer")
        if not all(isinstance(field, str) for field in example):
            raise DataError(f"{where}: the example {example!r} has a field without a name")
