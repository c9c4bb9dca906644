"""TemaConfig: values that are refused, with what is allowed, and values that pass."""

import re
from importlib.util import find_spec

import pytest

from recbole_tema.config.files import load_yaml, parse_value, parse_values
from recbole_tema.config.registry import model_names
from recbole_tema.config.rules import model_rules, result_key
from recbole_tema.config.tema_config import TemaConfig
from recbole_tema.config.validation import check_arguments, check_values
from recbole_tema.errors import ConfigError
from recbole_tema.paths import recbole_dir


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"candidates": "some"}, "candidates is 'some'.*in_domain or all"),
        ({"overlap_ratio": 1.5}, "overlap_ratio is 1.5.*from 0 to 1"),
        ({"overlap_ratio": float("nan")}, "overlap_ratio is nan"),
        ({"eval_groups": ["age"]}, "eval_groups.*overlap, popularity, length"),
        ({"eval_groups": {"overlap": 1}}, "eval_groups.*a list"),
        ({"exclude_history": 1}, "exclude_history is 1.*auto, True or False"),
        ({"exclude_history": "Auto"}, "exclude_history is 'Auto'.*auto, True or False"),
        ({"epochs": -1}, "epochs is -1.*>= 0"),
        ({"epochs": True}, "epochs is True"),
        ({"epochs": 1.5}, "epochs is 1.5"),
        ({"learning_rate": 0}, "learning_rate is 0.*> 0"),
        ({"learner": "adaam"}, "learner is 'adaam'.*sparse_adam"),
        ({"topk": [0]}, r"topk is \[0\]"),
        ({"topk": []}, r"topk is \[\]"),
        ({"eval_args": "{split:{LS:both}}"}, r"a dict of split, .* a blank after each colon\)"),
        ({"metrics": ["AUC"]}, "metrics.*ndcg"),
        ({"metrics": ["NDGC"]}, "metrics.*ndcg"),
        ({"valid_metric": "NDCG@7"}, "valid_metric is 'NDCG@7'.*NDCG@10"),
        (
            {"topk": 20},
            r"valid_metric is 'NDCG@10' by default, which topk \(config_dict\) leaves.*NDCG@20",
        ),
        ({"eval_args": "mode: full"}, "eval_args.*a dict"),
        (
            {"eval_args": {"modes": "full"}},
            "eval_args has no part 'modes'.*; it has split, order",
        ),
        (
            {"eval_args": {"mode": {"tests": "full"}}},
            "eval_args.mode has no part 'tests'",
        ),
        ({"eval_args": {"mode": {"test": "uni0"}}}, "eval_args.mode.test is 'uni0'"),
        ({"eval_args": {"mode": "pop100"}}, "eval_args.mode is 'pop100'"),
        ({"eval_args": {"split": {"RS": [8, 1, 1]}}}, "eval_args.split.*leave-one-out"),
        ({"eval_args": {"order": "RO"}}, "eval_args.order is 'RO'.*TO"),
        ({"clip_grad_norm": {"max": 5}}, "clip_grad_norm has no part 'max'.*max_norm"),
        (
            {"train_neg_sample_args": {"number": 5}},
            "has no part 'number'.*sample_num",
        ),
        ({"threads": 0}, "threads is 0"),
        ({"nproc": 2}, "nproc is 2.*torchrun"),
        ({"hidden_size": "wide"}, "hidden_size is 'wide'.*an integer"),
        ({"repeatable": False}, "repeatable"),
        ({"seed": 2**32}, "seed is 4294967296.*to 4294967295"),
        ({"metric_decimal_place": 400}, "metric_decimal_place is 400.*from 1 to 15"),
        ({"loss_decimal_place": 16}, "loss_decimal_place is 16"),
        ({"clip_grad_norm": {"norm_type": 2}}, "clip_grad_norm is .*with max_norm"),
        ({"clip_grad_norm": {"max_norm": -1}}, "clip_grad_norm.max_norm is -1.*> 0"),
        ({"clip_grad_norm": {"max_norm": 1, "norm_type": "x"}}, "clip_grad_norm.norm_type is 'x'"),
        ({"loss_type": "BPR", "train_neg_sample_args": {"sample_num": 0}}, "sample_num is 0"),
        ({"loss_type": "BPR", "train_neg_sample_args": {"distribution": "x"}}, "distribution is"),
        ({"val_interval": "foo"}, "val_interval is 'foo'.*a dict of intervals"),
        ({"val_interval": {"rating": "foo"}}, "val_interval is .*a dict of intervals"),
        ({"discretization": "foo"}, "discretization is 'foo'.*a dict"),
        ({"load_col": "abc"}, "load_col is 'abc'.*a dict"),
        ({"load_col": {"inter": "abc"}}, "load_col is .*a dict of lists"),
        ({"unload_col": ["inter"]}, "unload_col is .*a dict"),
        ({"preload_weight": "abc"}, "preload_weight is 'abc'.*a dict"),
        ({"threshold": "foo"}, "threshold is 'foo'.*a dict of numbers"),
        ({"seq_len": {"title": 0}}, "seq_len is .*integers >= 1"),
        ({"rm_dup_inter": "First"}, "rm_dup_inter is .First"),
        ({"rm_dup_inter": "foo"}, "rm_dup_inter is 'foo'.*first, last, or none"),
        ({"benchmark_filename": ["a", "b", "c"]}, "benchmark_filename.*none"),
        ({"numerical_features": {"price": 1}}, "numerical_features is .*a list"),
        ({"user_inter_num_interval": "foo"}, r"user_inter_num_interval is 'foo'.*\[5,inf\)"),
        ({"item_inter_num_interval": "[5,2]"}, "item_inter_num_interval"),
        ({"item_inter_num_interval": "[five,inf)"}, "item_inter_num_interval"),
        ({"transform": "foo"}, "transform is 'foo'.*mask_itemseq"),
        ({"encoding": "foo"}, "encoding is 'foo'.*utf-8"),
        ({"field_separator": ","}, "field_separator is ','.*a tab"),
        ({"ITEM_LIST_LENGTH_FIELD": "item_id"}, "ITEM_LIST_LENGTH_FIELD.*ITEM_ID_FIELD is that"),
        ({"hidden_size": 0}, "hidden_size is 0.*>= 1"),
        ({"hidden_act": "foo"}, "hidden_act is 'foo'.*gelu"),
        ({"hidden_dropout_prob": 1.5}, "hidden_dropout_prob is 1.5"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(values, message):
    with pytest.raises(ConfigError, match=message) as caught:
        TemaConfig("SASRec", "ml-100k-genre", config_dict=values)
    assert "\n" not in str(caught.value)
    # The command line and benchmarks say the same before torch is loaded.
    sources = dict.fromkeys(values, "config_dict")
    with pytest.raises(ConfigError, match=re.escape(str(caught.value))):
        check_arguments("SASRec", "ml-100k-genre", parse_values(values), sources)


@pytest.mark.parametrize(
    ("model", "values"),
    [
        ("TEMA", {"loss_type": "BCE"}),
        ("LLM4CDSR", {"loss_type": "BPR"}),
        ("LLM4CDSR", {"loss_type": "CE", "train_neg_sample_args": {"sample_num": 1}}),
        ("TEMA", {"window_stride": 60, "MAX_ITEM_LIST_LENGTH": 50}),
        ("TEMA", {"use_intra": False, "use_inter": False}),
        ("BERT4Rec", {"transform": None}),
        ("GRU4Rec", {"dropout_prob": "much"}),
    ],
)
def test_what_a_model_refuses_is_refused_before_torch_is_loaded(model, values):
    sources = dict.fromkeys(values, "config_dict")
    with pytest.raises(ConfigError) as early:
        check_arguments(model, "ml-100k-genre", dict(values), sources)
    with pytest.raises(ConfigError, match=re.escape(str(early.value))):
        TemaConfig(model, "ml-100k-genre", config_dict=values)


@pytest.mark.parametrize("value", [None, "crop_itemseq"])
@pytest.mark.parametrize(("model", "made"), [("BERT4Rec", "mask"), ("SHAN", "inverse")])
def test_a_model_keeps_the_transform_whose_field_it_reads(model, made, value):
    with pytest.raises(ConfigError, match=f"transform is {value!r}.*allowed: {made}_itemseq, "):
        TemaConfig(model, "x", config_dict={"transform": value})
    assert TemaConfig(model, "x", config_dict={"transform": f"{made}_itemseq"})


def test_values_at_the_edge_of_their_range_pass():
    values = {
        "overlap_ratio": 0,
        "eval_groups": ["overlap", "popularity", "length"],
        "candidates": "all",
        "topk": 10,
        "metrics": "ndcg",
        "threads": 1,
        "clip_grad_norm": {"max_norm": 5, "norm_type": float("inf")},
        "seed": 2**32 - 1,
        "metric_decimal_place": 15,
        "user_inter_num_interval": "[5, 10]",
        "item_inter_num_interval": "[5,inf]",
        "val_interval": "{rating: '[3,inf);(0, 1)', timestamp: [3, inf]}",
        "encoding": "UTF-8",
        "load_col": {"inter": ["user_id", "item_id"], "item": "*"},
        "eval_args": {"mode": "uni999", "group_by": None},
    }
    config = TemaConfig("SASRec", "x", config_dict=values)
    assert config["topk"] == [10]
    assert config["metrics"] == ["ndcg"]
    assert config["overlap_ratio"] == 0
    assert config["user_inter_num_interval"] == "[5, 10]", "text, as RecBole reads it"
    assert config["item_inter_num_interval"] == "[5,inf]"
    assert config["val_interval"] == {"rating": "[3,inf);(0, 1)", "timestamp": "[3, inf]"}


LISTS = [
    ("topk", "5,10", [5, 10]),
    ("topk", "(5, 10)", [5, 10]),
    ("topk", "10", [10]),
    ("metrics", "Hit,NDCG", ["Hit", "NDCG"]),
    ("metrics", "Hit, NDCG", ["Hit", "NDCG"]),
    ("metrics", "[Hit, NDCG]", ["Hit", "NDCG"]),
    ("metrics", "ndcg", ["ndcg"]),
    ("eval_groups", "overlap,length", ["overlap", "length"]),
    ("eval_groups", "overlap", ["overlap"]),
    ("selected_features", "title,domain", ["title", "domain"]),
    ("selected_features", "title", ["title"]),
    ("normalize_field", "price,stars", ["price", "stars"]),
    ("numerical_features", "price", ["price"]),
    ("additional_feat_suffix", "itemtext,itemllm", ["itemtext", "itemllm"]),
    ("alias_of_item_id", "a,b", ["a", "b"]),
    ("gpu_id", "0,1", "0,1"),
    ("gpu_id", "0", "0"),
    ("mlp_hidden_size", "64,32", [64, 32]),
    ("dropout_probs", "0.1,0.2", [0.1, 0.2]),
    ("train_epochs", "SOURCE:3,TARGET:2", ["SOURCE:3", "TARGET:2"]),
]
OWNER = {"selected_features": "FDSA", "mlp_hidden_size": "NeuMF", "dropout_probs": "NARM"}


@pytest.mark.parametrize(("key", "text", "value"), LISTS)
def test_a_list_may_be_written_with_commas_everywhere(tmp_path, key, text, value):
    """On the command line, in a file and from Python, as text or as a tuple: one reading."""
    model = OWNER.get(key, "SASRec")
    more = {"metrics": ["NDCG"]} if key != "metrics" else {"topk": [10]}
    if key in ("topk", "metrics"):
        more["valid_metric"] = "NDCG@10"
    (tmp_path / "a.yaml").write_text(f'{key}: "{text}"\n')
    layers = [
        {"config_file_list": [str(tmp_path / "a.yaml")]},
        {"config_dict": {key: text}},
        {"cmd_config_dict": {key: text}},
    ]
    if isinstance(value, list):
        layers += [{"config_dict": {key: tuple(value)}}, {"config_dict": {key: value}}]
    for layer in layers:
        values = {**more, **layer.get("config_dict", {})}
        config = TemaConfig(model, "x", **{**layer, "config_dict": values})
        assert config[key] == value and type(config[key]) is type(value)
    check_arguments(model, "ml-100k-genre", {**more, key: parse_value(text)}, {key: "command line"})


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("topk", "5,x"),
        ("topk", "5;10"),
        ("topk", "[5, 10"),
        ("topk", "{'a': 5}"),
        ("topk", "5,"),
        ("topk", ","),
        ("topk", "True"),
        ("topk", "2.5"),
        ("metrics", "Hit;NDCG"),
        ("metrics", "Hit,,NDCG"),
        ("metrics", "5"),
        ("metrics", "''"),
        ("eval_groups", "overlap,age"),
        ("eval_groups", "none"),
        ("gpu_id", "{'a': 1}"),
        ("gpu_id", "1.5"),
        ("gpu_id", "True"),
        ("user_inter_num_interval", "5,10"),
        ("val_interval", "{'rating': (3, 5)}"),
        ("mlp_hidden_size", "64"),
        ("dropout_probs", "wide"),
        ("selected_features", "title,title"),
        ("selected_features", "3"),
        ("LIST_SUFFIX", "3"),
        ("loss_type", "3"),
        ("valid_metric", "5"),
        ("train_neg_sample_args", "[1]"),
        ("clip_grad_norm", "5"),
        ("eval_args", "full"),
        ("load_col", "inter,item"),
        ("seed", "1,2"),
        ("epochs", "1,2"),
    ],
)
def test_what_recbole_would_not_read_is_refused_in_one_line(key, text):
    model = OWNER.get(key, "SASRec")
    for layer in ({"config_dict": {key: text}}, {"cmd_config_dict": {key: text}}):
        with pytest.raises(ConfigError, match=key) as caught:
            TemaConfig(model, "x", **layer)
        assert "\n" not in str(caught.value)


