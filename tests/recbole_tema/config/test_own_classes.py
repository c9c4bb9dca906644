"""Keys of a user's own class: declared, inherited, in a file beside it, or merely read."""

import sys

import pytest
import torch
from recbole.model.abstract_recommender import SequentialRecommender

from recbole_tema import run_recbole_tema
from recbole_tema.config.keys import (
    class_keys,
    is_undeclared,
    keys_by_model,
)
from recbole_tema.config.tema_config import TemaConfig
from recbole_tema.errors import ConfigError
from recbole_tema.model.tema import TEMA


class Tiny(SequentialRecommender):
    """A model of a user that declares nothing: it reads one key."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.width = config["tiny_width"]
        self.weight = torch.nn.Parameter(torch.ones(self.n_items))

    def calculate_loss(self, interaction):
        return self.weight.square().sum()

    def full_sort_predict(self, interaction):
        return self.weight.expand(len(interaction), -1)


class Declared(Tiny):
    """Its keys, with those of the class above it, by the attribute."""

    model_arguments = ("tiny_depth",)


class Whole(SequentialRecommender):
    """All its keys by the attribute."""

    model_arguments = ["tiny_width", "hidden_size"]


class Narrow(TEMA):
    """A derived model has the keys and defaults of the one above it."""

    model_arguments = ()


def test_a_class_that_declares_is_held_to_it(caplog):
    values = {"loss_type": "CE", "tiny_width": 3, "hidden_size": 8}
    config = TemaConfig(Whole, "x", config_dict=values)
    assert config["tiny_width"] == 3 and "without effect" not in caplog.text
    with pytest.raises(ConfigError, match=r"'tiny_with'.*did you mean tiny_width"):
        TemaConfig(Whole, "x", config_dict={"tiny_with": 3})
    TemaConfig(Whole, "x", config_dict={**values, "n_heads": 3})
    assert "keys without effect on Whole: n_heads (config_dict)" in caplog.text
    with pytest.raises(ConfigError, match=r"Bad.model_arguments is 'ab'; give a list"):
        TemaConfig(type("Bad", (Whole,), {"model_arguments": "ab"}), "x", config_dict=values)


def test_a_derived_class_has_its_bases_keys_and_defaults(caplog):
    config = TemaConfig(Narrow, "x", config_dict={"id_scale": 0.5})
    theirs = TemaConfig("TEMA", "x")
    assert config["id_scale"] == 0.5 and config["hidden_size"] == theirs["hidden_size"]
    assert "without effect" not in caplog.text and not is_undeclared(Narrow)
    assert class_keys(Narrow) >= keys_by_model()["TEMA"]
    with pytest.raises(ConfigError, match=r"unknown key 'id_scal'.*id_scale"):
        TemaConfig(Narrow, "x", config_dict={"id_scal": 1})


def test_a_yaml_file_beside_the_class_has_keys_and_defaults(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from recbole.model.sequential_recommender.sasrec import SASRec\n"
        "class Mine(SASRec):\n    pass\n"
    )
    (tmp_path / "Mine.yaml").write_text("own_key: 7\nn_heads: 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import mine

    config = TemaConfig(mine.Mine, "x", config_dict={"own_key": 8})
    assert (config["own_key"], config["n_heads"]) == (8, 1)
    assert config["hidden_size"] == TemaConfig("SASRec", "x")["hidden_size"]
    with pytest.raises(ConfigError, match=r"own_key is 'wide'.*an integer"):
        TemaConfig(mine.Mine, "x", config_dict={"own_key": "wide"})
    with pytest.raises(ConfigError, match=r"unknown key 'own_kee'.*own_key"):
        TemaConfig(mine.Mine, "x", config_dict={"own_kee": 8})
    del sys.modules["mine"]


def test_what_a_class_without_declarations_does_not_read_is_named(settings, caplog):
    values = {**settings, "loss_type": "CE", "epochs": 1, "tiny_with": 3, "num_heads": 2}
    run_recbole_tema(Tiny, "tiny", config_dict=values, saved=False)
    [message] = [r.getMessage() for r in caplog.records if "did not read" in r.getMessage()]
    assert "tiny_with (config_dict); did you mean tiny_width" in message
    assert "num_heads (config_dict)" in message and "hidden_size (config_dict)" in message
    caplog.clear()
    values = {k: v for k, v in values.items() if k not in ("tiny_with", "num_heads", "hidden_size")}
    run_recbole_tema(Tiny, "tiny", config_dict={**values, "tiny_width": 3}, saved=False)
    assert "did not read" not in caplog.text and "without effect" not in caplog.text
