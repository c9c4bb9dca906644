"""A causal language model in batches whose rows share a prefix: its keys and values exist once.

transformers would copy the prefix into every row of the batch. Here the attention of the rows to
the prefix is one matrix product per head, whatever the batch, and each row keeps only its own keys.
"""

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from recbole_tema.errors import BackendError

ATTENTION = "shared_prefix"
CHECK_TOKENS = 12
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}


@dataclass(frozen=True)
class Prefix:
    """What all rows of a batch start with.

    Attributes:
        length: Tokens, P.
        layers: Keys and values of each layer, both (heads of keys, P, size of a head).
    """

    length: int
    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...]


NO_PREFIX = Prefix(0, ())
_active: ContextVar[Prefix] = ContextVar("prefix", default=NO_PREFIX)


def shared_prefix_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of rows to the active prefix and to their own keys; sdpa where there is no prefix.

    Args:
        query: (B, H, L, D).
        key: (B, K, T, D), H a multiple of K; so is `value`.
        attention_mask: What a row sees of its own keys: bool (B or 1, 1, L, T).

    Returns:
        (B, L, H, D), and None for the weights.
    """
    prefix = _active.get()
    if not prefix.length:
        more = {**kwargs, "scaling": scaling} | ({"softcap": softcap} if softcap else {})
        return sdpa_attention_forward(module, query, key, value, attention_mask, **more)
    n_rows, n_heads, length, size = query.shape
    n_keys = key.shape[1]
    shared_key, shared_value = prefix.layers[module.layer_idx]
    scaling = size**-0.5 if scaling is None else scaling
    rows = (query * scaling).reshape(n_rows, n_keys, -1, size)  # heads that share keys, together
    flat = rows.transpose(0, 1).reshape(n_keys, -1, size)
    to_shared = (flat @ shared_key.mT).view(n_keys, n_rows, -1, prefix.length).transpose(0, 1)
    to_own = rows @ key.mT
    if softcap:
        to_shared, to_own = (softcap * torch.tanh(s / softcap) for s in (to_shared, to_own))
    to_own = to_own.view(n_rows, n_keys, n_heads // n_keys, length, -1)
    sees = cast(torch.Tensor, attention_mask)  # all calls with a prefix give one
    to_own = to_own.masked_fill(~sees.unsqueeze(1), float("-inf")).flatten(2, 3)
    weights = torch.cat([to_shared, to_own], -1).softmax(-1, torch.float32).to(query.dtype)
    flat = weights[..., : prefix.length].transpose(0, 1).reshape(n_keys, -1, prefix.length)
    out = (flat @ shared_value).view(n_keys, n_rows, -1, size).transpose(0, 1)
    out = out + weights[..., prefix.length :] @ value
    out = out.reshape(n_rows, n_heads, length, size)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, shared_prefix_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


class RowLayer(CacheLayerMixin):
    """A layer's own keys and values of the rows, (B, K, capacity, D): written in place."""

    is_sliding = False

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity, self.used = capacity, 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        n_rows, n_heads, _, size = key_states.shape
        self.keys = key_states.new_zeros((n_rows, n_heads, self.capacity, size))
        self.values = value_states.new_zeros(
            (n_rows, n_heads, self.capacity, value_states.shape[-1])
        )
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, self.used = self.used, self.used + key_states.shape[2]
        self.keys[:, :, start : self.used] = key_states
        self.values[:, :, start : self.used] = value_states
        return self.keys[:, :, : self.used], self.values[:, :, : self.used]

    def keep_rows(self, rows: torch.Tensor) -> None:
        """Keep the rows of these numbers only."""
        self.keys, self.values = self.keys[rows], self.values[rows]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.used + query_length, 0

    def get_seq_length(self) -> int:
        return self.used

    def get_max_length(self) -> int:
        return self.capacity

    get_max_cache_shape = get_max_length  # as transformers before 5.15 calls it