def test_an_interval_keeps_its_brackets():
    for text in ("(5,10)", "[5,10)", "(5, 10]", "[5,10]"):
        config = TemaConfig("SASRec", "x", config_dict={"user_inter_num_interval": text})
        assert config["user_inter_num_interval"] == text
    config = TemaConfig("SASRec", "x", cmd_config_dict={"user_inter_num_interval": "None"})
    assert config["user_inter_num_interval"] is None


def test_a_wrong_list_of_config_files_is_named():
    for paths in (3, {"a": 1}, [3]):
        with pytest.raises(ConfigError, match=r"config_file_list is .*a list of paths"):
            TemaConfig("SASRec", "x", config_file_list=paths)


@pytest.mark.parametrize(
    ("model", "values", "message"),
    [
        ("LightGCN", {"n_layers": -1}, "n_layers is -1.*>= 0"),
        ("GRU4Rec", {"embedding_size": 0}, "embedding_size is 0.*>= 1"),
        ("TEMA", {"fusion": "product"}, r"fusion is 'product' \(config_dict\).*sum, gate, concat"),
        ("TEMA", {"similarity": 1}, "similarity is 1.*dot, cosine"),
        ("TEMA", {"id_init": "pca"}, "id_init is 'pca'.*normal, text_pca"),
        ("TEMA", {"feature_whitening": "zca"}, "feature_whitening is 'zca'.*none, centre, pca"),
        ("TEMA", {"tag_weighting": "tfidf"}, "tag_weighting is 'tfidf'.*matched, raw, binary"),
        ("TEMA", {"train_rows": "prefixes"}, "train_rows is 'prefixes'.*sequence, prefix"),
        ("LLM4CDSR", {"train_rows": "x"}, "train_rows is 'x'.*sequence, prefix"),
        ("TEMA", {"window_stride": 51}, r"window_stride is 51 \(config_dict\).*\(50\)"),
        ("TEMA", {"use_intra": False, "use_inter": False}, "no thread is left"),
        (
            "LLM4CDSR",
            {"train_neg_sample_args": {"distribution": "uniform", "sample_num": 0}},
            "train_neg_sample_args.sample_num is 0.*>= 1",
        ),
        (
            "LLM4CDSR",
            {
                "loss_type": "BCE",
                "train_neg_sample_args": {"distribution": "uniform", "sample_num": 2},
            },
            "train_neg_sample_args is .*'sample_num': 1",
        ),
        ("LLM4CDSR", {"train_neg_sample_args": {"alpha": 0.5}}, "train_neg_sample_args is"),
    ],
)
def test_a_wrong_value_of_a_models_key(model, values, message):
    with pytest.raises(ConfigError, match=message):
        TemaConfig(model, "x", config_dict=values)


