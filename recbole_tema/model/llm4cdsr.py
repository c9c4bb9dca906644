"""LLM4CDSR: global LLM thread, local threads per domain, profile alignment (arXiv 2504.18383)."""

from collections.abc import Iterable, Sequence
from logging import getLogger
from typing import TYPE_CHECKING, cast

import torch
from recbole.data.interaction import Interaction
from torch import nn
from torch.nn import functional as F

from recbole_tema.config.rules import LOSSES
from recbole_tema.data.loader import LOCAL_NEGATIVE_SEQ
from recbole_tema.errors import DataError
from recbole_tema.model.abstract_recommender import CrossDomainRecommender
from recbole_tema.model.contrast import soft_contrastive_loss
from recbole_tema.model.encoder import SequenceEncoder, init_as_recbole, init_as_xavier
from recbole_tema.model.fusion import initial_vectors, principal_components
from recbole_tema.model.history import History
from recbole_tema.model.packing import Layout, take_once
from recbole_tema.model.softmax import linear_cross_entropy

if TYPE_CHECKING:
    from recbole_tema.config.tema_config import TemaConfig
    from recbole_tema.data.cross_domain import CrossDomainMixin


class Adapter(nn.Sequential):
    """The paper's adapter: Linear(d, d/2), Linear(d/2, hidden), with nothing in between."""

    def __init__(self, size: int, hidden_size: int) -> None:
        super().__init__(nn.Linear(size, size // 2), nn.Linear(size // 2, hidden_size))

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """``(n, d)`` -> ``(n, H)``."""
        first, second = (layer for layer in self if isinstance(layer, nn.Linear))
        if len(vectors) <= first.in_features:
            return super().forward(vectors)
        # Two linear maps in a row are one: many rows pass one matrix instead of two.
        bias = F.linear(first.bias, second.weight, second.bias)
        return F.linear(vectors, second.weight @ first.weight, bias)


class LLM4CDSR(CrossDomainRecommender):
    """Two views of a user: the merged sequence in LLM space, each domain's sequence in its own.

    An item of domain ``d`` is scored by ``<g_t, A(v_i)> + <l_{d,t}, e_i>``: the global state times
    the adapted LLM vector of the item, plus the state of the domain's own thread times the item's
    own vector. Both states are taken at the user's last event; a domain that the user has not
    visited yet has a learned state. With ``repeat_bias`` a learned number is added
    to the scores of the items that the user has had (not with BCE).

    Loss: BCE with one in-domain negative a step (``loss_type: BCE``), or the cross-entropy over
    the catalogue (``CE``), plus ``alpha`` times the contrastive regularisation between the items
    of the domains, plus ``beta`` times the alignment of the user's profile with the global state.

    The defaults are not the authors' code. ``--preset=llm4cdsr-official`` is, in all of these:

    - loss: BCE; the negative of the global logit comes from the domain of the input, that of the
      local logit, another item, from the domain of the target (``negative_domain: input``);
    - targets: of the last ``MAX_ITEM_LIST_LENGTH`` events alone (``train_rows: latest``), without
      the first event of a domain (``first_of_domain: False``); batches of rows (``batch_unit``);
    - encoder: ``block: sasrec``, inputs times the root of their width (``scale_inputs``), no mask
      of the future (``causal``) or of padding (``padding_mask``), Xavier weights (``weight_init``);
    - local items: PCA of each domain by itself (``local_pca``), unscaled (``local_scale: ~``),
      frozen (``freeze_local``).

    The reasons, and what no key brings back, stand in ``docs/concepts.md``.
    """

    losses = LOSSES["LLM4CDSR"]
    loss_names = ("recommendation", "regularisation", "alignment")
    llm: torch.Tensor

    def __init__(self, config: "TemaConfig", dataset: "CrossDomainMixin") -> None:
        super().__init__(config, dataset)
        self.loss_type = config["loss_type"]
        if self.loss_type == "BCE":  # no negative is the user's own: a bias would only ever grow
            self.repeat = None
        self.alpha, self.beta = config["alpha"], config["beta"]
        self.tau, self.tau_reg = config["tau"], config["tau_reg"]
        if not config["causal"]:
            getLogger().warning(
                "causal is False: a step sees the items it has to predict, as in the official "
                "code; training losses and results are not comparable"
            )
        self._item_vectors(config, dataset)
        self._profiles(config, dataset)
        self.causal = config["causal"]
        kind = {"causal": self.causal, "padding_mask": config["padding_mask"]}
        self.global_encoder = self.encoder(config, **kind)
        self.local_encoders = nn.ModuleList(
            self.encoder(config, **kind) for _ in range(self.n_domains)
        )
        # The scales of the inputs: the roots of the widths of the vectors that they come from.
        scaled = config["scale_inputs"]
        self.global_scale = self.llm.size(1) ** 0.5 if scaled else 1.0
        self.local_scale = self.hidden_size**0.5 if scaled else 1.0
        self.empty = (
            nn.Parameter(torch.zeros(self.n_domains, self.hidden_size))
            if config["first_of_domain"]
            else None
        )
        self.local_items = nn.Embedding(self.n_items, self.hidden_size, padding_idx=0)
        self.local_items.weight.requires_grad_(not config["freeze_local"])
        self._initialise(config)

    def _item_vectors(self, config: "TemaConfig", dataset: "CrossDomainMixin") -> None:
        if not self.frozen_feature(dataset, "llm", "llm_iid", self.n_items, required=True):
            raise DataError(
                f"LLM4CDSR needs LLM item vectors: {config['dataset']}.itemllm (llm_iid, llm_emb) "
                f"is not in {config['data_path']}"
            )
        size = config["llm_size"]
        groups = [self.llm_present]
        if config["local_pca"] == "domain":
            groups = [
                self.llm_present & (self.item_domain == d) for d in range(1, self.n_domains + 1)
            ]
        starts = [
            initial_vectors(self.llm, group, self.hidden_size, config["local_scale"])
            for group in groups
        ]
        self.local_start = torch.stack(starts).sum(0)
        if size and self.llm.size(1) > size:
            self.llm = principal_components(self.llm, self.llm_present, size)
        self.adapter = Adapter(self.llm.size(1), self.hidden_size)
        self.missing = nn.Parameter(torch.zeros(self.hidden_size))

    def _profiles(self, config: "TemaConfig", dataset: "CrossDomainMixin") -> None:
        self.has_profiles = self.beta > 0 and self.frozen_feature(
            dataset, "profile", "profile_uid", dataset.user_num
        )
        if self.has_profiles:
            self.profile_adapter = Adapter(self.profile.size(1), self.hidden_size)

    def _initialise(self, config: "TemaConfig") -> None:
        std = config["initializer_range"]
        if config["weight_init"] == "xavier":
            self.apply(init_as_xavier)
        else:
            self.apply(lambda module: init_as_recbole(module, std))
        adapters = [self.adapter, *([self.profile_adapter] if self.has_profiles else [])]
        for layer in (layer for adapter in adapters for layer in adapter.modules()):
            if isinstance(layer, nn.Linear):
                nn.init.xavier_normal_(layer.weight)
        if self.empty is not None and config["weight_init"] == "normal":
            nn.init.normal_(self.empty, std=std)
        # An item without an LLM vector keeps its random start: zeros would score 0 for everybody.
        present = self.llm_present
        self.local_items.weight.data[present] = self.local_start[present]
        del self.local_start

    # ---------------------------------------------------------------- threads

    def adapted_items(self, rows: torch.Tensor | None = None) -> torch.Tensor:
        """``(n_items, H)`` adapted LLM vectors; given ``rows (k,)``, all other rows are 0."""
        llm, present = self.llm, self.llm_present
        if rows is not None:
            llm, present = llm[rows], present[rows]
        adapted = torch.where(present[:, None], self.adapter(llm), self.missing)
        if rows is None:
            return adapted
        return adapted.new_zeros(self.n_items, self.hidden_size).index_copy(0, rows, adapted)

    def item_tables(self) -> tuple[torch.Tensor, ...]:
        """(global ``(n_items, H)``, local ``(n_items, H)``, scoring ``(n_items, 2H)``)."""
        adapted, local = self.adapted_items(), self.local_items.weight
        return adapted, local, torch.cat([adapted, local], dim=1)

    def _training_tables(self, interaction: Interaction) -> tuple[torch.Tensor, ...]:
        """The tables of a step; the softmax needs every item, BCE those of the batch only."""
        if self.loss_type == "CE":
            return self.item_tables()
        fields = (self.ITEM_SEQ, self.TARGET_SEQ, self.NEGATIVE_SEQ)  # of the global thread
        rows = torch.unique(torch.cat([interaction[field].flatten() for field in fields]))
        return self.adapted_items(rows), self.local_items.weight

    def threads(
        self,
        tables: tuple[torch.Tensor, ...],
        items: torch.Tensor,
        layout: Layout,
        read: torch.Tensor,
        domain: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(global ``(r, H)``, local ``(r, D, H)``) states at the steps to read.

        Args:
            tables: (global, local, ...) item tables ``(n_items, H)``.
            items: ``(n,)`` items of the packed sequences. layout: how they are packed.
            read: ``(r,)`` packed steps, each once.
            domain: ``(n,)`` the local thread that each step belongs to, 0 for none; None: that of
                its item's domain.
        """
        inputs = F.embedding(items, tables[0]) * self.global_scale
        global_states = self.global_encoder(inputs, layout, read)
        inputs = F.embedding(items, tables[1]) * self.local_scale
        domain = self.item_domain[items] if domain is None else domain
        local = []
        for d, encoder in enumerate(cast("Iterable[SequenceEncoder]", self.local_encoders)):
            empty = encoder.of_nothing() if self.empty is None else self.empty[d]
            local.append(self.domain_thread(inputs, layout, domain, d + 1, encoder, empty, read))
        return global_states, torch.stack(local, dim=1)

    def _in_threads(
        self, layout: Layout, items: torch.Tensor, wanted: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The targets that count, and the local thread of each step as `threads` takes it.

        Args:
            items, wanted: ``(n,)`` packed items, and targets, 0 for none.
        """
        domain, of_target = self.item_domain[items], self.item_domain[wanted]
        if self.causal and self.empty is not None:
            return wanted, domain
        had = F.one_hot(domain, self.n_domains + 1).cumsum(0)
        had = torch.cat([torch.zeros_like(had[:1]), had])
        before = had[layout.start][layout.row]
        ends = layout.start + layout.length
        if self.empty is None:  # the domain's first event: its thread has nothing to tell it by
            seen = (had[1:] - before).gather(1, of_target[:, None]).squeeze(1) > 0
            wanted = torch.where(seen, wanted, 0)
        if not self.causal:
            # Who sees the future must not see more of a domain than what comes before its last
            # target: as in the official code, whose threads each leave out their own last event.
            left = (had[ends][layout.row] - had[1:]).gather(1, domain[:, None]).squeeze(1)
            final = of_target[ends - 1][layout.row]
            domain = torch.where((left > 0) | (final == domain), domain, 0)
        return wanted, domain

    def last_states(
        self, tables: tuple[torch.Tensor, ...], item_seq: torch.Tensor, item_seq_len: torch.Tensor
    ) -> torch.Tensor:
        """``(B, D, 2H)``: the global state beside each domain's local state."""
        layout = Layout(item_seq_len)
        last = layout.start + layout.length - 1
        shared, local = self.threads(tables, item_seq[layout.row, layout.step], layout, last)
        return torch.cat([shared[:, None].expand_as(local), local], dim=-1)

    # ---------------------------------------------------------------- losses

    def calculate_loss(
        self, interaction: "Interaction"
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Recommendation loss, contrastive regularisation, profile alignment: three terms."""
        item_seq, length = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        target_seq = interaction[self.TARGET_SEQ]
        tables = self._training_tables(interaction)
        layout = Layout(length)
        items = item_seq[layout.row, layout.step]
        wanted, domain = self._in_threads(layout, items, target_seq[layout.row, layout.step])
        read = wanted.nonzero().squeeze(1)
        targets = wanted[read]
        # The profile is aligned with the state after the whole row, a target or not.
        last = layout.start + length - 1
        steps, place = torch.unique(torch.cat([read, last]), return_inverse=True)
        shared, local = self.threads(tables, items, layout, steps, domain)
        final = take_once(shared, place[len(read) :])
        own = place[: len(read)]
        shared, local = take_once(shared, own), take_once(local, own)
        if self.loss_type == "CE":
            had = self.history(interaction, layout, items, read)
            loss = self._cross_entropy(tables, shared, local, targets, had)
        else:
            both = LOCAL_NEGATIVE_SEQ if LOCAL_NEGATIVE_SEQ in interaction else self.NEGATIVE_SEQ
            drawn = [
                interaction[field][layout.row, layout.step][read]
                for field in (self.NEGATIVE_SEQ, both)
            ]
            loss = self._binary_cross_entropy(tables, shared, local, targets, drawn)
        regular = self.alpha * self._regularisation(tables, item_seq)
        profile = self.beta * self._alignment(interaction[self.USER_ID], final)
        return loss, regular, profile

    def _cross_entropy(
        self,
        tables: tuple[torch.Tensor, ...],
        shared: torch.Tensor,
        local: torch.Tensor,
        targets: torch.Tensor,
        had: History | None,
    ) -> torch.Tensor:
        scoring = tables[-1][self.by_domain].split(self.domain_sizes)
        blocks = [
            (torch.cat([shared, local[:, d]], dim=1), scoring[d]) for d in range(self.n_domains)
        ]
        weight = shared.new_full((len(targets),), 1.0 / max(1, len(targets)))
        return linear_cross_entropy(
            blocks, self.column[targets], weight, self.bonus(had), self.label_smoothing
        )

    def _binary_cross_entropy(
        self,
        tables: tuple[torch.Tensor, ...],
        shared: torch.Tensor,
        local: torch.Tensor,
        targets: torch.Tensor,
        negatives: Sequence[torch.Tensor],
    ) -> torch.Tensor:
        """``negatives``: ``(r,)`` items of the global logit, and of the local one."""
        adapted, own = tables[:2]
        domain = self.item_domain[targets]
        local = local[torch.arange(len(domain), device=domain.device), domain - 1]

        def logit(items: torch.Tensor, local_items: torch.Tensor) -> torch.Tensor:
            return (shared * adapted[items]).sum(-1) + (local * own[local_items]).sum(-1)

        per_step = F.softplus(-logit(targets, targets)) + F.softplus(logit(*negatives))
        # The official loss adds the domains' means: a small domain counts as much as a large one.
        means = (
            per_step[domain == d].mean()
            for d in range(1, self.n_domains + 1)
            if bool((domain == d).any())
        )
        # Of no target at all it is 0 too, with gradients of 0.
        return sum(means, start=per_step[:0].sum())

    def _regularisation(
        self, tables: tuple[torch.Tensor, ...], item_seq: torch.Tensor
    ) -> torch.Tensor:
        """One random item of each domain of each sequence, every pair of domains contrasted."""
        if self.alpha == 0:
            return item_seq.new_zeros((), dtype=torch.float)
        noise = torch.rand(item_seq.shape, device=item_seq.device)
        domain = self.item_domain[item_seq]
        picks = []
        for d in range(1, self.n_domains + 1):
            value, step = torch.where(domain == d, noise, -1.0).max(1)
            picks.append((value >= 0, item_seq.gather(1, step[:, None]).squeeze(1)))
        losses = []
        for a in range(self.n_domains):
            for b in range(a + 1, self.n_domains):
                both = picks[a][0] & picks[b][0]
                x, y = tables[0][picks[a][1][both]], tables[0][picks[b][1][both]]
                losses.append(soft_contrastive_loss(x, y, self.tau_reg))
        return torch.stack(losses).mean()

    def _alignment(self, users: torch.Tensor, final_states: torch.Tensor) -> torch.Tensor:
        if not self.has_profiles:
            return final_states.new_zeros(())
        known = self.profile_present[users]
        profiles = self.profile_adapter(self.profile[users[known]])
        return soft_contrastive_loss(profiles, final_states[known], self.tau)
