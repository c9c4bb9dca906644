"""TEMA: tag-enriched multi-attention for cross-domain sequences (TEMA-LLM, arXiv 2510.09224)."""

from collections.abc import Sequence
from logging import getLogger
from typing import TYPE_CHECKING, cast

import torch
from recbole.data.interaction import Interaction
from torch import nn
from torch.nn import functional as F

from recbole_tema.console import SCREEN
from recbole_tema.errors import ConfigError
from recbole_tema.model.abstract_recommender import CrossDomainRecommender
from recbole_tema.model.dropout import Dropout
from recbole_tema.model.encoder import init_as_recbole
from recbole_tema.model.fusion import (
    Fusion,
    Projection,
    TagTable,
    initial_vectors,
    tag_matrix,
    tag_weights,
    whiten_parts,
)
from recbole_tema.model.history import History
from recbole_tema.model.packing import Layout
from recbole_tema.model.preference import PreferenceAttention
from recbole_tema.model.softmax import Bonus, linear_cross_entropy, sampled_cross_entropy

if TYPE_CHECKING:
    from recbole_tema.config.tema_config import TemaConfig
    from recbole_tema.data.cross_domain import CrossDomainMixin

REPEAT_UNIT = 50.0


class TEMA(CrossDomainRecommender):
    """Stages 3 and 4 of TEMA-LLM: item construction and tag-enriched multi-attention.

    Item: fuse(learnable id, projected tag vector ``sum_t w_it e_t``, learned vectors of the tags
    weighted alike (``tag_table``), projected text vector, projected image vector, mean of the
    learned vectors of each of ``selected_features``).
    Sequence: causal self-attention over the merged sequence (inter-domain) and over each domain's
    subsequence (intra-domain); a second attention level joins these states into one preference
    for each domain of candidates. The score is cosine(preference, item) / temperature, or the
    plain dot product (``similarity``).

    A learned number is added to the scores of the items that the history has, its last
    ``MAX_ITEM_LIST_LENGTH`` events (``repeat_bias``).

    Loss: cross-entropy of the next item over the catalogue, plus ``intra_weight`` times the
    cross-entropy of the intra-domain state of the target's domain over that domain's items.
    Above ``full_softmax_items`` items the softmax is sampled, with log-q correction.
    """

    loss_names = ("next-item", "intra-domain")

    def __init__(self, config: "TemaConfig", dataset: "CrossDomainMixin") -> None:
        super().__init__(config, dataset)
        self.fusion_kind = config["fusion"]
        self.similarity = config["similarity"]
        self.intra_weight = config["intra_weight"]
        self.full_softmax_items = config["full_softmax_items"]
        self.sampled_items = config["sampled_softmax_items"]
        if "sampled_softmax_items" in config.sources and self.n_items <= self.full_softmax_items:
            getLogger().warning(
                f"keys without effect on TEMA: sampled_softmax_items "
                f"({config.sources['sampled_softmax_items']}; of {self.n_items} items the softmax "
                f"is exact, up to full_softmax_items)"
            )
        self.use_intra, self.use_inter = config["use_intra"], config["use_inter"]
        # In units of REPEAT_UNIT: Adam's small steps cross them within an epoch.
        self.repeat = nn.Parameter(torch.zeros(())) if config["repeat_bias"] else None
        self._item_parts(config, dataset)
        self._threads(config)
        self._initialise(config)
        # After the start of the ids, whose components are those of the vectors as they came.
        frozen = [name for name, part in self.projections.items() if isinstance(part, Projection)]
        whiten_parts(self, frozen, config["feature_whitening"])

    # ---------------------------------------------------------------- construction

    def _item_parts(self, config: "TemaConfig", dataset: "CrossDomainMixin") -> None:
        self.use_id = config["use_id"]
        self.item_embedding = (
            nn.Embedding(self.n_items, self.hidden_size, padding_idx=0) if self.use_id else None
        )
        self.projections = nn.ModuleDict()
        if config["use_tags"]:
            self._tag_part(config, dataset)
        for name, key, id_field in (
            ("text", "use_text", "text_iid"),
            ("image", "use_image", "image_iid"),
        ):
            if config[key] and self.frozen_feature(dataset, name, id_field, self.n_items):
                size = getattr(self, name).size(1)
                self.projections[name] = Projection(size, self.hidden_size)
        for number, field in enumerate(config["selected_features"] or ()):
            self._field_part(f"field{number}", field, dataset)
        n_parts = len(self.projections) + self.use_id
        if not n_parts:
            raise ConfigError(
                "nothing is left to make items of: use_id is False, selected_features names no "
                "field and the dataset has none of the features that are switched on (use_tags, "
                "use_text, use_image)"
            )
        self.fusion = Fusion(self.fusion_kind, n_parts, self.hidden_size)
        self.item_dropout = Dropout(config["item_dropout_prob"])

    def _tag_part(self, config: "TemaConfig", dataset: "CrossDomainMixin") -> None:
        """The frozen tag vector of each item; learned ones of tags beside it or instead."""
        if dataset.tags is None:
            SCREEN.info("TEMA: no tags in this dataset, trained without")
            return
        tag_ids, given = (part[: self.n_items] for part in dataset.tags)
        vectors, known = dataset.feature("tag_id") or (None, None)
        weights = tag_weights(tag_ids, given, config["tag_weighting"], known)
        present = weights.sum(1) > 0
        if known is not None:
            lacking = int((~known[torch.unique(tag_ids)][1:]).sum())
            if lacking:
                SCREEN.info(f"TEMA: {lacking} tags have no vector (NAME.tag), left out")
        untagged = int((~present[1:]).sum())
        if untagged:
            SCREEN.info(f"TEMA: {untagged} of {self.n_items - 1} items have no tag to use")
        if vectors is None:
            SCREEN.info("TEMA: the tags have no vectors (NAME.tag), their vectors are trained")
            self._learned_part("tag", tag_ids, weights, int(tag_ids.max()) + 1)
            return
        self.register_buffer("tag_present", present, persistent=False)
        self.register_buffer("tag", tag_matrix(tag_ids, weights, vectors), persistent=False)
        self.projections["tag"] = Projection(vectors.size(1), self.hidden_size)
        if config["tag_table"]:
            self._learned_part("tag_table", tag_ids, weights, int(tag_ids.max()) + 1)

    def _field_part(self, name: str, field: str, dataset: "CrossDomainMixin") -> None:
        """Learned vectors for the values of an item field, such as the words of its title."""
        values = dataset.item_feat[field][: self.n_items].cpu()
        values = values.view(self.n_items, -1)
        self._learned_part(name, values, tag_weights(values, None, "binary"), dataset.num(field))

    def _learned_part(
        self, name: str, ids: torch.Tensor, weights: torch.Tensor, n_values: int
    ) -> None:
        self.register_buffer(f"{name}_ids", ids, persistent=False)
        self.register_buffer(f"{name}_weights", weights, persistent=False)
        self.register_buffer(f"{name}_present", weights.sum(1) > 0, persistent=False)
        self.projections[name] = TagTable(n_values, self.hidden_size)

    def _threads(self, config: "TemaConfig") -> None:
        if self.use_inter:
            self.inter_encoder = self.encoder(config)
        if self.use_intra:
            n_encoders = 1 if config["share_intra"] else self.n_domains
            self.intra_encoders = nn.ModuleList(self.encoder(config) for _ in range(n_encoders))
            self.empty = nn.Parameter(torch.empty(self.n_domains, self.hidden_size))
        if self.use_intra and self.use_inter:
            self.preference = PreferenceAttention(
                self.hidden_size,
                self.n_domains,
                config["n_heads"],
                config["hidden_dropout_prob"],
                config["layer_norm_eps"],
            )
        if self.similarity == "cosine":
            self.log_scale = nn.Parameter(torch.tensor(1.0 / config["temperature"]).log())

    def _initialise(self, config: "TemaConfig") -> None:
        std = config["initializer_range"]
        self.apply(lambda module: init_as_recbole(module, std))
        if self.use_intra:
            nn.init.normal_(self.empty, std=std)
        if self.item_embedding is not None and config["id_init"] == "text_pca":
            if "text" in self.projections:
                start = initial_vectors(
                    self.text, self.text_present, self.hidden_size, config["id_scale"]
                )
                present = self.text_present & (start.abs().sum(1) > 0)
                self.item_embedding.weight.data[present] = start[present]
            else:
                SCREEN.info("TEMA: id_init is text_pca, but no text is used: drawn at random")

    # ---------------------------------------------------------------- items

    def item_vectors(self, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Fused item vectors.

        Args:
            rows: ``(k,)`` the only items needed, or None for all.

        Returns:
            ``(n_items, H)``; rows that were not asked for are 0.
        """
        everything = slice(None) if rows is None else rows
        parts = []
        if self.item_embedding is not None:
            parts.append(self.item_embedding.weight[everything])
        for name, projection in self.projections.items():
            learned = isinstance(projection, TagTable)
            inputs = (f"{name}_ids", f"{name}_weights") if learned else (name,)
            inputs = [getattr(self, field)[everything] for field in (*inputs, f"{name}_present")]
            parts.append(projection(*inputs))
        fused = self.item_dropout(self.fusion(parts))
        if rows is None:
            return fused
        return fused.new_zeros(self.n_items, self.hidden_size).index_copy(0, rows, fused)

    def item_tables(self, rows: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        """(input ``(n_items, H)``, scoring ``(n_items, H)``)."""
        vectors = self.item_vectors(rows)
        scoring = F.normalize(vectors, dim=-1) if self.similarity == "cosine" else vectors
        return vectors, scoring

    # ---------------------------------------------------------------- threads

    def threads(
        self, table: torch.Tensor, items: torch.Tensor, layout: Layout, read: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """(inter ``(r, H)`` or None, intra ``(r, D, H)`` or None) at the steps to read.

        Args:
            table: ``(n_items, H)``. items: ``(n,)`` items of the packed sequences.
            layout: how they are packed. read: ``(r,)`` packed steps, each once.
        """
        vectors = F.embedding(items, table)
        inter = self.inter_encoder(vectors, layout, read) if self.use_inter else None
        if not self.use_intra:
            return inter, None
        domain = self.item_domain[items]
        intra = [
            self.domain_thread(
                vectors,
                layout,
                domain,
                d + 1,
                self.intra_encoders[d % len(self.intra_encoders)],
                self.empty[d],
                read,
            )
            for d in range(self.n_domains)
        ]
        return inter, torch.stack(intra, dim=1)

    def join(self, inter: torch.Tensor | None, intra: torch.Tensor | None) -> torch.Tensor:
        """``inter (n, H)``, ``intra (n, D, H)`` -> scoring states ``(n, D, H)``, one a domain."""
        if inter is None:
            return self._scaled(cast(torch.Tensor, intra))  # one of the two is there
        if intra is None:
            return self._scaled(inter[:, None].expand(-1, self.n_domains, -1))
        return self._scaled(self.preference(inter, intra))

    def _scaled(self, states: torch.Tensor) -> torch.Tensor:
        if self.similarity == "cosine":
            return F.normalize(states, dim=-1) * self.log_scale.exp()
        return states

    def last_states(
        self, tables: tuple[torch.Tensor, ...], item_seq: torch.Tensor, item_seq_len: torch.Tensor
    ) -> torch.Tensor:
        """``(B, D, H)``: the preference for each domain after the whole sequence."""
        layout = Layout(item_seq_len)
        items = item_seq[layout.row, layout.step]
        last = layout.start + layout.length - 1
        return self.join(*self.threads(tables[0], items, layout, last))

    def history_bias(self) -> torch.Tensor | None:
        """What is added to the score of an item that the history has; None for nothing."""
        if self.repeat is None:
            return None
        # The unit makes Adam's steps longer and leaves the gradient, which may be clipped, alone.
        return self.repeat + (REPEAT_UNIT - 1) * self.repeat.detach()

    # ---------------------------------------------------------------- loss

    def calculate_loss(
        self, interaction: "Interaction"
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Inter-domain term, and the weighted intra-domain term where there is one."""
        item_seq, length = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        target_seq = interaction[self.TARGET_SEQ]
        negatives = self._draw_negatives() if self.n_items > self.full_softmax_items else None
        rows = None
        if negatives is not None:
            rows = torch.unique(torch.cat([item_seq.flatten(), target_seq.flatten(), negatives]))
        tables = self.item_tables(rows)
        layout = Layout(length)
        wanted = target_seq[layout.row, layout.step]
        read = wanted.nonzero().squeeze(1)
        targets = wanted[read]
        items = item_seq[layout.row, layout.step]
        inter, intra = self.threads(tables[0], items, layout, read)
        had = None
        if self.repeat is not None:
            had = History.until(read, layout, items, self.n_items)
        states = self.join(inter, intra)
        main = self._next_item_loss(tables[1], states, targets, had, negatives)
        if inter is None or intra is None or not self.intra_weight:
            return main
        intra_loss = self._intra_loss(tables[1], intra, targets, had, negatives)
        return main, self.intra_weight * intra_loss

    def _next_item_loss(
        self,
        scoring: torch.Tensor,
        states: torch.Tensor,
        targets: torch.Tensor,
        had: History | None,
        negatives: torch.Tensor | None,
    ) -> torch.Tensor:
        weight = scoring.new_full((len(targets),), 1.0 / max(1, len(targets)))
        if negatives is None:
            tables = scoring[self.by_domain].split(self.domain_sizes)
            blocks = [(states[:, d], table) for d, table in enumerate(tables)]
            if self.use_inter and not self.use_intra:
                blocks = [(states[:, 0], scoring[self.by_domain])]
            return linear_cross_entropy(blocks, self.column[targets], weight, self._bonus(had))
        return self._sampled_loss(scoring, states, targets, had, negatives, weight)

    def _bonus(self, had: History | None, first: int = 0) -> Bonus | None:
        """The bias of what was had, in the columns from ``first`` on."""
        bias = self.history_bias()
        if had is None or bias is None:
            return None
        return had.row, self.column[had.item] - first, bias

    def _intra_loss(
        self,
        scoring: torch.Tensor,
        intra: torch.Tensor,
        targets: torch.Tensor,
        had: History | None,
        negatives: torch.Tensor | None,
    ) -> torch.Tensor:
        """Each target by its own domain's thread, among that domain's items."""
        domain = self.item_domain[targets] - 1
        tables = scoring[self.by_domain].split(self.domain_sizes) if negatives is None else ()
        first, loss = 0, scoring.new_zeros(())
        for d, size in enumerate(self.domain_sizes):
            mine = domain == d
            states = self._scaled(intra[mine, d])
            weight = states.new_full((len(states),), 1.0 / max(1, len(targets)))
            own = None if had is None else had.only(mine, self.item_domain == d + 1)
            if negatives is None:
                column = self.column[targets[mine]] - first
                bonus = self._bonus(own, first)
                term = linear_cross_entropy([(states, tables[d])], column, weight, bonus)
                first += size
            else:
                drawn = negatives[self.item_domain[negatives] == d + 1]
                term = self._sampled_term(
                    scoring, states, [states], targets[mine], own, [drawn], weight
                )
            loss = loss + term
        return loss

    def _proposal(self) -> torch.Tensor:
        """``(n_items,)`` probability of drawing each item: training popularity, smoothed."""
        mass = (self.popularity + 1.0) ** 0.75
        mass[0] = 0.0
        return mass / mass.sum()

    def _draw_negatives(self) -> torch.Tensor:
        return torch.multinomial(self._proposal(), self.sampled_items, replacement=True)

    def _sampled_loss(
        self,
        scoring: torch.Tensor,
        states: torch.Tensor,
        targets: torch.Tensor,
        had: History | None,
        negatives: torch.Tensor,
        weight: torch.Tensor,
    ) -> torch.Tensor:
        rows = torch.arange(len(targets), device=targets.device)
        own = states[rows, self.item_domain[targets] - 1]
        drawn = [negatives[self.item_domain[negatives] == d + 1] for d in range(self.n_domains)]
        return self._sampled_term(scoring, own, states.unbind(1), targets, had, drawn, weight)

    def _sampled_term(
        self,
        scoring: torch.Tensor,
        own: torch.Tensor,
        states: Sequence[torch.Tensor],
        targets: torch.Tensor,
        had: History | None,
        drawn: list[torch.Tensor],
        weight: torch.Tensor,
    ) -> torch.Tensor:
        """Sampled cross-entropy of targets scored by ``own (n, H)``.

        ``drawn`` lists negatives of some domains, ``states`` the ``(n, H)`` that score each list.
        The draws are from the whole catalogue, so an item's expected count is the same whether one
        domain's items are the candidates or all.
        """
        target_logit = (own * scoring[targets]).sum(-1)
        logits = torch.cat(
            [state @ scoring[part].T for state, part in zip(states, drawn, strict=True)], dim=1
        )
        negatives = torch.cat(drawn)
        expected = (self._proposal()[negatives] * self.sampled_items).to(logits.dtype)
        is_target = negatives == targets[:, None]
        bias = self.history_bias()
        if had is not None and bias is not None:
            target_logit = target_logit + bias * had.has(targets)
            logits = logits + bias * had.has_each(negatives, len(targets))
        return sampled_cross_entropy(target_logit, logits, expected, is_target, weight)
