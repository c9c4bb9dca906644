"""TEMA's item construction: id, tag, text and image vectors become one item vector."""

from collections.abc import Sequence
from logging import getLogger
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

SHARE_SLACK = 1e-3  # of shares that were rounded, around their sum of 1
LEAST_VARIANCE = 1e-8  # of a principal component, in relation to the largest; less is rounding
BLOCK_ROWS = 65_536  # that are float64 at once


def principal_components(matrix: torch.Tensor, present: torch.Tensor, size: int) -> torch.Tensor:
    """Scores of the rows that are there on their first principal components, unscaled.

    Lengths of the centred rows and their inner products stay what they were, as far as the
    components reach. The signs are fixed by the rows' own scores, so that vectors which are
    rotated, or embedded into more dimensions by an orthogonal map, have the same scores.

    Args:
        matrix: ``(n, d)``. present: ``(n,)`` bool. size: number of components.

    Returns:
        ``(n, size)``; absent rows are 0. Components beyond the rank are 0.
    """
    rows = matrix[present].double()
    centred = rows - rows.mean(0)
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    leading = vectors.flip(1)[:, :size]
    scores = centred @ leading
    # The sign of an eigenvector is arbitrary: the row that lies farthest out is positive.
    if len(scores):
        scores = scores * torch.sign(scores.gather(0, scores.abs().argmax(0, keepdim=True)))
    result = matrix.new_zeros(len(matrix), size)
    result[present, : scores.size(1)] = scores.to(matrix.dtype)
    return result


def initial_vectors(
    matrix: torch.Tensor, present: torch.Tensor, size: int, std: float | None
) -> torch.Tensor:
    """Starting values of learned vectors: principal components at a standard deviation of ``std``.

    Args:
        matrix, present, size: As for `principal_components`.
        std: over all components; None: as the components come.

    Returns:
        ``(n, size)``; absent rows are 0.
    """
    scores = principal_components(matrix, present, size)
    if std is None:
        return scores
    return scores * (std / scores[present].double().std().clamp(min=1e-12).item())


def whitened(matrix: torch.Tensor, present: torch.Tensor, kind: str) -> torch.Tensor:
    """Frozen vectors without the mean of those that are there, and with equal variances.

    Text vectors share one large direction, which says nothing of an item. Computed in float64; ties
    of the spectrum and the signs of its vectors do not matter, as the result lies in the space of
    ``matrix``.

    Args:
        matrix: ``(n, d)``. present: ``(n,)`` bool.
        kind: ``centre`` takes the mean off. ``pca`` also divides each principal component by its
            standard deviation, those of next to none left out, and scales all alike, so that the
            mean squared length is 1, as that of the unit vectors which encoders give.

    Returns:
        ``(n, d)``; absent rows are 0.
    """
    rows = matrix[present]
    result = torch.zeros_like(matrix)
    if not len(rows):
        return result
    mean = rows.mean(0, dtype=torch.float64)
    basis = None
    if kind == "pca":
        spread = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=matrix.device)
        for block in rows.split(BLOCK_ROWS):
            around = block.double() - mean
            spread += around.T @ around / len(rows)
        variances, vectors = torch.linalg.eigh(spread)
        kept = variances > max(LEAST_VARIANCE * variances.max().item(), 0.0)
        scaled = vectors[:, kept] / (variances[kept] * max(1, int(kept.sum()))).sqrt()
        basis = scaled @ vectors[:, kept].T
    blocks = (block.double() - mean for block in rows.split(BLOCK_ROWS))
    done = [(block if basis is None else block @ basis).to(matrix.dtype) for block in blocks]
    result[present] = torch.cat(done)
    return result


def whiten_parts(model: nn.Module, names: Sequence[str], kind: str | None) -> None:
    """Apply `whitened` to buffers ``NAME (n, d)`` of a model, by their ``NAME_present (n,)``."""
    if kind in (None, "none"):
        return
    if not names:
        getLogger().warning(
            f"keys without effect on {type(model).__name__}: feature_whitening (no frozen vectors)"
        )
    for name in names:
        matrix, present = getattr(model, name), getattr(model, f"{name}_present")
        model.register_buffer(name, whitened(matrix, present, kind), persistent=False)


def tag_weights(
    tag_ids: torch.Tensor,
    weights: torch.Tensor | None,
    weighting: str,
    known: torch.Tensor | None = None,
) -> torch.Tensor:
    """Weights of each item's tags.

    Args:
        tag_ids, weights: ``(n, T)``, tag 0 is padding.
        weighting: ``matched`` takes the given weights as shares that sum to 1, ``raw`` takes them
            as they are, ``binary`` gives each tag the same share.
        known: ``(n_tags,)`` bool, tags that have a vector, None for all; others do not count.

    Returns:
        ``(n, T)``; an item without a tag that counts has 0 throughout. That ``raw`` weights are
        shares already is logged.
    """
    used = tag_ids > 0
    if known is not None:
        used = used & known[tag_ids]
    if weights is None or weighting == "binary":
        weights = torch.ones(())
    weights = torch.where(used, weights, 0.0)
    sums = weights.sum(1, keepdim=True)
    if weighting == "raw":
        if bool((((sums - 1).abs() < SHARE_SLACK) | (sums == 0)).all()):
            getLogger().warning(
                "tag_weighting is raw, but the tag_weights (NAME.item) of each item sum to 1, so "
                "that raw is matched: they were normalised when they were made; "
                "'python -m dataset_tools tag NAME --force' stores raw scores"
            )
        return weights
    return weights / torch.where(sums > 0, sums, 1.0)


