"""Scores for histories that were not in the dataset: the model as a service would call it."""

from collections.abc import Iterator, Sized

import numpy as np
import torch
from recbole.data.interaction import Interaction

from recbole_tema.config_checks import is_int
from recbole_tema.data.loader import pad_rows
from recbole_tema.errors import ConfigError, DataError, EvaluationError
from recbole_tema.scoring import score_items


@torch.no_grad()
def recommend(model, histories, k=10, domain=None, *, exclude_history=True, batch_size=1024):
    """The ``k`` best items for each history.

    Args:
        model: a sequential model from :func:`recbole_tema.load_model`.
        histories: list of lists of raw item ids, oldest first; only the last
            ``MAX_ITEM_LIST_LENGTH`` of each count.
        k: items to return for each history.
        domain: name of the domain to recommend from, or None for all.
        exclude_history: leave out items of the history itself, those before the last
            ``MAX_ITEM_LIST_LENGTH`` too.
        batch_size: histories scored at once; it changes no result.

    Returns:
        one list for each history of up to ``k`` pairs (raw item id, score), best first.

    Raises:
        DataError: a history is empty or names an item that the model does not know.
        ConfigError: the domain is unknown, ``k`` or ``batch_size`` is not positive, or the model
            needs more than the items of a history.
    """
    dataset = model.dataset
    for name, value in (("k", k), ("batch_size", batch_size)):
        if not is_int(value, 1):
            raise ConfigError(f"{name} is {value!r}; it must be an integer, 1 or more")
    if not hasattr(model, "ITEM_SEQ"):
        raise ConfigError(
            f"{type(model).__name__} scores known users only; recommend() takes a sequential model"
        )
    allowed = _allowed_items(dataset, domain)
    flat, lengths = _item_ids(dataset, histories)
    starts = np.cumsum(lengths) - lengths
    device = next(model.parameters()).device
    model.eval()
    results = []
    for first in range(0, len(lengths), batch_size):
        part = slice(first, first + batch_size)
        kept = np.minimum(lengths[part], model.max_seq_length)
        tail = starts[part] + lengths[part] - kept
        items, _ = pad_rows(flat, tail, kept)
        # RecBole's models were trained on rows of this width.
        items = np.pad(items, ((0, 0), (0, model.max_seq_length - items.shape[1])))
        batch = {
            model.ITEM_SEQ: torch.from_numpy(items),
            model.ITEM_SEQ_LEN: torch.from_numpy(kept),
        }
        scores = _scores(model, Interaction(batch).to(device), dataset).clone()
        wanted = allowed.to(device)
        if not torch.isfinite(scores[:, wanted]).all():
            raise EvaluationError(
                f"{type(model).__name__} gives NaN or infinite scores to histories "
                f"{first}..{first + len(kept) - 1}; its weights are damaged, train it again"
            )
        scores[:, ~wanted] = -torch.inf
        if exclude_history:
            row = np.repeat(np.arange(len(kept)), lengths[part])
            seen = flat[starts[part][0] : starts[part][0] + lengths[part].sum()]
            scores[torch.from_numpy(row), torch.from_numpy(seen)] = -torch.inf
        best = scores.topk(min(k, scores.size(1)))
        for values, ids in zip(best.values.tolist(), best.indices.cpu().numpy(), strict=True):
            tokens = dataset.id2token(dataset.iid_field, ids)
            results.append(
                [(str(t), v) for t, v in zip(tokens, values, strict=True) if v > -np.inf]
            )
    return results


def _scores(model, interaction, dataset):
    try:
        return score_items(model, interaction, dataset)
    except KeyError as error:
        raise ConfigError(
            f"{type(model).__name__} reads the field {error} beside the items of a history, which "
            f"recommend() does not have; take a model that scores a sequence of items"
        ) from error


def _allowed_items(dataset, domain):
    """``(n_items,)`` bool tensor of the items that may be recommended."""
    item_domain = torch.from_numpy(dataset.item_domain)
    if domain is None:
        return item_domain > 0
    if domain not in dataset.domain_names:
        raise ConfigError(
            f"unknown domain '{domain}'; the dataset has {', '.join(dataset.domain_names)}"
        )
    return item_domain == dataset.domain_names.index(domain) + 1


def _item_ids(dataset, histories):
    """(flat internal ids ``(total,)``, lengths ``(n,)``) of raw histories."""
    known = dataset.field2token_id[dataset.iid_field]
    flat = []
    if not isinstance(histories, Sized | Iterator) or isinstance(histories, str | dict):
        raise DataError(f"histories is {histories!r}; give a list of lists of item ids")
    histories = list(histories)
    for row, history in enumerate(histories):
        if isinstance(history, str):
            raise DataError(f"history {row} is the text '{history}'; give a list of item ids")
        if isinstance(history, dict) or not isinstance(history, Sized):
            raise DataError(f"history {row} is {history!r}; give a list of item ids")
        if not len(history):
            raise DataError(f"history {row} is empty; give at least one item")
        for token in history:
            item = known.get(str(token), 0)
            if item == 0:
                raise DataError(f"history {row}: unknown item '{token}'; leave it out")
            flat.append(item)
    lengths = np.array([len(history) for history in histories], dtype=np.int64)
    return np.array(flat, dtype=np.int64), lengths
