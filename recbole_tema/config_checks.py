"""Checks of configuration values: types, ranges and enumerations, each error in one line."""

import os
import re
from collections.abc import Callable
from numbers import Integral, Real
from typing import NamedTuple

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
GROUPS = ("overlap", "popularity", "length")
# Losses that compare a target with sampled items.
SAMPLED_LOSSES = ("BCE", "BPR")
LEARNERS = ("adam", "adamw", "sgd", "adagrad", "rmsprop", "sparse_adam")
LEVELS = ("debug", "info", "warning", "error", "critical")
EVAL_ARGS = ("split", "order", "group_by", "mode")
NEG_SAMPLE_ARGS = ("distribution", "sample_num", "alpha", "dynamic", "candidate_num")
GROUP_KEYS = ("nproc", "world_size", "offset", "ip", "port")
ACTIVATIONS = ("gelu", "relu", "swish", "tanh")
CLIP_ARGS = ("max_norm", "norm_type", "error_if_nonfinite", "foreach")


class Rule(NamedTuple):
    """What a value may be: a test, and the words for it."""

    holds: Callable
    allowed: str


def _is_int(value, low=0):
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= low


def _is_real(value):
    return isinstance(value, Real) and not isinstance(value, bool) and abs(value) < float("inf")


def _integer(low):
    return Rule(lambda v: _is_int(v, low), f"an integer >= {low}")


def _choice(options):
    words = ", ".join(options)
    return Rule(lambda v: isinstance(v, str) and v.lower() in options, f"one of {words}")


def _listed(test, one=True):
    return lambda v: (
        (one and test(v)) or (isinstance(v, list | tuple) and len(v) > 0 and all(map(test, v)))
    )


BOOL = Rule(lambda v: isinstance(v, bool), "True or False")
TEXT = Rule(lambda v: isinstance(v, str) and v != "", "text")
PATH = Rule(lambda v: isinstance(v, str | os.PathLike) and str(v) != "", "a path")
RULES = {
    "seed": _integer(0),
    "reproducibility": BOOL,
    "threads": Rule(lambda v: v is None or _is_int(v, 1), "an integer >= 1, or none"),
    "use_gpu": BOOL,
    "state": _choice(LEVELS),
    "show_progress": BOOL,
    "data_path": PATH,
    "checkpoint_dir": PATH,
    "resume": BOOL,
    "save_dataset": BOOL,
    "save_dataloaders": BOOL,
    "log_wandb": BOOL,
    "shuffle": BOOL,
    "worker": _integer(0),
    "DOMAIN_FIELD": TEXT,
    "MAX_ITEM_LIST_LENGTH": _integer(1),
    "overlap_ratio": Rule(lambda v: _is_real(v) and 0 <= v <= 1, "a number from 0 to 1"),
    "epochs": _integer(0),
    "train_batch_size": _integer(1),
    "learner": _choice(LEARNERS),
    "learning_rate": Rule(lambda v: _is_real(v) and v > 0, "a number > 0"),
    "weight_decay": Rule(lambda v: _is_real(v) and v >= 0, "a number >= 0"),
    "eval_step": _integer(0),
    "stopping_step": _integer(0),
    "candidates": Rule(lambda v: v in ("in_domain", "all"), "in_domain or all"),
    "exclude_history": BOOL,
    "eval_neg_seed": _integer(0),
    "eval_groups": Rule(
        lambda v: isinstance(v, list | tuple) and all(g in GROUPS for g in v),
        f"a list of {', '.join(GROUPS)}",
    ),
    "metrics": Rule(
        _listed(lambda m: isinstance(m, str) and m.lower() in METRICS),
        f"a list of {', '.join(METRICS)}",
    ),
    "topk": Rule(_listed(lambda k: _is_int(k, 1)), "a list of integers >= 1"),
    "metric_decimal_place": _integer(1),
    "loss_decimal_place": _integer(1),
    "eval_batch_size": _integer(1),
}

PROBABILITY = Rule(lambda v: _is_real(v) and 0 <= v < 1, "a number from 0 to below 1")
POSITIVE = Rule(lambda v: _is_real(v) and v > 0, "a number > 0")
NOT_NEGATIVE = Rule(lambda v: _is_real(v) and v >= 0, "a number >= 0")
OPTIONAL_COUNT = Rule(lambda v: v is None or _is_int(v, 1), "an integer >= 1, or none")
# Keys of TEMA and LLM4CDSR; other models may give the same names another meaning.
MODEL_RULES = {
    **dict.fromkeys(("hidden_size", "inner_size", "n_layers", "n_heads"), _integer(1)),
    **dict.fromkeys(("hidden_dropout_prob", "attn_dropout_prob", "item_dropout_prob"), PROBABILITY),
    **dict.fromkeys(
        ("layer_norm_eps", "initializer_range", "id_scale", "local_scale", "temperature"), POSITIVE
    ),
    **dict.fromkeys(("tau", "tau_reg"), POSITIVE),
    **dict.fromkeys(("alpha", "beta", "intra_weight"), NOT_NEGATIVE),
    **dict.fromkeys(("full_softmax_items", "sampled_softmax_items"), _integer(1)),
    **dict.fromkeys(("llm_size", "window_stride"), OPTIONAL_COUNT),
    "hidden_act": Rule(lambda v: v in ACTIVATIONS, f"one of {', '.join(ACTIVATIONS)}"),
    "learner": _choice(LEARNERS[:-1]),  # their gradients are dense
}


def _fail(key, value, allowed, sources):
    source = sources.get(key.split(".")[0])
    where = f" ({source})" if source else ""
    raise ConfigError(f"{key} is {value!r}{where}; allowed: {allowed}")


