"""What TEMA and LLM4CDSR share: domains, threads over a batch of sequences, scoring."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import nn
from torch.nn import functional as F

from recbole_tema.console import SCREEN
from recbole_tema.data.loader import EARLIER, N_EARLIER, NEGATIVE_SEQ, TARGET_SEQ
from recbole_tema.errors import ConfigError
from recbole_tema.model.encoder import SequenceEncoder
from recbole_tema.model.history import History
from recbole_tema.model.packing import Layout, take_once
from recbole_tema.model.softmax import Bonus

if TYPE_CHECKING:
    from recbole_tema.config.tema_config import TemaConfig
    from recbole_tema.data.cross_domain import CrossDomainMixin

REPEAT_UNIT = 50.0


class CrossDomainRecommender(SequentialRecommender):
    """Base of the sequence-level models: every step of a sequence is trained at once.

    A subclass gives ``item_tables`` and ``last_states``; the score of an item is the
    dot product of its row of the scoring table with the state for its domain, plus, where
    ``repeat_bias`` is on, a learned number if the user has had the item in any earlier event
    (`history`, `history_bias`; the subclass's loss adds it too).
    """

    input_type = InputType.POINTWISE
    sequence_level = True
    losses: tuple[str, ...] = ("CE",)  # values of loss_type
    loss_names: tuple[str, ...] = ()  # of the terms that calculate_loss gives

    def __init__(self, config: "TemaConfig", dataset: "CrossDomainMixin") -> None:
        super().__init__(config, dataset)
        self.TARGET_SEQ, self.NEGATIVE_SEQ = TARGET_SEQ, NEGATIVE_SEQ
        self.hidden_size = config["hidden_size"]
        self.domain_names = list(dataset.domain_names)
        self.n_domains = len(self.domain_names)
        item_domain = torch.from_numpy(dataset.item_domain).long()
        self.register_buffer("item_domain", item_domain, persistent=False)
        # Items domain by domain: the order of the columns of the softmax.
        by_domain = torch.argsort(item_domain, stable=True)[int((item_domain == 0).sum()) :]
        self.register_buffer("by_domain", by_domain, persistent=False)
        column = torch.zeros(self.n_items, dtype=torch.long)
        column[by_domain] = torch.arange(len(by_domain))
        self.register_buffer("column", column, persistent=False)
        sizes = torch.bincount(item_domain, minlength=self.n_domains + 1)[1:]
        self.domain_sizes = sizes.tolist()
        popularity = torch.from_numpy(dataset.training_popularity()).double()
        self.register_buffer("popularity", popularity, persistent=False)
        self.label_smoothing = config["label_smoothing"] or 0.0
        # In units of REPEAT_UNIT: Adam's small steps cross them within an epoch.
        self.repeat = nn.Parameter(torch.zeros(())) if config["repeat_bias"] else None
        self._tables: tuple[torch.Tensor, ...] | None = None

    def encoder(self, config: "TemaConfig", **kind: Any) -> SequenceEncoder:
        """A `SequenceEncoder` with the sizes and blocks of the config; ``kind``: its arguments."""
        if self.hidden_size % config["n_heads"]:
            raise ConfigError(
                f"hidden_size is {self.hidden_size}, which n_heads ({config['n_heads']}) does not "
                f"divide; change one of them"
            )
        return SequenceEncoder(
            self.hidden_size,
            self.max_seq_length,
            n_layers=config["n_layers"],
            n_heads=config["n_heads"],
            inner_size=config["inner_size"],
            dropout=config["hidden_dropout_prob"],
            attn_dropout=config["attn_dropout_prob"],
            act=config["hidden_act"],
            eps=config["layer_norm_eps"],
            block=config["block"] or "post_norm",
            **kind,
        )

    def frozen_feature(
        self,
        dataset: "CrossDomainMixin",
        name: str,
        id_field: str,
        rows: int,
        required: bool = False,
    ) -> bool:
        """Register a frozen feature matrix as buffers; False where there is none, which is said
        once unless it is `required`, as then the caller says more.

        Rows that the feature file lacks are marked in ``{name}_present``.
        """
        found = dataset.feature(id_field)
        if found is None:
            if not required:
                SCREEN.info(f"{type(self).__name__}: no {name} features, trained without")
            return False
        matrix, present = found
        lacking = int((~present[1:rows]).sum())
        if lacking:
            SCREEN.info(f"{type(self).__name__}: {lacking} of {rows - 1} rows lack {name}")
        self.register_buffer(name, matrix[:rows], persistent=False)
        self.register_buffer(f"{name}_present", present[:rows], persistent=False)
        return True

    def row_tables(self) -> list[nn.Embedding]:
        """Tables of which a step of training reads single rows, by calling them with these.

        Their gradients are of these rows, and so are the optimizer's steps (`trainer.lazy_rows`).
        """
        return []

    # ---------------------------------------------------------------- threads

    def domain_thread(
        self,
        vectors: torch.Tensor,
        layout: Layout,
        domain: torch.Tensor,
        number: int,
        encoder: Callable[[torch.Tensor, Layout, torch.Tensor], torch.Tensor],
        empty: torch.Tensor,
        read: torch.Tensor,
    ) -> torch.Tensor:
        """State of one domain at some steps: its last state so far, or ``empty``.

        Args:
            vectors: ``(n, H)`` input vectors of the packed merged sequences. layout: theirs.
            domain: ``(n,)`` domain of each step. number: the domain wanted.
            empty: ``(H,)`` learned vector for steps before the domain's first item.
            read: ``(r,)`` packed steps whose state is wanted.

        Returns:
            ``(r, H)``.
        """
        mine = domain == number
        seen = mine.cumsum(0)
        steps = mine.nonzero().squeeze(1)
        length = torch.bincount(layout.row[steps], minlength=len(layout.length))
        # How many of the domain's items all rows before a step's own row have.
        before = (length.cumsum(0) - length)[layout.row[read]]
        last = torch.where(seen[read] > before, seen[read] - 1, -1)
        wanted, which = torch.unique(last[last >= 0], return_inverse=True)
        states = encoder(take_once(vectors, steps), Layout(length), wanted)
        which = torch.zeros_like(last).masked_scatter(last >= 0, which + 1)
        return F.embedding(which, torch.cat([empty[None], states]))

    # ---------------------------------------------------------------- scoring

    def item_tables(self) -> tuple[torch.Tensor, ...]:
        """Whatever `last_states` and the scoring need of the items, computed once a step.

        Returns:
            (input tables, scoring table ``(n_items, S)``).
        """
        raise NotImplementedError("a subclass gives the item tables")

    def last_states(
        self, tables: tuple[torch.Tensor, ...], item_seq: torch.Tensor, item_seq_len: torch.Tensor
    ) -> torch.Tensor:
        """``(B, D, S)`` states after the whole sequence, one for each domain's items."""
        raise NotImplementedError("a subclass gives the states")

    def train(self, mode: bool = True) -> Self:
        """Switch modes; item tables kept for an evaluation are dropped."""
        self._tables = None
        return super().train(mode)

    def _evaluation_tables(self) -> tuple[torch.Tensor, ...]:
        if self.training or torch.is_grad_enabled():
            return self.item_tables()
        if self._tables is None:
            self._tables = self.item_tables()
        return self._tables

    def full_sort_predict(self, interaction: Interaction) -> torch.Tensor:
        """Scores of every item: ``(B, n_items)``; the padding item gets minus infinity."""
        tables = self._evaluation_tables()
        states = self.last_states(
            tables, interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        )
        blocks = tables[-1][self.by_domain].split(self.domain_sizes)
        scores = torch.cat([states[:, d] @ block.T for d, block in enumerate(blocks)], dim=1)
        full = scores.new_full((len(scores), self.n_items), -torch.inf)
        full[:, self.by_domain] = scores
        bias, had = self.history_bias(), self._history_of(interaction)
        if bias is None or had is None:
            return full
        return full.index_put(had.pairs, bias.to(full.dtype), accumulate=True)

    def predict(self, interaction: Interaction) -> torch.Tensor:
        """Score of ``item_id`` for each row: ``(B,)``."""
        tables = self._evaluation_tables()
        states = self.last_states(
            tables, interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        )
        item = interaction[self.ITEM_ID]
        rows = torch.arange(len(item), device=item.device)
        scores = (states[rows, self.item_domain[item] - 1] * tables[-1][item]).sum(-1)
        bias, had = self.history_bias(), self._history_of(interaction)
        return scores if bias is None or had is None else scores + bias * had.has(item)

    # ---------------------------------------------------------------- history

    def history_bias(self) -> torch.Tensor | None:
        """What is added to the score of an item that the history has; None for nothing."""
        if self.repeat is None:
            return None
        # The unit makes Adam's steps longer and leaves the gradient, which may be clipped, alone.
        return self.repeat + (REPEAT_UNIT - 1) * self.repeat.detach()

    def history(
        self,
        interaction: Interaction,
        layout: Layout,
        items: torch.Tensor,
        read: torch.Tensor,
        rows: torch.Tensor | None = None,
    ) -> History | None:
        """What the steps ``read (r,)`` have had, before their window too; None without a bias.

        The loaders and `recommend` hand over the events before the window; an interaction without
        them, such as RecBole's own, has had what its sequences hold.

        Args:
            layout: how the batch's sequences are packed. items: ``(n,)`` items of their steps.
            rows: ``(k,)`` ascending, the items that matter, if ``items`` are numbers of these.
        """
        if self.repeat is None:
            return None
        if EARLIER not in interaction:
            return History.until(read, layout, items, self.n_items if rows is None else len(rows))
        (earlier,), count = interaction[EARLIER], interaction[N_EARLIER]
        sequence = torch.arange(len(count), device=count.device)
        sequence = torch.repeat_interleave(sequence, count, output_size=len(earlier))
        if rows is None:
            return History.until(read, layout, items, self.n_items, (sequence, earlier))
        number = torch.searchsorted(rows, earlier).clamp(max=len(rows) - 1)
        known = rows[number] == earlier
        return History.until(read, layout, items, len(rows), (sequence[known], number[known]))

    def bonus(self, had: History | None, first: int = 0) -> Bonus | None:
        """The bias of what was had, in the columns of the softmax from ``first`` on."""
        bias = self.history_bias()
        if had is None or bias is None:
            return None
        row, item = had.pairs
        return row, self.column[item] - first, bias

    def _history_of(self, interaction: Interaction) -> History | None:
        """What each row of an evaluation has had: all events before its target."""
        layout = Layout(interaction[self.ITEM_SEQ_LEN])
        items = interaction[self.ITEM_SEQ][layout.row, layout.step]
        return self.history(interaction, layout, items, layout.start + layout.length - 1)
