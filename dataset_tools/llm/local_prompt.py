"""Prompts as tokens for a local model: a prefix that many share, and what is a request's own.

The text of the dataset is tokenised apart from the rest and with special tokens disabled, so that
a title that says "<|im_end|>" stays a title: it can neither end its turn nor start another.
"""

import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from dataset_tools.llm.requests import Prompt
from dataset_tools.llm.thoughts import ends_opened
from recbole_tema.errors import BackendError

MARK = "7f3aUSERTEXT9c1e"  # stands for the user's text while the template is filled in
MIN_TEXT_TOKENS = 16  # room that a prompt must leave for the user's text
FORMS = ("auto", "chat", "plain")


@dataclass(frozen=True)
class Frame:
    """What surrounds the user's text.

    Attributes:
        prefix: Tokens before it: instructions and examples.
        tail: Tokens after it, up to where the answer starts.
        before_text: What goes before the user's text (a space that its first word takes in).
        before_answer: What goes before an answer, likewise.
        opens: The template ends within thoughts, which an answer then goes on with.
    """

    prefix: tuple[int, ...]
    tail: tuple[int, ...]
    before_text: str
    before_answer: str
    opens: bool


def clean(text: str) -> str:
    """`text` without what a tokenizer cannot take: half characters and control characters.

    >>> clean("  a\\x00b\\ud800 \\n")
    'a b\\ufffd'
    """
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    kept = (" " if unicodedata.category(c) == "Cc" and c not in "\n\t" else c for c in text)
    return "".join(kept).strip()


class Prompter:
    """Turns prompts and texts into tokens of one tokenizer.

    Args:
        tokenizer: A tokenizer of transformers.
        name: Name of the model, for messages.
        form: "chat" (the tokenizer's chat template), "plain" (lines "Input:", "Output:"), or
            "auto": chat where there is a template.
    """

    def __init__(self, tokenizer: Any, name: str, form: str = "auto") -> None:
        if form == "chat" and not tokenizer.chat_template:
            raise BackendError(f"{name}: no chat template; leave the prompt form at auto or plain")
        self.tokenizer, self.name = tokenizer, name
        self.chat = form == "chat" or (form == "auto" and bool(tokenizer.chat_template))
        added = getattr(tokenizer, "added_tokens_decoder", {})
        self._forbidden = {i for i, token in added.items() if str(token).strip()}
        self._forbidden |= set(tokenizer.all_special_ids)
        self._forbidden.discard(tokenizer.unk_token_id)
        self.frame = lru_cache(maxsize=16)(self._frame)
        self.text_tokens = lru_cache(maxsize=4096)(self._text_tokens)  # options come again

    def _text_tokens(self, text: str, before: str = "") -> tuple[int, ...]:
        """Tokens of a text of the dataset: no special token among them, whatever it says."""
        text = clean(text)
        if not text:
            return ()
        ids = self.tokenizer(
            before + text, add_special_tokens=False, split_special_tokens=True, verbose=False
        )["input_ids"]
        # Added tokens that are not called special (<think>, <tool_call>) come through all the same.
        return tuple(i for i in ids if i not in self._forbidden)

    def own_tokens(self, prompt: Prompt, room: int) -> list[int] | None:
        """Tokens of a request's own: the user's text and the tail, `room` at most.

        A text that is too long loses its end. None where the room is not worth a text.
        """
        frame = self.frame(prompt.system, prompt.examples)
        text = self.text_tokens(prompt.user, frame.before_text)
        left = room - len(frame.tail)
        if left < min(len(text), MIN_TEXT_TOKENS):
            return None
        return [*text[:left], *frame.tail]

    def _frame(self, system: str, examples: tuple[tuple[str, str], ...]) -> Frame:
        text = (self._chat_text if self.chat else _plain_text)(system, examples)
        # A word's token takes in the space before it: leave that space to the word.
        (before, gap), (after, answer_gap) = (
            (part.rstrip(" "), part[len(part.rstrip(" ")) :]) for part in text.split(MARK)
        )
        tail = self._tokens(after) if after else ()
        # The template writes the start token itself.
        prefix = self._tokens(before, start=not self.chat)
        plain_gap = "" if self.chat else " "
        return Frame(prefix, tail, gap, answer_gap or plain_gap, ends_opened(after))

    def _tokens(self, text: str, start: bool = False) -> tuple[int, ...]:
        ids = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        bos = [self.tokenizer.bos_token_id]
        begins = start and self.tokenizer("a", verbose=False)["input_ids"][:1] == bos
        return (*bos, *ids) if begins else tuple(ids)

    def _chat_text(self, system: str, examples: tuple[tuple[str, str], ...]) -> str:
        try:
            text = self._filled(system, examples)
        except BackendError:
            # Some templates know no system turn: its text goes to the start of the first turn.
            if not system:
                raise
            turns = [*examples, (MARK, "")]
            turns[0] = (f"{system}\n\n{turns[0][0]}", turns[0][1])
            text = self._filled("", tuple(turns[:-1]), turns[-1][0])
        if text.count(MARK) != 1:
            raise BackendError(f"{self.name}: its chat template drops or repeats the user's text")
        return text

    def _filled(self, system: str, examples: tuple[tuple[str, str], ...], last: str = MARK) -> str:
        from jinja2 import TemplateError

        turns = [{"role": "system", "content": system}] if system else []
        for user, answer in examples:
            turns += [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
        turns.append({"role": "user", "content": last})
        try:
            return self.tokenizer.apply_chat_template(
                turns,
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=False,  # Qwen3 and its like
                date_string="26 Jul 2024",  # Llama 3's own; else the prompt changes every day
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise BackendError(f"{self.name}: its chat template fails: {error}") from error


def _plain_text(system: str, examples: tuple[tuple[str, str], ...]) -> str:
    head = f"{system}\n\n" if system else ""
    shots = "".join(f"Input: {user}\nOutput: {answer}\n\n" for user, answer in examples)
    return f"{head}{shots}Input: {MARK}\nOutput:"