def tag_matrix(
    tag_ids: torch.Tensor, weights: torch.Tensor, vectors: torch.Tensor | nn.Embedding
) -> torch.Tensor:
    """The tag vector of each item: ``sum_t w_it * e_t``.

    Args:
        tag_ids, weights: ``(n, T)``. vectors: ``(n_tags, d)``, or the table that is asked for the
            vectors of these items' tags alone.

    Returns:
        ``(n, d)``.
    """
    # One item with many tags makes all rows long: what is padding is not looked up.
    used = tag_ids > 0
    ends = used.sum(1).cumsum(0)
    starts = torch.cat([ends.new_zeros(1), ends])
    ids = tag_ids[used]
    if isinstance(vectors, nn.Embedding):
        needed, ids = torch.unique(ids, return_inverse=True)
        vectors = vectors(needed)
    return F.embedding_bag(
        ids,
        vectors,
        starts,
        per_sample_weights=weights[used],
        mode="sum",
        include_last_offset=True,
    )


class TagTable(nn.Module):
    """Tags whose vectors are learned; an item without tags gets a learned vector."""

    def __init__(self, n_tags: int, hidden_size: int) -> None:
        super().__init__()
        self.vectors = nn.Embedding(n_tags, hidden_size, padding_idx=0)
        self.missing = nn.Parameter(torch.zeros(hidden_size))

    def forward(
        self,
        tag_ids: torch.Tensor,
        weights: torch.Tensor,
        present: torch.Tensor,
        by_row: bool = False,
    ) -> torch.Tensor:
        """``tag_ids (n, T)``, ``weights (n, T)``, ``present (n,)`` -> ``(n, H)``.

        Args:
            by_row: read and train the vectors of these tags alone.
        """
        vectors = self.vectors if by_row else self.vectors.weight
        return torch.where(present[:, None], tag_matrix(tag_ids, weights, vectors), self.missing)


class Projection(nn.Module):
    """Projects frozen vectors; a row without one gets a learned vector instead of zeros."""

    def __init__(self, size: int, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(size, hidden_size)
        self.missing = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, vectors: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """``vectors (n, d)``, ``present (n,)`` -> ``(n, H)``."""
        return torch.where(present[:, None], self.linear(vectors), self.missing)


class Fusion(nn.Module):
    """Joins the parts of an item, each ``(n, H)``, into one ``(n, H)``; ``late``: ``(n, P H)``.

    ``late`` leaves them apart, one beside the other (`InParts`). ``sum`` adds them; ``gate`` weighs
    them item by item and dimension by dimension (softmax over the parts, times their number, so
    that equal gates are the sum); ``concat`` maps their concatenation to ``H``.
    """

    def __init__(self, kind: str, n_parts: int, hidden_size: int) -> None:
        super().__init__()
        self.kind = kind
        self.n_parts = n_parts
        if kind == "gate" and n_parts > 1:
            self.gate = nn.Linear(n_parts * hidden_size, n_parts * hidden_size)
        if kind == "concat" and n_parts > 1:
            self.join = nn.Linear(n_parts * hidden_size, hidden_size)

    def forward(self, parts: list[torch.Tensor]) -> torch.Tensor:
        """``parts``: list of ``(n, H)`` -> ``(n, H)``."""
        if len(parts) == 1:
            return parts[0]
        if self.kind == "sum":
            return torch.stack(parts).sum(0)
        joined = torch.cat(parts, dim=-1)
        if self.kind == "late":
            return joined
        if self.kind == "concat":
            return self.join(joined)
        gates = self.gate(joined).view(len(joined), self.n_parts, -1).softmax(1) * self.n_parts
        return (gates * torch.stack(parts, dim=1)).sum(1)


class InParts(nn.Module):
    """A module of width H for vectors of P parts: each part passes the one for all, or its own."""

    def __init__(self, modules: Sequence[nn.Module], n_parts: int) -> None:
        """Args: modules: one, or one for each of the ``n_parts``."""
        super().__init__()
        self.of_parts = nn.ModuleList(modules)
        self.n_parts = n_parts

    def forward(self, *inputs: Any, **options: Any) -> torch.Tensor:
        """``(..., P H)`` -> ``(..., P H)``; other than floats each part gets as it is."""
        each = [
            one.chunk(self.n_parts, dim=-1)
            if isinstance(one, torch.Tensor) and one.is_floating_point()
            else [one] * self.n_parts
            for one in inputs
        ]
        outputs = [
            self.of_parts[part % len(self.of_parts)](*own, **options)
            for part, own in enumerate(zip(*each, strict=True))
        ]
        return torch.cat(outputs, dim=-1)


def normalised_parts(vectors: torch.Tensor, n_parts: int) -> torch.Tensor:
    """``(..., P H)`` -> the same, the vector of each part at length 1."""
    return F.normalize(vectors.unflatten(-1, (n_parts, -1)), dim=-1).flatten(-2)
