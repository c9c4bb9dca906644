"""The best items of histories or of known users: the model as a service would call it."""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import recbole_tema.compat  # noqa: F401  before RecBole

# isort: split
import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.data.transform import construct_transform

from recbole_tema.config.registry import CDR_MODELS, hint
from recbole_tema.config.rules import is_int
from recbole_tema.data.loader import earlier_events, pack_rows, pad_rows
from recbole_tema.errors import ConfigError, DataError, EvaluationError
from recbole_tema.evaluation.evaluator import score_items
from recbole_tema.trainer.seeding import seeded

if TYPE_CHECKING:
    from recbole.model.abstract_recommender import AbstractRecommender

    from recbole_tema.data.cross_domain import CrossDomainMixin

# Unknown users that an error names.
NAMED = 5


class _Asked(NamedTuple):
    """Who is asked for.

    Attributes:
        noun: what a row is called in messages.
        items: flat internal item ids, oldest first. lengths: ``(n,)`` of each row.
        users: ``(n,)`` internal ids, or None for histories.
    """

    noun: str
    items: np.ndarray
    lengths: np.ndarray
    users: np.ndarray | None


@torch.no_grad()
def recommend(
    model: "AbstractRecommender",
    histories: Iterable[Any] | None = None,
    k: int = 10,
    domain: str | None = None,
    *,
    users: Iterable[Any] | None = None,
    exclude_history: bool | None = None,
    batch_size: int = 1024,
) -> list[list[tuple[str, float]]]:
    """The ``k`` best items for each history, or for each known user.

    Args:
        model: from ``recbole_tema.load_model``; for ``histories`` a sequential one.
        histories: raw item ids of each history, oldest first: a list of lists, or arrays, Series
            and the like. Only the last ``MAX_ITEM_LIST_LENGTH`` of each are read; ``repeat_bias``
            counts them all.
        k: items to return for each.
        domain: name of the domain to recommend from; None for all, or for the ``target_domain``
            that the model was evaluated in.
        users: raw ids of users of the dataset, in place of ``histories``: a sequential model reads
            all their events there, others score the users that they know.
        exclude_history: leave out the items of the history or user, those before the last
            ``MAX_ITEM_LIST_LENGTH`` too; None: as the model was evaluated
            (``model.dataset.exclude_history``).
        batch_size: rows scored at once; it changes no result.

    Returns:
        one list for each history or user of up to ``k`` pairs (raw item id, score), best first;
        items of equal score in the order of the dataset's ids.

    Raises:
        DataError: a history is empty or names an item that the model does not know, or a user is
            unknown or has no event.
        ConfigError: an argument is of a wrong kind, the domain is unknown, or the model needs more
            than what is given.
        EvaluationError: a score is NaN or infinite.
    """
    dataset = getattr(model, "dataset", None)
    if not isinstance(model, torch.nn.Module) or dataset is None:
        raise ConfigError(
            f"model is a {type(model).__name__} without a dataset; give the model that "
            f"load_model returns, the last of three"
        )
    _check_numbers(k=k, batch_size=batch_size)
    if exclude_history is None:
        exclude_history = dataset.exclude_history
    if not isinstance(exclude_history, bool):
        raise ConfigError(f"exclude_history is {exclude_history!r}; allowed: True, False or None")
    if (histories is None) == (users is None):
        raise ConfigError("give either histories or users=, raw ids of users of the dataset")
    sequential = hasattr(model, "ITEM_SEQ")
    if users is None and not sequential:
        raise ConfigError(
            f"{type(model).__name__} scores known users only: give users=[...] in place of "
            f"histories"
        )
    device = next(model.parameters()).device
    allowed = _allowed_items(dataset, domain).to(device)
    asked = _of_histories(dataset, histories) if users is None else _of_users(dataset, users)
    starts = np.cumsum(asked.lengths) - asked.lengths
    rows_of: Callable[..., Interaction] = _sequences if sequential else _known_users
    model.eval()
    results = []
    for first in range(0, len(asked.lengths), batch_size):
        part = slice(first, first + batch_size)
        lengths = asked.lengths[part]
        items = asked.items[starts[part][0] : starts[part][0] + lengths.sum()]
        batch = rows_of(model, items, lengths, None if asked.users is None else asked.users[part])
        batch = batch.to(device)
        scores = _scores(model, batch, dataset)
        if not torch.isfinite(scores[:, allowed]).all():
            raise EvaluationError(
                f"{type(model).__name__} gives NaN or infinite scores to {asked.noun} "
                f"{first}..{first + len(lengths) - 1}; its weights are damaged, train it again"
            )
        scores = scores.masked_fill(~allowed, -torch.inf)
        if exclude_history:
            row = np.repeat(np.arange(len(lengths)), lengths)
            scores[torch.from_numpy(row), torch.from_numpy(items)] = -torch.inf
        results += _best(scores, int(k), dataset.field2id_token[dataset.iid_field])
    return results


