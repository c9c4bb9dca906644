"""TEMA: tag-enriched multi-attention for cross-domain sequences (TEMA-LLM, arXiv 2510.09224)."""

from collections.abc import Callable
from functools import partial
from logging import getLogger
from typing import TYPE_CHECKING, Any, cast

import torch
from recbole.data.interaction import Interaction
from torch import nn
from torch.nn import functional as F

from recbole_tema.console import SCREEN
from recbole_tema.errors import ConfigError
from recbole_tema.model.abstract_recommender import CrossDomainRecommender
from recbole_tema.model.crossing import crossings
from recbole_tema.model.dropout import Dropout
from recbole_tema.model.encoder import init_as_recbole
from recbole_tema.model.fusion import (
    Fusion,
    InParts,
    Projection,
    TagTable,
    initial_vectors,
    normalised_parts,
    tag_matrix,
    tag_weights,
    whiten_parts,
)
from recbole_tema.model.packing import Layout
from recbole_tema.model.preference import AlignedPreference, DomainToken, PreferenceAttention
from recbole_tema.model.sampled_softmax import Proposal
from recbole_tema.model.scored_items import ScoredItems

if TYPE_CHECKING:
    from recbole_tema.config.tema_config import TemaConfig
    from recbole_tema.data.cross_domain import CrossDomainMixin


