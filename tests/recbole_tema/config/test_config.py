"""TemaConfig: parsing without running, precedence, refused keys and values, independence."""

import copy
import json
import os
import re
import shutil
import socket
from pathlib import Path

import pytest
import torch
import yaml
from recbole.utils import argument_list

from recbole_tema.config.files import load_yaml, merge_layer, properties_dir
from recbole_tema.config.registry import (
    check_dataset,
    dataset_names,
    get_model_class,
    model_names,
    nearest,
)
from recbole_tema.config.tema_config import TemaConfig
from recbole_tema.errors import ConfigError
from recbole_tema.help_text import documented_keys
from recbole_tema.paths import recbole_dir
from tests.recbole_tema.config.test_files import write_yaml

# Parsing


@pytest.mark.parametrize("layer", ["file", "dict", "command line"])
def test_code_as_a_value_stays_text(tmp_path, layer):
    trace = tmp_path / "trace"
    code = f"__import__('os').system('touch {trace}')"
    values = {"wandb_project": code}
    if layer == "file":
        path = write_yaml(tmp_path / "a.yaml", yaml.safe_dump(values))
        config = TemaConfig("Pop", "x", config_file_list=[path])
    elif layer == "dict":
        config = TemaConfig("Pop", "x", config_dict=values)
    else:
        config = TemaConfig("Pop", "x", cmd_config_dict=values)
    assert config["wandb_project"] == code
    assert not trace.exists()


@pytest.mark.parametrize("layer", ["config_dict", "cmd_config_dict"])
@pytest.mark.parametrize("value", [[1], "seed=1", {1: 2}])
def test_a_layer_that_is_no_dict_of_keys_is_refused(layer, value):
    with pytest.raises(ConfigError, match=f"{layer} is .*give a dict"):
        TemaConfig("Pop", "x", **{layer: value})


def test_a_model_is_a_name_or_a_class():
    with pytest.raises(ConfigError, match="model is 3"):
        TemaConfig(3, "x")


# Precedence


def test_layers_win_in_recboles_order(tmp_path):
    first = write_yaml(tmp_path / "a.yaml", "seed: 1\nepochs: 1\nlearning_rate: 1e-1\nworker: 1\n")
    second = write_yaml(tmp_path / "b.yaml", "epochs: 2\nlearning_rate: 1e-2\nworker: 2\n")
    config = TemaConfig(
        "SASRec",
        "x",
        config_file_list=[first, second],
        config_dict={"learning_rate": 0.03, "worker": "3"},
        cmd_config_dict={"worker": "4"},
    )
    assert [config[k] for k in ("seed", "epochs", "learning_rate", "worker")] == [1, 2, 0.03, 4]
    assert config.sources["worker"] == "command line"
    assert config.sources["seed"] == f"config file '{first}'"


def test_our_defaults_lie_over_recboles_and_under_the_users():
    config = TemaConfig("SASRec", "x")
    assert config["metric_decimal_place"] == 6, "ours, RecBole has 4"
    assert config["hidden_size"] == 64, "RecBole's SASRec.yaml"
    assert config["loss_decimal_place"] == 4, "RecBole's overall.yaml"
    assert config["repeatable"] is True
    assert config["candidates"] == "in_domain"


def test_a_models_keys_on_a_dataset_lie_over_both(tmp_path, monkeypatch):
    folder = tmp_path / "properties"
    shutil.copytree(properties_dir(), folder)
    (folder / "dataset" / "shop").mkdir()
    (folder / "dataset" / "shop.yaml").write_text("learning_rate: 0.5\nstopping_step: 7\n")
    (folder / "dataset" / "shop" / "TEMA.yaml").write_text("learning_rate: 0.25\n")
    monkeypatch.setattr("recbole_tema.config.files.properties_dir", lambda: folder)
    rates = {
        (model, dataset): TemaConfig(model, dataset)["learning_rate"]
        for model in ("TEMA", "SASRec")
        for dataset in ("shop", "other")
    }
    assert rates[("TEMA", "shop")] == 0.25 and rates[("SASRec", "shop")] == 0.5
    assert rates[("TEMA", "other")] == load_yaml(folder / "model" / "TEMA.yaml")["learning_rate"]
    assert rates[("SASRec", "other")] == 0.001, "RecBole's"
    assert TemaConfig("TEMA", "shop")["stopping_step"] == 7
    given = TemaConfig("TEMA", "shop", config_dict={"learning_rate": 0.125})
    assert given["learning_rate"] == 0.125


def test_eval_args_is_merged_by_part(tmp_path):
    path = write_yaml(tmp_path / "a.yaml", "eval_args:\n  mode: {valid: uni10, test: uni20}\n")
    config = TemaConfig("SASRec", "x", config_file_list=[path], config_dict={"seed": 3})
    assert config["eval_args"] == {
        "split": {"LS": "valid_and_test"},
        "order": "TO",
        "group_by": "user",
        "mode": {"valid": "uni10", "test": "uni20"},
    }
    assert config["valid_neg_sample_args"] == {"distribution": "uniform", "sample_num": 10}