def test_parts_of_the_negatives_that_are_not_given_are_recboles():
    config = TemaConfig("BPR", "x", config_dict={"train_neg_sample_args": {"sample_num": 2}})
    assert config["train_neg_sample_args"] == {
        **{"distribution": "uniform", "sample_num": 2, "alpha": 1.0},
        **{"dynamic": False, "candidate_num": 0},
    }


def test_wandb_is_asked_for_before_it_is_needed():
    if find_spec("wandb"):
        pytest.skip("wandb is installed")
    with pytest.raises(ConfigError, match=r"log_wandb.*pip install wandb"):
        TemaConfig("Pop", "x", config_dict={"log_wandb": True})


def test_a_key_of_another_model_may_be_out_of_its_range():
    assert TemaConfig("Pop", "x", config_dict={"hidden_size": 0})["hidden_size"] == 0


def test_recboles_own_defaults_are_allowed():
    for model in model_names():
        path = recbole_dir() / "properties" / "model" / f"{model}.yaml"
        if path.is_file():
            check_values(load_yaml(path), {}, model_rules(model))
    for name in ("overall", "dataset/sample"):
        values = load_yaml(recbole_dir() / "properties" / f"{name}.yaml")
        values.pop("eval_args", None)  # a random split
        check_values(values, {})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"valid_metric": "MRR"}, "valid_metric is 'MRR'.*add MRR to uncut_metrics"),
        ({"valid_metric": "macro/mrr"}, "valid_metric is 'macro/mrr'.*add mrr to uncut_metrics"),
        ({"valid_metric": "macro/NDCG@7"}, "valid_metric is 'macro/NDCG@7'.*NDCG@10"),
        ({"valid_metric": "overlap=yes/NDCG@10"}, "add overlap to eval_groups"),
        ({"valid_metric": "age=old/NDCG@10"}, "a group of overlap, popularity, length, cold"),
        (
            {"metrics": ["NDCG", "ItemCoverage"], "valid_metric": "food/ItemCoverage@10"},
            "valid_metric is 'food/ItemCoverage@10'.*NDCG@10",
        ),
        ({"uncut_metrics": ["Hit"]}, "uncut_metrics is .*a list of mrr, ndcg"),
    ],
)
def test_a_metric_to_choose_by_that_nothing_computes_is_refused(values, message):
    with pytest.raises(ConfigError, match=message) as caught:
        TemaConfig("TEMA", "ml-100k-genre", config_dict=values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"valid_metric": "MRR", "uncut_metrics": "MRR"}, "mrr"),
        ({"valid_metric": "macro/MRR", "uncut_metrics": ["mrr"]}, "macro/mrr"),
        ({"valid_metric": "Food/Hit@20"}, "Food/hit@20"),
        ({"valid_metric": "cold=no/NDCG@5", "eval_groups": ["cold"]}, "cold=no/ndcg@5"),
    ],
)
def test_any_metric_of_any_slice_can_choose(values, key):
    config = TemaConfig("TEMA", "ml-100k-genre", config_dict=values)
    assert result_key(config["valid_metric"]) == key
    assert config["valid_metric_bigger"] is True