class TEMA(CrossDomainRecommender):
    """Stages 3 and 4 of TEMA-LLM: item construction and tag-enriched multi-attention.

    Item: fuse(learnable id, projected tag vector ``sum_t w_it e_t``, learned vectors of the tags
    weighted alike (``tag_table``), projected text vector, projected image vector, mean of the
    learned vectors of each of ``selected_features``).
    Sequence: causal self-attention over the merged sequence (inter-domain) and over each domain's
    subsequence (intra-domain); a second attention level joins these states into one preference
    for each domain of candidates. The score is cosine(preference, item) / temperature, or the
    plain dot product (``similarity``).

    With ``fusion: late`` the parts of an item stay apart: each has states of its own, of one
    encoder for all parts or of its own (``late_encoder``), and the score is ``sum_p w_p
    cosine(preference_p, item_p) / temperature`` with learned weights that sum to 1. Vectors and
    states are those of the parts side by side, so all of the above holds with ``P H`` for ``H``.

    A learned number is added to the scores of the items that the user has had (``repeat_bias``).

    Loss: cross-entropy of the next item over the catalogue, plus ``intra_weight`` times the
    cross-entropy of the intra-domain state of the target's domain over that domain's items.
    With ``cross_attention_weight`` the attention that goes between domains is a third term.
    Above ``full_softmax_items`` items the softmax is sampled, with log-q correction; then a step
    makes and trains the vectors of the items that it reads alone.
    """

    def __init__(self, config: "TemaConfig", dataset: "CrossDomainMixin") -> None:
        super().__init__(config, dataset)
        self.fusion_kind = config["fusion"]
        self.similarity = config["similarity"]
        self.intra_weight = config["intra_weight"]
        self.proposal = self._proposal(config)
        self.negatives_from = "all" if self.proposal is None else config["sampled_softmax_domains"]
        self.use_intra, self.use_inter = config["use_intra"], config["use_inter"]
        self.cross_attention_weight = config["cross_attention_weight"] if self.use_inter else 0
        terms = {
            "next-item": True,
            "intra-domain": self.use_intra and self.use_inter and self.intra_weight,
            "cross-attention": self.cross_attention_weight,
        }
        self.loss_names = tuple(name for name, there in terms.items() if there)
        self._item_parts(config, dataset)
        self._threads(config)
        self._initialise(config)
        # After the start of the ids, whose components are those of the vectors as they came.
        frozen = [name for name, part in self.projections.items() if isinstance(part, Projection)]
        whiten_parts(self, frozen, config["feature_whitening"])

    # ---------------------------------------------------------------- construction

    def _proposal(self, config: "TemaConfig") -> Proposal | None:
        """Where negatives come from; None where the softmax is exact."""
        keys = {
            "sampled_softmax_items": config["sampled_softmax_items"],
            "sampled_softmax_power": config["sampled_softmax_power"],
            "sampled_softmax_domains": config["sampled_softmax_domains"],
        }
        if self.n_items > config["full_softmax_items"]:
            popularity = self.popularity[self.by_domain].numpy()
            return Proposal(popularity, self.domain_sizes, *keys.values())
        why = f"of {self.n_items} items the softmax is exact, up to full_softmax_items"
        idle = [f"{key} ({config.sources[key]}; {why})" for key in keys if key in config.sources]
        if idle:
            getLogger().warning(f"keys without effect on TEMA: {', '.join(idle)}")
        return None

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
        self.n_parts = n_parts if self.fusion_kind == "late" else 1
        self.part_weights = nn.Parameter(torch.zeros(n_parts)) if self.n_parts > 1 else None
        self.item_dropout = Dropout(config["item_dropout_prob"])

    def _tag_part(self, config: "TemaConfig", dataset: "CrossDomainMixin") -> None:
        """The frozen tag vector of each item; learned ones of tags beside it or instead."""
        alone = dataset.tags is None or dataset.feature("tag_id") is None
        if config["tag_table"] and alone:
            getLogger().warning(
                "keys without effect on TEMA: tag_table (no frozen vectors of tags, NAME.tag)"
            )
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
        both = self.use_intra and self.use_inter
        # All threads read one encoder, each by an adapter of its own, the merged one by the first.
        rank = config["domain_adapter"] if both else 0
        self.shares_encoder = rank > 0
        if self.use_inter:
            streams = {"n_streams": 1 + self.n_domains, "rank": rank}
            self.inter_encoder = self._in_parts(config, self.encoder, config, **streams)
        if self.use_intra:
            n_encoders = 1 if config["share_intra"] else self.n_domains
            n_encoders = 0 if self.shares_encoder else n_encoders
            self.intra_encoders = nn.ModuleList(
                self._in_parts(config, self.encoder, config) for _ in range(n_encoders)
            )
            width = self.n_parts * self.hidden_size
            self.empty = nn.Parameter(torch.empty(self.n_domains, width))
        hidden, domains = self.hidden_size, self.n_domains
        dropout, eps = config["hidden_dropout_prob"], config["layer_norm_eps"]
        if both and config["preference"] == "aligned":
            inner = config["inner_size"]
            sizes = (hidden, domains, inner, rank, dropout, eps)
            self.preference = self._in_parts(config, AlignedPreference, *sizes)
        elif both:
            sizes = (hidden, domains, config["n_heads"], dropout, eps)
            self.preference = self._in_parts(config, PreferenceAttention, *sizes)
        self.domain_token = None
        if config["domain_token"] and not self.use_intra:
            self.domain_token = self._in_parts(config, DomainToken, hidden, domains, dropout)
        if self.similarity == "cosine":
            self.log_scale = nn.Parameter(torch.tensor(1.0 / config["temperature"]).log())

    def _in_parts(
        self, config: "TemaConfig", make: Callable[..., nn.Module], *sizes: Any, **kind: Any
    ) -> nn.Module:
        """What ``make`` makes; in late fusion for each part, or once for all of them."""
        if self.n_parts == 1:
            return make(*sizes, **kind)
        n_made = self.n_parts if config["late_encoder"] == "own" else 1
        return InParts([make(*sizes, **kind) for _ in range(n_made)], self.n_parts)

    def _initialise(self, config: "TemaConfig") -> None:
        std = config["initializer_range"]
        self.apply(lambda module: init_as_recbole(module, std))
        for module in self.modules():
            if isinstance(module, DomainToken):
                module.start()
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
            rows: ``(k,)`` the items needed, each once, or None for all.

        Returns:
            ``(k, H)``, ``(n_items, H)`` for all; in late fusion ``P H`` wide.
        """
        everything = slice(None) if rows is None else rows
        parts = []
        if self.item_embedding is not None:
            table = self.item_embedding
            parts.append(table.weight[:] if rows is None else table(rows))
        for name, projection in self.projections.items():
            learned = isinstance(projection, TagTable)
            inputs = (f"{name}_ids", f"{name}_weights") if learned else (name,)
            inputs = [getattr(self, field)[everything] for field in (*inputs, f"{name}_present")]
            parts.append(projection(*inputs, **({"by_row": rows is not None} if learned else {})))
        return self.item_dropout(self.fusion(parts))

    def item_tables(self, rows: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        """(input ``(n_items, H)``, scoring ``(n_items, H)``), or of ``rows (k,)`` ``(k, H)``."""
        vectors = self.item_vectors(rows)
        if self.similarity == "cosine":
            return vectors, normalised_parts(vectors, self.n_parts)
        return vectors, vectors

    def row_tables(self) -> list[nn.Embedding]:
        """Where the softmax is sampled: a step reads the rows of its own items and tags."""
        if self.proposal is None:
            return []
        learned = [part.vectors for part in self.projections.values() if isinstance(part, TagTable)]
        return learned if self.item_embedding is None else [self.item_embedding, *learned]

    # ---------------------------------------------------------------- threads

    def threads(
        self,
        table: torch.Tensor,
        items: torch.Tensor,
        layout: Layout,
        read: torch.Tensor,
        item_domain: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """(inter ``(r, H)`` or None, intra ``(r, D, H)`` or None) at the steps to read.

        Args:
            table: ``(k, H)``. items: ``(n,)`` items of the packed sequences, rows of the table.
            layout: how they are packed. read: ``(r,)`` packed steps, each once.
            item_domain: ``(k,)`` of the table's items, None where they are the catalogue.
        """
        vectors = F.embedding(items, table)
        domain = (self.item_domain if item_domain is None else item_domain)[items]
        inter = None
        if self.cross_attention_weight:
            with crossings(self.inter_encoder, layout, domain) as self._crossings:
                inter = self.inter_encoder(vectors, layout, read)
        elif self.use_inter:
            inter = self.inter_encoder(vectors, layout, read)
        if not self.use_intra:
            return inter, None
        intra = [
            self.domain_thread(
                vectors,
                layout,
                domain,
                d + 1,
                self._intra_encoder(d),
                self.empty[d],
                read,
            )
            for d in range(self.n_domains)
        ]
        return inter, torch.stack(intra, dim=1)

    def _intra_encoder(self, domain: int) -> Callable[..., torch.Tensor]:
        if self.shares_encoder:
            return partial(self.inter_encoder, stream=1 + domain)
        return self.intra_encoders[domain % len(self.intra_encoders)]

    def join(self, inter: torch.Tensor | None, intra: torch.Tensor | None) -> torch.Tensor:
        """``inter (n, H)``, ``intra (n, D, H)`` -> scoring states ``(n, D, H)``, one a domain."""
        if inter is None:
            return self._scaled(cast(torch.Tensor, intra))  # one of the two is there
        if self.domain_token is not None:
            return self._scaled(self.domain_token(inter))
        if intra is None:
            return self._scaled(inter[:, None].expand(-1, self.n_domains, -1))
        return self._scaled(self.preference(inter, intra))

    def _scaled(self, states: torch.Tensor) -> torch.Tensor:
        if self.similarity == "cosine":
            states = normalised_parts(states, self.n_parts) * self.log_scale.exp()
        if self.part_weights is None:
            return states
        return states * self.part_weights.softmax(0).repeat_interleave(self.hidden_size)

    def last_states(
        self, tables: tuple[torch.Tensor, ...], item_seq: torch.Tensor, item_seq_len: torch.Tensor
    ) -> torch.Tensor:
        """``(B, D, H)``: the preference for each domain after the whole sequence."""
        layout = Layout(item_seq_len)
        items = item_seq[layout.row, layout.step]
        last = layout.start + layout.length - 1
        return self.join(*self.threads(tables[0], items, layout, last))

    # ---------------------------------------------------------------- loss

    def calculate_loss(self, interaction: "Interaction") -> torch.Tensor | tuple[torch.Tensor, ...]:
        """The terms of ``loss_names``, those after the first weighted."""
        item_seq, target_seq = interaction[self.ITEM_SEQ], interaction[self.TARGET_SEQ]
        layout = Layout(interaction[self.ITEM_SEQ_LEN])
        items, wanted = (seq[layout.row, layout.step] for seq in (item_seq, target_seq))
        read = wanted.nonzero().squeeze(1)
        scored, rows, items, targets = self._scored_items(items, wanted[read])
        vectors, scoring = self.item_tables(rows)
        inter, intra = self.threads(vectors, items, layout, read, scored.domain)
        had, bias = self.history(interaction, layout, items, read, rows), self.history_bias()
        states = self.join(inter, intra)
        if self.negatives_from == "own":
            own = [states[mine, d] for d, mine in enumerate(scored.of_domain(targets))]
            main = scored.in_domain_cross_entropy(scoring, own, targets, had, bias)
        else:
            alike = intra is None and self.domain_token is None  # one state for all domains
            main = scored.cross_entropy(
                scoring, states[:, 0] if alike else states, targets, had, bias
            )
        terms = [main]
        if inter is not None and intra is not None and self.intra_weight:
            own = [self._scaled(intra[mine, d]) for d, mine in enumerate(scored.of_domain(targets))]
            loss = scored.in_domain_cross_entropy(scoring, own, targets, had, bias)
            terms.append(self.intra_weight * loss)
        if self.cross_attention_weight:
            terms.append(self.cross_attention_weight * torch.stack(self._crossings).mean())
        return main if len(terms) == 1 else tuple(terms)

    def _scored_items(
        self, items: torch.Tensor, targets: torch.Tensor
    ) -> tuple[ScoredItems, torch.Tensor | None, torch.Tensor, torch.Tensor]:
        """What is scored; the ``(k,)`` items of this step, None for the catalogue; and ``items``
        and ``targets`` by their numbers among these."""
        if self.proposal is None:
            everything = self.item_domain, self.column, self.by_domain, self.domain_sizes
            scored = ScoredItems(*everything, smoothing=self.label_smoothing)
            return scored, None, items, targets
        drawn = self.proposal.draw(items.device)
        asked = items, targets, self.by_domain[drawn.column]
        rows, place = torch.unique(torch.cat(asked), return_inverse=True)
        items, targets, negatives = place.split([len(part) for part in asked])
        domain = self.item_domain[rows]
        scored = ScoredItems.drawn(domain, negatives, drawn, self.label_smoothing)
        return scored, rows, items, targets
