"""The trainer of a model: RecBole's, with this package's layer on top."""

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

import recbole_tema.compat  # noqa: F401  before RecBole

# isort: split
from recbole.trainer import Trainer
from recbole.utils import get_trainer

from recbole_tema.errors import ConfigError
from recbole_tema.trainer.epochs import CountedLoop
from recbole_tema.trainer.phased import PhasedTrainer
from recbole_tema.trainer.trainer import TrainerLayer

if TYPE_CHECKING:
    from recbole.model.abstract_recommender import AbstractRecommender

    from recbole_tema.config.tema_config import TemaConfig
    from recbole_tema.data.cross_domain import CrossDomainMixin


def build_trainer(
    config: "TemaConfig", model: "AbstractRecommender", dataset: "CrossDomainMixin"
) -> TrainerLayer:
    """The RecBole trainer of a model, with our layer on top.

    Raises:
        ConfigError: ``checkpoint_dir`` cannot be written.
    """
    base = get_trainer(config["MODEL_TYPE"], config["model"])
    layer = TrainerLayer
    if getattr(config.model_class, "phased", False):
        layer = PhasedTrainer
    bases = (base, CountedLoop) if issubclass(base, Trainer) else (base,)  # trees have no loop
    bases = (CountedLoop,) if base is Trainer else bases
    trainer_class = type(f"Tema{base.__name__}", (layer, *bases), {})
    folder = Path(config["checkpoint_dir"])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        return trainer_class(config, model, dataset)
    except OSError as error:
        raise ConfigError(
            f"checkpoint_dir '{folder}' or the log folder cannot be written ({error.strerror}: "
            f"{error.filename}); choose another place"
        ) from error