class Forward:
    """A loaded model as a function of tokens, positions and masks.

    Args:
        model: A causal language model of transformers, loaded with the attention `ATTENTION`.
        name: Its name, for messages.

    Raises:
        BackendError: the model's attention is of a kind that cannot share a prefix.
    """

    def __init__(self, model: Any, name: str) -> None:
        self.model, self.name = model, name
        self.device = model.device
        self._check()

    def prefix(self, ids: tuple[int, ...]) -> Prefix:
        """Compute the keys and values of a prefix once."""
        if not ids:
            return NO_PREFIX
        cache = DynamicCache()
        tokens = torch.tensor([ids], device=self.device)
        self.model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
        layers = tuple((layer.keys[0], layer.values[0]) for layer in cache.layers)
        return Prefix(len(ids), layers)

    def rows(self, capacity: int) -> Cache:
        """A cache for the rows' own tokens, `capacity` of them."""
        n_layers = self.model.config.get_text_config().num_hidden_layers
        return Cache(layers=[RowLayer(capacity) for _ in range(n_layers)])

    def logits(
        self,
        prefix: Prefix,
        ids: torch.Tensor,
        positions: torch.Tensor,
        sees: torch.Tensor,
        keep: torch.Tensor | int,
        cache: Cache | None = None,
    ) -> torch.Tensor:
        """Logits (B, len(keep), V) at the places `keep` of the rows `ids` (B, L).

        Args:
            prefix: What all rows start with.
            positions: Of the tokens, the prefix's not counted, (B, L).
            sees: Which of its row's tokens in `cache` and `ids` a token sees, bool (B, 1, L, T).
            keep: Places in the row, int (n), or how many at its end.
            cache: Of `rows`, where later calls go on; it takes the tokens in.
        """
        before = _active.set(prefix)
        try:
            return self.model(
                input_ids=ids,
                position_ids=positions + prefix.length,
                attention_mask=sees,
                past_key_values=cache if cache is not None else self.rows(ids.shape[1]),
                use_cache=True,
                logits_to_keep=keep,
            ).logits
        finally:
            _active.reset(before)

    def states(self, ids: torch.Tensor, sees: torch.Tensor) -> torch.Tensor:
        """Last hidden states (B, L, H) of the rows `ids` (B, L), without a prefix."""
        positions = torch.arange(ids.shape[1], device=self.device).expand(ids.shape)
        decoder = getattr(self.model, self.model.base_model_prefix)
        found = decoder(input_ids=ids, position_ids=positions, attention_mask=sees, use_cache=False)
        return found.last_hidden_state

    @torch.inference_mode()
    def _check(self) -> None:
        """Compare a text in one piece with the same text as a prefix and two rows."""
        n_tokens = min(CHECK_TOKENS, self.model.config.get_text_config().vocab_size)
        ids = torch.arange(n_tokens, device=self.device)[None]
        half = n_tokens // 2
        try:
            whole = self.model(input_ids=ids).logits[:, half:]
            prefix = self.prefix(tuple(range(half)))
            rows = ids[:, half:].expand(2, -1)
            places = torch.arange(n_tokens - half, device=self.device)
            sees = causal(n_tokens - half, self.device)
            split = self.logits(prefix, rows, places.expand(rows.shape), sees, places)
            gap = (whole - split).abs().max() / whole.abs().max().clamp(min=1)
            fault = None if gap <= TOLERANCE[self.model.dtype] else f"answers differ by {gap:.3g}"
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            fault = f"{type(error).__name__}: {error}"
        if fault:
            raise BackendError(
                f"{self.name}: a {self.model.config.model_type} model cannot share a prefix "
                f"between prompts here ({fault}); serve it and use the openai backend, or give "
                "another model"
            )


def causal(length: int, device: torch.device) -> torch.Tensor:
    """Each token sees itself and those before it: bool (1, 1, L, L).

    Rows are filled up at their end, so no token of a text sees a filling.
    """
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()[None, None]