def test_model_and_dataset_may_stand_in_a_file(tmp_path):
    path = write_yaml(tmp_path / "a.yaml", "model: BPR\ndataset: 100\n")
    config = TemaConfig(config_file_list=[path])
    assert (config["model"], config["dataset"]) == ("BPR", "100")
    with pytest.raises(ConfigError, match="no dataset given"):
        TemaConfig("BPR")
    with pytest.raises(ConfigError, match="no model given"):
        TemaConfig(dataset="x")


def test_data_defaults_give_way_to_the_user():
    config = TemaConfig("SASRec", "x", config_dict={"load_col": {"inter": ["user_id"]}})
    config.set_data_defaults({"load_col": {"inter": ["item_id"]}, "additional_feat_suffix": ["t"]})
    assert config["load_col"] == {"inter": ["user_id"]}
    assert config["additional_feat_suffix"] == ["t"]


def test_data_path_has_a_default_that_the_environment_and_the_user_change(monkeypatch, tmp_path):
    monkeypatch.setenv("RECBOLE_TEMA_DATA", str(tmp_path))
    assert config_path(None) == str(tmp_path / "x")
    assert config_path("/data") == config_path(Path("/data")) == "/data/x"
    assert config_path("~/data") == str(Path.home() / "data" / "x")
    monkeypatch.delenv("RECBOLE_TEMA_DATA")
    assert Path(config_path(None)).parts[-3:] == ("recbole-tema", "dataset", "x")


def test_a_folder_called_ml_100k_is_the_users_own():
    assert TemaConfig("Pop", "ml-100k", config_dict={"data_path": "/data"})["data_path"] == (
        "/data/ml-100k"
    )


def config_path(data_path):
    values = {} if data_path is None else {"data_path": data_path}
    return TemaConfig("Pop", "x", config_dict=values)["data_path"]


# What RecBole derives, and where it stumbles


@pytest.mark.parametrize("model", ["SASRec", "BERT4Rec", "GRU4Rec"])
def test_full_softmax_models_train_without_negatives(model):
    assert TemaConfig(model, "x")["train_neg_sample_args"]["distribution"] == "none"


@pytest.mark.parametrize(
    ("model", "values"),
    [("FPMC", {}), ("BPR", {}), ("ItemKNN", {}), ("SASRec", {"loss_type": "BPR"})],
)
def test_other_losses_keep_recboles_negatives(model, values):
    assert TemaConfig(model, "x", config_dict=values)["train_neg_sample_args"]["sample_num"] == 1


def test_our_models_take_negatives_only_for_a_sampled_loss():
    values = {"loss_type": "BCE"}
    configs = [
        TemaConfig("TEMA", "x"),
        TemaConfig("LLM4CDSR", "x", config_dict=values),
        TemaConfig("LLM4CDSR", "x"),
    ]
    kinds = [config["train_neg_sample_args"]["distribution"] for config in configs]
    assert kinds == ["none", "uniform", "none"]


def test_negatives_that_the_user_asks_for_are_not_dropped_in_silence():
    with pytest.raises(ConfigError, match="should be None when the loss_type is CE"):
        TemaConfig("SASRec", "x", config_dict={"train_neg_sample_args": {"sample_num": 1}})


def test_one_config_leaves_no_trace_in_the_next():
    before = {k: list(v) for k, v in vars(argument_list).items() if k.endswith("_arguments")}
    given = {"topk": "[1]", "eval_args": {"mode": "uni10"}}
    kept = copy.deepcopy(given)
    first = TemaConfig("SASRec", "ml-100k", config_dict={**given, "valid_metric": "NDCG@1"})
    first["eval_args"]["mode"]["valid"] = "full"
    first["metrics"].append("MAP")
    second = TemaConfig("SASRec", "x")
    assert given == kept
    assert second["metrics"] == ["Hit", "NDCG", "MRR", "Recall"]
    assert second["topk"] == [5, 10, 20]
    assert len(before) == 4
    assert all(getattr(argument_list, name) == keys for name, keys in before.items())


def test_the_command_line_of_the_process_is_not_read(monkeypatch):
    monkeypatch.setattr("sys.argv", ["x.py", "--seed=7", "stray"])
    assert TemaConfig("Pop", "x")["seed"] == 2020