def _check_numbers(**numbers: int) -> None:
    for name, value in numbers.items():
        if not is_int(value):
            raise ConfigError(f"{name} is {value!r}; it must be an integer")
        if value < 1:
            raise ConfigError(f"{name} is {value}; it must be 1 or more")


def _sequences(
    model: "AbstractRecommender", flat: np.ndarray, lengths: np.ndarray, users: np.ndarray | None
) -> Interaction:
    """What a sequential model reads: the last items of each row."""
    dataset = model.dataset
    if dataset.config["train_on"] == "target":  # it never saw the other domains' items
        row = np.repeat(np.arange(len(lengths)), lengths)
        inside = dataset.item_domain[flat] == dataset.target_domain
        flat, lengths = flat[inside], np.bincount(row[inside], minlength=len(lengths))
    kept = np.minimum(lengths, model.max_seq_length)
    flat = np.append(flat, 0)  # something to read where no row has an item
    end = np.cumsum(lengths)
    items, _ = pad_rows(flat, end - kept, kept)
    # RecBole's models were trained on rows of this width.
    items = np.pad(items, ((0, 0), (0, model.max_seq_length - items.shape[1])))
    batch = {
        model.ITEM_SEQ: torch.from_numpy(items),
        # A row without items is the padding item by itself, as in the evaluation.
        model.ITEM_SEQ_LEN: torch.from_numpy(np.maximum(kept, 1)),
    }
    if dataset.config["repeat_bias"]:
        batch |= earlier_events(flat, end - lengths, end - kept)
    if users is not None:
        batch[dataset.uid_field] = torch.from_numpy(users)
    return Interaction(batch)


def _known_users(
    model: "AbstractRecommender", _flat: np.ndarray, _lengths: np.ndarray, users: np.ndarray
) -> Interaction:
    """What other models read: the users, with their features if there are any."""
    dataset = model.dataset
    batch = dataset.join(Interaction({dataset.uid_field: torch.from_numpy(users)}))
    return construct_transform(dataset.config)(dataset, batch)


def _scores(
    model: "AbstractRecommender", interaction: Interaction, dataset: "CrossDomainMixin"
) -> torch.Tensor:
    try:
        with seeded(dataset.config):  # a few models add noise to their scores
            return score_items(model, interaction, dataset)
    except KeyError as error:
        instead = "take a model that scores a sequence of items"
        if error.args == (dataset.uid_field,):
            instead = "give users=[...] in place of histories"
        raise ConfigError(
            f"{type(model).__name__} reads the field {error} beside the items of a history, which "
            f"recommend() does not have; {instead}"
        ) from error


