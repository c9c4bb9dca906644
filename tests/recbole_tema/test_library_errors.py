"""What RecBole refuses ends in one line; faults of our own code keep their traceback."""

import signal
import threading

import pandas as pd
import pytest
from recbole.model.general_recommender import BPR

from recbole_tema import load_model, run_recbole_tema
from recbole_tema.benchmark.targets import write_targets
from recbole_tema.config.tema_config import TemaConfig
from recbole_tema.data.preparation import create_dataset, data_preparation
from recbole_tema.errors import ConfigError, DataError, EvaluationError
from recbole_tema.evaluation import plan
from recbole_tema.evaluation.evaluator import EvalData
from recbole_tema.library_errors import duckdb_interrupts, recbole_refusals
from recbole_tema.quick_start import evaluate_checkpoint
from recbole_tema.trainer.factory import build_trainer


@pytest.mark.parametrize(
    ("model", "keys", "message"),
    [
        ("BPR", {"user_inter_num_interval": "[1000,inf)"}, r"\[1000,inf\).*tiny"),
        ("TEMA", {"numerical_features": ["price"]}, "numerical_features names the field 'price'"),
        ("TEMA", {"discretization": {"price": {}}}, "RecBole refuses dataset 'tiny'.*price"),
        ("TEMA", {"normalize_field": ["colour"]}, "colour"),
        ("TEMA", {"additional_feat_suffix": ["foo"]}, r"tiny\.foo not found.*additional_feat_"),
        ("TEMA", {"additional_feat_suffix": "foo"}, r"tiny\.foo not found"),
        ("SASRec", {"ITEM_LIST_LENGTH_FIELD": "tags"}, "'tags', which is a column of 'tiny'"),
        ("SASRec", {"hidden_act": "foo"}, "hidden_act is 'foo'"),
        ("NARM", {"dropout_probs": 0.5}, r"dropout_probs is 0.5 .*a list, as the default"),
        ("NARM", {"dropout_probs": [0.5]}, r"'NARM': IndexError: .*given: dropout_probs,"),
        ("ConvNCF", {"cnn_kernels": [4]}, r"'ConvNCF': RuntimeError: .*given: cnn_kernels\)"),
        ("GRU4Rec", {"num_layers": 0}, r"model 'GRU4Rec': .*given: .*num_layers\)"),
    ],
)
def test_a_key_that_does_not_fit_ends_in_one_line(settings, model, keys, message):
    with pytest.raises((ConfigError, DataError), match=message) as caught:
        run_recbole_tema(model, "tiny", config_dict={**settings, **keys})
    assert "\n" not in str(caught.value)


def test_our_own_faults_keep_their_traceback(settings):
    class Faulty(BPR):
        def __init__(self, config, dataset):
            super().__init__(config, dataset)
            raise KeyError("ours")

    keys = {**settings, "embedding_size": 4}
    keys.pop("hidden_size")  # which is of other models
    with pytest.raises(KeyError, match="ours"):
        run_recbole_tema(Faulty, "tiny", config_dict=keys)
    with pytest.raises(ValueError, match=r"\(2,\) targets"), recbole_refusals("x"):
        plan.EvalPlan([1], [1, 2], [0], [0, 1, 2], ["a", "b"], sequences=([1], [0, 0, 1]))


def test_arguments_of_the_wrong_kind_are_named():
    with pytest.raises(ConfigError, match="model is 3"):
        run_recbole_tema(model=3)
    for layer in ({"config_dict": [1]}, {"cmd_config_dict": "seed=1"}):
        with pytest.raises(ConfigError, match="give a dict"):
            run_recbole_tema(**layer)
    for keys, message in [
        ({"config_file_list": 3}, "config_file_list is 3; give a list of paths"),
        ({"saved": "no"}, "saved is 'no'; give True or False"),
        ({"after_epoch": 3}, "after_epoch is 3; give a function"),
        ({"dataset": ["x"]}, "unknown dataset"),
    ]:
        with pytest.raises(ConfigError, match=message):
            run_recbole_tema(**keys)
    for checkpoint in (3, None, ["a.pth"]):
        for read in (load_model, evaluate_checkpoint):
            with pytest.raises(ConfigError, match=r"checkpoint is .*give a path"):
                read(checkpoint)
    for keys, message in [
        ({"phases": 3}, "phases is 3; allowed"),
        ({"phases": [["test"]]}, "phases is .*allowed"),
        ({"phases": None}, "phases is None"),
        ({"data_path": 3}, "data_path is 3; give a path"),
    ]:
        with pytest.raises(ConfigError, match=message):
            evaluate_checkpoint("none.pth", **keys)


def test_a_validation_score_that_is_not_finite_ends_training(settings, monkeypatch):
    config = TemaConfig("BPR", "tiny", config_dict=settings)
    dataset = create_dataset(config, config.model_class)
    prepared = data_preparation(config, dataset, config.model_class)
    model = config.model_class(config, prepared.train_data.dataset)
    trainer = build_trainer(config, model, dataset)
    valid = EvalData(prepared.eval_data["valid"], prepared.plans["valid"])
    found = {"ndcg@3": float("nan")}, []  # as a metric of a user's own may be
    monkeypatch.setattr("recbole_tema.trainer.trainer.evaluate_model", lambda *_: found)
    with pytest.raises(EvaluationError, match=r"NDCG@3 is nan.*metric_decimal_place"):
        trainer.fit(prepared.train_data, valid)


@pytest.mark.parametrize("query", ["execute", "fetchall"])
def test_ctrl_c_within_a_query_is_an_interrupt(query):
    """DuckDB raises a RuntimeError, which is none of its own errors."""
    duckdb = pytest.importorskip("duckdb", reason="the extra convert is not installed")
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.3, signal.raise_signal, [signal.SIGINT])
    try:
        with duckdb.connect() as database, pytest.raises(KeyboardInterrupt):
            rows = "SELECT i, hash(i) FROM range(30_000_000_000) t(i)"
            timer.start()
            with duckdb_interrupts(database):
                if query == "execute":
                    database.execute(f"SELECT sum(hash(i)) FROM ({rows})")
                database.execute(f"{rows} WHERE i % 1_000_003 = 1").fetchall()
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, former)


def test_an_interrupted_write_of_targets_is_an_interrupt_and_leaves_nothing(tmp_path):
    pytest.importorskip("duckdb", reason="the extra benchmark is not installed")
    table = pd.DataFrame({"user": [f"u{n}" for n in range(3_000_000)]})
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.15, signal.raise_signal, [signal.SIGINT])
    try:
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            for _ in range(100):
                write_targets(table, tmp_path / "targets.parquet")
        assert {path.name for path in tmp_path.iterdir()} <= {"targets.parquet"}
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, former)