def test_without_cuda_the_device_is_the_cpu_and_the_environment_stays(monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    config = TemaConfig("Pop", "x", config_dict={"gpu_id": ""})
    assert config["device"] == torch.device("cpu")
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_a_group_of_processes_meets_without_cuda():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    group = {"local_rank": 0, "offset": 0, "world_size": 1, "nproc": 1, "ip": "localhost"}
    config = TemaConfig("Pop", "x", config_dict={**group, "port": port})
    try:
        assert torch.distributed.get_backend() == "gloo"
        assert config["device"] == torch.device("cpu")
        assert config["single_spec"] is False
    finally:
        torch.distributed.destroy_process_group()


# Names


def test_every_model_name_is_a_class_that_recbole_finds_too():
    names = model_names()
    assert names[:2] == ["TEMA", "LLM4CDSR"]
    assert {"SASRec", "GRU4Rec", "BERT4Rec", "Pop", "BPR", "LightGCN", "DeepFM", "KGAT"} <= {*names}
    yaml_names = {p.stem for p in (recbole_dir() / "properties" / "model").glob("*.yaml")}
    # RecBole's files of these two are in lower case, its classes are not.
    assert yaml_names - set(names) == {"lightgbm", "xgboost"}
    assert get_model_class("NARM").__name__ == "NARM"


@pytest.mark.parametrize(("name", "hinted"), [("TEMMA", "TEMA"), ("sasrec", "SASRec")])
def test_an_unknown_model_is_refused_with_the_nearest(name, hinted):
    with pytest.raises(ConfigError, match=rf"unknown model '{name}'; did you mean {hinted}"):
        TemaConfig(name, "x")


def test_nearest_ignores_case_and_keeps_to_what_is_alike():
    assert nearest("tema", ["TEMA", "TIMA"]) == ["TEMA"]
    assert nearest("zzz", ["TEMA"]) == []


def test_datasets_are_the_builtin_ones_and_folders_with_interactions(tmp_path):
    for name, file in (("shop", "shop.inter"), ("empty", "readme"), ("cut", "cut.part1.inter")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("")
    assert dataset_names(tmp_path) == ["ml-100k-genre", "cut", "shop"]
    check_dataset("shop", tmp_path)
    check_dataset("ml-100k-genre", tmp_path / "absent")
    with pytest.raises(ConfigError, match=r"'ml-100k'.*did you mean ml-100k-genre\?"):
        check_dataset("ml-100k", tmp_path)
    with pytest.raises(ConfigError, match=r"unknown dataset 'shopp'.*did you mean shop\?"):
        check_dataset("shopp", tmp_path)


@pytest.mark.parametrize("name", ["../x", "", "a/b", ".."])
def test_a_dataset_is_a_folder_name(name):
    with pytest.raises(ConfigError, match="folder's name"):
        TemaConfig("Pop", name)


# Our YAML files


# Those of benchmarks name variants and spaces, of keys that are documented in the others.
OF_BENCHMARKS = {"ablation", "hyper"}
OUR_YAML = sorted(
    path for path in properties_dir().rglob("*.yaml") if path.parent.name not in OF_BENCHMARKS
)


@pytest.mark.parametrize("path", OUR_YAML, ids=[p.name for p in OUR_YAML])
def test_every_key_has_a_comment(path):
    documented = documented_keys(path)
    assert [d.key for d in documented] == list(load_yaml(path))
    assert [d.key for d in documented if len(d.comment) < 10] == []


def records():
    """Of the searches and comparisons: (model, dataset, their file, keys that were given)."""
    for path in sorted((Path(__file__).resolve().parents[3] / "results").glob("*.jsonl")):
        for line in filter(str.strip, path.read_text(encoding="utf-8").splitlines()):
            found = json.loads(line)
            dataset = re.fullmatch(rf"{found['model']}-(.*)-seed\d+-\w+", found["run"])[1]
            yield found["model"], dataset, path.stem, found["keys"]


def searched():
    """(file, key) of every key whose comment says that its default comes of a search."""
    for path in OUR_YAML:
        for key, _, comment in documented_keys(path):
            if re.search(r"\bSearch\b", comment):
                yield pytest.param(path, key, id=f"{path.stem}-{key}")


@pytest.mark.parametrize(("path", "key"), searched())
def test_a_default_of_a_search_was_varied_by_a_record(path, key):
    """In one file of records, so over the same defaults, with other values or with and without."""
    folder = path.relative_to(properties_dir()).parts[:-1]
    model = path.stem if folder[0] == "model" or len(folder) > 1 else None
    dataset = (folder[1] if len(folder) > 1 else path.stem) if folder[0] == "dataset" else None
    values = {}
    for of_model, of_dataset, file, keys in records():
        if model in (None, of_model) and dataset in (None, of_dataset):
            values.setdefault((file, of_model), set()).add(repr(keys.get(key, "the default")))
    assert max(map(len, values.values()), default=0) > 1, f"no record varies {key}: {values}"


def test_merging_does_not_touch_its_inputs():
    base = {"eval_args": {"mode": "full", "order": "TO"}, "seed": 1}
    layer = {"eval_args": {"mode": "uni10"}}
    merged = merge_layer(base, layer)
    assert merged == {"eval_args": {"mode": "uni10", "order": "TO"}, "seed": 1}
    assert base["eval_args"]["mode"] == "full"
    assert layer == {"eval_args": {"mode": "uni10"}}
