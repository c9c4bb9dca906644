"""The three questions to a local model: texts by greedy decoding, scores of options, vectors."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import torch

from dataset_tools.llm.local_forward import Forward, Prefix, causal
from dataset_tools.llm.thoughts import is_mark, without_thoughts

MAX_BATCH_TOKENS = 8192  # of a forward pass, fillings counted: it bounds the memory
MAX_SCORED_TOKENS = 2048  # likewise where each token's logits are kept, (tokens, vocabulary)
ONLY_THOUGHTS = (
    "thoughts took the whole answer: choose a model that does not think aloud first, or serve this "
    "one, with --backend openai and enough --max_tokens"
)
COMPACT_AT = 0.75  # rows are dropped from a batch when this share or less still goes on


@dataclass
class Row:
    """A text being written.

    Attributes:
        ids: The tokens of its own, to which the answer is the continuation.
        max_tokens: Longest answer.
        stop: Texts that end it, once the thoughts before it have ended.
        opened: The prompt ends within thoughts.
        written: The answer's tokens so far, thoughts included.
        text: The answer, when it is done.
        fault: Why it has no answer.
    """

    ids: list[int]
    max_tokens: int
    stop: tuple[str, ...]
    opened: bool = False
    written: list[int] = field(default_factory=list)
    text: str | None = None
    fault: str | None = None


def batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Places of `lengths`, longest first, in groups whose filled-up size is within `budget`."""
    groups: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if groups and lengths[groups[-1][0]] * (len(groups[-1]) + 1) <= budget:
            groups[-1].append(place)
        else:
            groups.append([place])
    return groups


def filled(rows: Sequence[Sequence[int]], device: torch.device) -> torch.Tensor:
    """Rows of tokens (B, L), filled up with token 0 at the end."""
    ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    return torch.from_numpy(ids).to(device)


class Writer:
    """Greedy decoding of batches.

    Args:
        forward: The model.
        tokenizer: Its tokenizer.
        ends: Tokens that end an answer.
        repeat_penalty: What a token that the answer already has loses in logits. Tokens without a
            letter or digit (commas, line breaks) are exempt.
    """

    def __init__(
        self, forward: Forward, tokenizer: Any, ends: set[int], repeat_penalty: float
    ) -> None:
        self.forward, self.tokenizer = forward, tokenizer
        self.ends, self.repeat_penalty = ends, repeat_penalty
        self._is_word: dict[int, bool] = {}
        added = getattr(tokenizer, "added_tokens_decoder", {})
        special = {token for token, text in added.items() if text.special}
        special |= set(tokenizer.all_special_ids)
        # What marks thoughts has to be seen.
        self._unseen = {token for token in special if not is_mark(tokenizer.decode([token]))}

    def write(self, prefix: Prefix, rows: Sequence[Row]) -> None:
        """Write the answers of `rows` into them."""
        for places in batches([len(row.ids) for row in rows], MAX_BATCH_TOKENS):
            self._write_batch(prefix, [rows[i] for i in places])

    def _write_batch(self, prefix: Prefix, rows: list[Row]) -> None:
        device = self.forward.device
        longest = max(len(row.ids) for row in rows)
        lengths = torch.tensor([len(row.ids) for row in rows], device=device)
        ids = filled([row.ids for row in rows], device)
        cache = self.forward.rows(longest + max(row.max_tokens for row in rows))
        keep, column = torch.unique(lengths - 1, return_inverse=True)
        positions = torch.arange(longest, device=device).expand(ids.shape)
        sees = causal(longest, device)
        logits = self.forward.logits(prefix, ids, positions, sees, keep, cache)
        logits = logits[torch.arange(len(rows), device=device), column]
        seen = torch.zeros_like(logits, dtype=torch.bool)
        visible = torch.arange(longest, device=device) < lengths[:, None]
        while True:
            if self.repeat_penalty:
                logits = torch.where(seen, logits - self.repeat_penalty, logits)
            best, tokens = logits.max(-1)
            for row, finite in zip(rows, best.isfinite().tolist(), strict=True):
                if not finite and row.text is None:
                    row.text, row.fault = "", "the model's numbers overflow; use --dtype float32"
            self._take(rows, tokens.tolist(), seen)
            going = [i for i, row in enumerate(rows) if row.text is None]
            if not going:
                return
            if len(going) <= COMPACT_AT * len(rows):
                rows = [rows[i] for i in going]
                kept = torch.tensor(going, device=device)
                tokens, seen, visible, lengths = (
                    part[kept] for part in (tokens, seen, visible, lengths)
                )
                for layer in cache.layers:
                    layer.keep_rows(kept)
            visible = torch.cat([visible, visible.new_ones(len(rows), 1)], 1)
            logits = self.forward.logits(
                prefix, tokens[:, None], lengths[:, None], visible[:, None, None], 1, cache
            )[:, -1]
            lengths = lengths + 1

    def _take(self, rows: list[Row], tokens: list[int], seen: torch.Tensor) -> None:
        """Append each row's next token, unless it is done; end the rows that now are."""
        for i, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            if row.text is not None:
                continue
            if token not in self.ends:
                row.written.append(token)
                if self.repeat_penalty and self._word(token):
                    seen[i, token] = True
            said = self.tokenizer.decode([t for t in row.written if t not in self._unseen])
            text = without_thoughts(said, row.opened)
            cuts = [place for stop in row.stop if (place := text.find(stop)) >= 0]
            if cuts or token in self.ends or len(row.written) >= row.max_tokens:
                row.text = text[: min(cuts, default=len(text))].strip()
                if said.strip() and not text:
                    row.fault = ONLY_THOUGHTS

    def _word(self, token: int) -> bool:
        if token not in self._is_word:
            self._is_word[token] = any(c.isalnum() for c in self.tokenizer.decode([token]))
        return self._is_word[token]