def check_values(values: dict, sources: dict[str, str], rules: dict = RULES) -> None:
    """Check the values that this package or RecBole reads in every run.

    Args:
        values: the merged configuration; keys that are absent are not checked.
        sources: where the user's keys came from, for the message.
        rules: key -> rule, ``RULES``, for our models with ``MODEL_RULES``.

    Raises:
        ConfigError: names the key, its value, where it came from and what is allowed.
    """
    for key, rule in rules.items():
        if key in values and not rule.holds(values[key]):
            _fail(key, values[key], rule.allowed, sources)
    for key in ("nproc", "world_size"):
        if values.get(key, 1) not in (1, -1):
            _fail(key, values[key], "1, training runs in one process", sources)
    if "local_rank" in values:
        lacking = [key for key in GROUP_KEYS if key not in values]
        if lacking:
            allowed = f"no value, training runs in one process (or a group with {lacking[0]} too)"
            _fail("local_rank", values["local_rank"], allowed, sources)
    if "eval_args" in values:
        _check_eval_args(values["eval_args"], sources)
    for key, parts in (("clip_grad_norm", CLIP_ARGS), ("train_neg_sample_args", NEG_SAMPLE_ARGS)):
        if values.get(key) not in (None, "None"):
            _check_parts(key, values[key], parts, sources)
    if {"valid_metric", "metrics", "topk"} <= set(values):
        _check_valid_metric(values, sources)


def check_kinds(
    values: dict, sources: dict[str, str], defaults: dict, strict: bool, rules: dict = RULES
) -> None:
    """Check that the user's values are of the kind of their defaults.

    Args:
        values: the merged configuration.
        sources: the user's keys and where they came from; only these are checked.
        defaults: the YAML files' values; a default that is no number and no boolean binds nothing.
        strict: booleans and integers have to be just that; without it, any number serves for a
            number, as RecBole's files write ``0`` where ``0.5`` is meant as well.
        rules: keys with a rule of their own are not checked here.

    Raises:
        ConfigError: names the key, its value, where it came from and what is allowed.
    """
    for key in sources.keys() & defaults.keys() & values.keys() - rules.keys():
        default, value = defaults[key], values[key]
        if isinstance(default, bool):
            if strict and not isinstance(value, bool):
                _fail(key, value, BOOL.allowed, sources)
        elif isinstance(default, int) and strict:
            if not _is_int(value, float("-inf")):
                _fail(key, value, f"an integer, as the default {default}", sources)
        elif isinstance(default, Real) and not _is_real(value):
            _fail(key, value, f"a number, as the default {default}", sources)


def check_loss(values: dict, sources: dict[str, str], losses: tuple) -> None:
    """Check the loss of one of our models, and that its negatives are what it trains with.

    Args:
        losses: the losses that the model has; with ``BCE`` it takes one negative a target, drawn
            uniformly from the target's domain.

    Raises:
        ConfigError: names the key, its value, where it came from and what is allowed.
    """
    if values.get("loss_type") not in losses:
        _fail("loss_type", values.get("loss_type"), " or ".join(losses), sources)
    negatives = values.get("train_neg_sample_args")
    if negatives in (None, "None"):
        negatives = {"distribution": "none"}
    if values["loss_type"] not in SAMPLED_LOSSES:
        if negatives.get("distribution", "none") != "none":
            _fail("train_neg_sample_args", negatives, "none, as loss_type is CE", sources)
        return
    wanted = {"distribution": "uniform", "sample_num": 1}
    plain = {key: value for key, value in negatives.items() if value not in (None, False)}
    # RecBole's own defaults of the parts that are not given.
    if {**wanted, "alpha": 1.0, **plain} != {**wanted, "alpha": 1.0}:
        _fail("train_neg_sample_args", negatives, f"{wanted}, within the target's domain", sources)


def _check_parts(key, value, parts, sources):
    if not isinstance(value, dict):
        _fail(key, value, f"a dict of {', '.join(parts)}", sources)
    for part in value:
        if part not in parts:
            _fail(
                f"{key}.{part}", value[part], f"no such part; {key} has {', '.join(parts)}", sources
            )


def _check_eval_args(value, sources):
    _check_parts("eval_args", value, EVAL_ARGS, sources)
    if value.get("split") not in (None, {"LS": "valid_and_test"}):
        _fail("eval_args.split", value["split"], "{'LS': 'valid_and_test'}, leave-one-out", sources)
    if value.get("order", "TO") != "TO":
        _fail("eval_args.order", value["order"], "TO, by time", sources)
    if value.get("group_by") not in ("user", "none", None):
        _fail("eval_args.group_by", value["group_by"], "user or none", sources)
    mode = value.get("mode", "full")
    if isinstance(mode, dict):
        _check_parts("eval_args.mode", mode, ("valid", "test"), sources)
    for phase, one in (mode if isinstance(mode, dict) else {"": mode}).items():
        if not isinstance(one, str) or not re.fullmatch(r"full|uni[1-9]\d*", one):
            name = f"eval_args.mode.{phase}".rstrip(".")
            _fail(name, one, "full, or uniN for N negatives as uni100", sources)


def _check_valid_metric(values, sources):
    metrics = [values["metrics"]] if isinstance(values["metrics"], str) else values["metrics"]
    topk = values["topk"] if isinstance(values["topk"], list | tuple) else [values["topk"]]
    offered = [f"{metric}@{k}" for metric in metrics for k in topk]
    chosen = values["valid_metric"]
    if not isinstance(chosen, str) or chosen.lower() not in [name.lower() for name in offered]:
        _fail("valid_metric", chosen, f"a pair of metrics and topk: {', '.join(offered)}", sources)
