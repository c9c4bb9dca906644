"""Datasets of RecBole's own models: RecBole's classes and augmentation on the same split."""

import importlib

from recbole.data.dataset import Dataset, SequentialDataset
from recbole.utils import ModelType

from recbole_tema.data.cross_domain import CrossDomainMixin
from recbole_tema.data.dataset import rows_of, split_indices
from recbole_tema.errors import ConfigError

RECBOLE_CLASS = {
    ModelType.GENERAL: "Dataset",
    ModelType.TRADITIONAL: "Dataset",
    ModelType.CONTEXT: "Dataset",
    ModelType.SEQUENTIAL: "SequentialDataset",
    ModelType.KNOWLEDGE: "KnowledgeBasedDataset",
}


class _FlatBaseline(CrossDomainMixin):
    """General models: plain events, split at the same targets as the sequential ones."""

    def build(self):
        self._change_feat_format()
        parts = [self.copy(rows_of(self.inter_feat, index)) for index in split_indices(self)]
        self._drop_unused_col()
        return parts


class _SequentialBaseline(CrossDomainMixin):
    """Sequential models: every prefix is a padded row, as RecBole trains them."""

    def build(self):
        plain = None
        if self.train_mask is not None:
            plain = self.copy(self.inter_feat)  # still a frame: the thinned events are cut here
        train, valid, test = super().build()
        if plain is not None:
            Dataset._change_feat_format(plain)
            plain.inter_feat = rows_of(plain.inter_feat, split_indices(self)[0])
            plain.data_augmentation()
            train = self.copy(plain.inter_feat)
        return [train, valid, test]


def baseline_class(model_name, model_type):
    """The RecBole dataset class of a model, with domains.

    Raises:
        ConfigError: the model's type cannot be ranked over a catalogue here.
    """
    module = importlib.import_module("recbole.data.dataset")
    base = getattr(module, f"{model_name}Dataset", None)
    if base is None:
        if model_type not in RECBOLE_CLASS:
            raise ConfigError(
                f"model '{model_name}' is of type {model_type.name}; this package runs RecBole's "
                f"sequential, general, context-aware and knowledge-aware models"
            )
        base = getattr(module, RECBOLE_CLASS[model_type])
    mixin = _SequentialBaseline if issubclass(base, SequentialDataset) else _FlatBaseline
    return type(f"CrossDomain{base.__name__}", (mixin, base), {"__doc__": base.__doc__})