def _best(scores: torch.Tensor, k: int, tokens: Sequence[str]) -> list[list[tuple[str, float]]]:
    """(token, score) of the ``k`` best of each row of ``(B, n_items)``, those of -inf left out."""
    least = scores.topk(min(k, scores.size(1))).values[:, -1:]
    # topk takes any of equal scores; all of them, cut in the order of their ids, are the same
    # whatever is beside a row.
    row, item = (scores >= least).logical_and_(scores > -torch.inf).nonzero(as_tuple=True)
    values, row, item = (part.cpu().numpy() for part in (scores[row, item], row, item))
    order = np.lexsort((item, -values, row))
    counts = np.bincount(row, minlength=len(scores))
    first = np.cumsum(counts) - counts
    return [
        [(str(tokens[item[at]]), float(values[at])) for at in order[start : start + min(k, count)]]
        for start, count in zip(first, counts, strict=True)
    ]


def _allowed_items(dataset: "CrossDomainMixin", domain: str | None) -> torch.Tensor:
    """``(n_items,)`` bool tensor of the items that may be recommended."""
    item_domain = torch.from_numpy(dataset.item_domain)
    target = dataset.target_domain
    if domain is None:
        return item_domain > 0 if target is None else item_domain == target
    if domain not in dataset.domain_names:
        raise ConfigError(
            f"unknown domain '{domain}'; the dataset has {', '.join(dataset.domain_names)}"
        )
    number = dataset.domain_names.index(domain) + 1
    config = dataset.config
    if number != target and (config["model"] in CDR_MODELS or config["train_on"] == "target"):
        raise ConfigError(
            f"domain is '{domain}', but the model was trained to recommend in "
            f"'{config['target_domain']}' (target_domain)"
        )
    return item_domain == number


def _listed(name: str, values: Any) -> list[Any]:
    """``values`` of any container with an order, as a list.

    Raises:
        DataError: they are a text, have no order, or are no container.
    """
    if isinstance(values, str | bytes):
        raise DataError(f"{name} is the text {str(values)!r}; give a list of ids")
    if isinstance(values, dict | set | frozenset):
        raise DataError(f"{name} is a {type(values).__name__}; give a list of ids")
    if isinstance(values, torch.Tensor | np.ndarray):
        values = values.tolist()
    try:
        return list(values)
    except TypeError:
        raise DataError(f"{name} is {values!r}; give a list of ids") from None


def _of_histories(dataset: "CrossDomainMixin", histories: Iterable[Any] | None) -> _Asked:
    known = dataset.field2token_id[dataset.iid_field]
    flat, lengths = [], []
    for row, history in enumerate(_listed("histories", histories)):
        history = _listed(f"history {row}", history)
        if not history:
            raise DataError(f"history {row} is empty; give at least one item")
        for token in history:
            item = known.get(str(token), 0)
            if item == 0:
                raise DataError(f"history {row}: unknown item '{token}'; leave it out")
            flat.append(item)
        lengths.append(len(history))
    flat, lengths = (np.array(values, dtype=np.int64) for values in (flat, lengths))
    return _Asked("histories", flat, lengths, None)


def _of_users(dataset: "CrossDomainMixin", users: Iterable[Any]) -> _Asked:
    known = dataset.field2token_id[dataset.uid_field]
    tokens = [str(user) for user in _listed("users", users)]
    ids = np.array([known.get(token, 0) for token in tokens], dtype=np.int64)
    sequences = dataset.sequences
    lengths = sequences.lengths[ids]
    for absent, what, then in (
        (ids == 0, f"unknown to dataset '{dataset.dataset_name}'", "recommend by their histories"),
        (lengths == 0, f"without any event in dataset '{dataset.dataset_name}'", "leave them out"),
    ):
        found = [token for token, one in zip(tokens, absent, strict=True) if one]
        if found:
            more = f" and {len(found) - NAMED} more" if found[NAMED:] else ""
            near = hint(found[0], [t for t in known if t != "[PAD]"]) if (ids == 0).any() else ""
            raise DataError(
                f"users: {len(found)} of {len(tokens)} are {what}: "
                f"{', '.join(map(repr, found[:NAMED]))}{more}{near}; {then}"
            )
    items = pack_rows(sequences.items, sequences.offsets[ids], lengths)
    return _Asked("users", items, lengths, ids)