def score(
    forward: Forward,
    prefix: Prefix,
    prompts: Sequence[Sequence[int]],
    options: Sequence[Sequence[Sequence[int]]],
) -> list[list[float]]:
    """Mean log-likelihood of a token of each option after its prompt; the end token not counted.

    All options of a prompt stand in one row behind it and do not see each other, so the prompt is
    read once.

    Args:
        prompts: Own tokens of each prompt.
        options: Tokens of each option of each prompt, none empty.
    """
    scores: list[list[float]] = [[0.0] * len(group) for group in options]
    rows: list[tuple[int, list[int]]] = []  # number of a prompt, those of its options in the row
    sizes: list[int] = []
    for i, group in enumerate(options):
        room = 0
        for j, option in enumerate(group):
            if not j or len(option) > room:
                rows.append((i, []))
                sizes.append(len(prompts[i]))
                room = MAX_SCORED_TOKENS - len(prompts[i])
            rows[-1][1].append(j)
            sizes[-1] += len(option)
            room -= len(option)
    for places in batches(sizes, MAX_SCORED_TOKENS):
        batch = [rows[place] for place in places]
        tokens = [(prompts[i], [options[i][j] for j in group]) for i, group in batch]
        for (i, group), found in zip(batch, _score_batch(forward, prefix, tokens), strict=True):
            for j, value in zip(group, found, strict=True):
                scores[i][j] = value
    return scores


def _score_batch(
    forward: Forward, prefix: Prefix, rows: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]]
) -> list[list[float]]:
    """Scores of rows of (prompt, options)."""
    device = forward.device
    ids = filled([[*prompt, *chain(*options)] for prompt, options in rows], device)
    positions = np.zeros(ids.shape, np.int64)
    branch = np.full(ids.shape, -1)  # of a token: 0 the prompt, 1, 2, ... the option
    for i, (prompt, options) in enumerate(rows):
        lengths = [len(prompt), *map(len, options)]
        branch[i, : sum(lengths)] = np.repeat(np.arange(len(lengths)), lengths)
        places = [np.arange(n) + (len(prompt) if k else 0) for k, n in enumerate(lengths)]
        positions[i, : sum(lengths)] = np.concatenate(places)
    branch = torch.from_numpy(branch).to(device)
    same = (branch[:, None, :] == branch[:, :, None]) | (branch[:, None, :] == 0)
    sees = same[:, None] & causal(ids.shape[1], device)
    first = min(len(prompt) for prompt, _ in rows) - 1
    keep = torch.arange(first, ids.shape[1], device=device)
    logits = forward.logits(prefix, ids, torch.from_numpy(positions).to(device), sees, keep)
    scores = []
    for row, (prompt, options) in zip(logits, rows, strict=True):
        sizes = [len(option) for option in options]
        starts = np.repeat(len(prompt) + np.cumsum([0, *sizes[:-1]]), sizes)
        sources = np.arange(len(prompt), len(prompt) + sum(sizes)) - 1
        sources[sources == starts - 1] = len(prompt) - 1  # an option's first follows the prompt
        targets = torch.tensor([*chain(*options)], device=device)[:, None]
        chosen = row[torch.from_numpy(sources - first).to(device)].float()
        found = chosen.log_softmax(-1).gather(1, targets)[:, 0].cpu()
        scores.append([float(part.mean()) for part in found.split(sizes)])
    return scores


def embed(forward: Forward, texts: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Mean of the last hidden states over each text's tokens: float32 vectors; no text empty."""
    vectors: list[np.ndarray] = [np.empty(0, np.float32)] * len(texts)
    for places in batches([len(text) for text in texts], MAX_BATCH_TOKENS):
        ids = filled([texts[i] for i in places], forward.device)
        lengths = torch.tensor([len(texts[i]) for i in places], device=forward.device)
        states = forward.states(ids, causal(ids.shape[1], forward.device)).float()
        real = torch.arange(ids.shape[1], device=forward.device) < lengths[:, None]
        means = (states * real.unsqueeze(-1)).sum(1) / lengths[:, None]
        for i, vector in zip(places, means.cpu().numpy(), strict=True):
            vectors[i] = vector
    return vectors
