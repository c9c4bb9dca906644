"""Reading of configuration text, YAML files and ``--key=value`` strings, without running it."""

import ast
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

try:  # libyaml's parser: reading the files of all models takes a third of the time
    from yaml import CSafeLoader as SafeLoader
except ImportError:  # a PyYAML that was built without libyaml
    from yaml import SafeLoader

from recbole_tema.errors import ConfigError
from recbole_tema.paths import recbole_dir

WORDS = {"true": True, "false": False, "none": None, "null": None, "~": None}
PLAIN_TYPES = (str, int, float, bool, list, tuple, dict, type(None))
MERGED_KEYS = ("eval_args",)
# Lists within lists. How deep the parser itself gets differs with Python and with
# libyaml: 500 lists within lists are text on 3.11 and a value on 3.13.
MAX_DEPTH = 50
# Their values are text: "(5,10)" is an open interval, not two numbers.
INTERVALS = (
    *("user_inter_num_interval", "item_inter_num_interval"),
    *("entity_kg_num_interval", "relation_kg_num_interval"),
)


class PlainYamlLoader(SafeLoader):
    """YAML's safe loader that reads ``1e-3`` as a number, as RecBole does; no key stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """Build the dict of a mapping node; raise ``yaml.YAMLError`` where a key stands twice."""
        seen = set()
        for key_node, _ in node.value:
            if key_node.value in seen and isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key_node.value}' stands twice", key_node.start_mark
                )
            if isinstance(key_node, yaml.ScalarNode):
                seen.add(key_node.value)
        return super().construct_mapping(node, deep=deep)


# PyYAML copies the resolver table onto the subclass, so the global SafeLoader stays as it is.
PlainYamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"""^(?:
         [-+]?(?:[0-9][0-9_]*)\.[0-9_]*(?:[eE][-+]?[0-9]+)?
        |[-+]?(?:[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)
        |\.[0-9_]+(?:[eE][-+][0-9]+)?
        |[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+\.[0-9_]*
        |[-+]?\.(?:inf|Inf|INF)
        |\.(?:nan|NaN|NAN))$""",
        re.X,
    ),
    list("-+0123456789."),
)


CONVERT_KEY = "convert"


def properties_dir() -> Path:
    """Return the folder ``properties``: in the installed package, else beside it (a checkout)."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "properties"
    return inside if inside.is_dir() else package.parent / "properties"


def load_yaml(path: str | Path) -> dict:
    """Read one YAML file into a dict of plain values.

    Raises:
        ConfigError: the file is missing, is no YAML, holds a Python tag, or is no mapping of keys.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigError(f"config file '{path}' cannot be read: {reason}") from error
    loader = PlainYamlLoader(text)
    try:
        values = loader.get_single_data()
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        if "could not determine a constructor for the tag" in problem:
            problem = "tags such as '!!python/object' are not read; write plain values"
        raise ConfigError(f"config file '{path}'{line}: {problem}") from error
    finally:
        loader.dispose()
    values = {} if values is None else values
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"config file '{path}' must hold 'key: value' lines with text keys")
    return values


def check_layers(**layers: dict[str, Any] | None) -> None:
    """Raise `ConfigError` unless every ``name=layer`` is None or a dict with text keys."""
    for name, layer in layers.items():
        if layer is None:
            continue
        if not isinstance(layer, dict) or not all(isinstance(key, str) for key in layer):
            raise ConfigError(f"{name} is {layer!r}; give a dict from the keys' names to values")


def strongest(key: str, *layers: dict[str, Any] | None) -> Any:
    """The value of a key in the last of some layers that has it; None where none does."""
    found = (layer[key] for layer in reversed(layers) if layer and layer.get(key) is not None)
    return next(found, None)


def file_list(paths: Any) -> list:
    """Config files as a list: one path, a list of paths, or None for none.

    Raises:
        ConfigError: it is none of these.
    """
    if paths is None or isinstance(paths, str | os.PathLike):
        paths = [] if paths is None else [paths]
    if not isinstance(paths, list | tuple) or not all(
        isinstance(path, str | os.PathLike) for path in paths
    ):
        raise ConfigError(f"config_file_list is {paths!r}; give a list of paths of YAML files")
    return list(paths)


def config_files(text: str) -> list[str]:
    """The paths in the value of ``--config_files``."""
    if not text:
        return []
    # One path with blanks in it is more likely than several files that spell an existing path.
    return [text] if Path(text).is_file() else text.split()


def merged_arguments(files: list[str], arguments: dict[str, Any]) -> tuple[dict, dict[str, str]]:
    """The keys of config files under those of a command line, and where each came from."""
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for path in files:
        layer = load_yaml(path)
        values = merge_layer(values, layer)
        sources.update(dict.fromkeys(layer, f"config file '{path}'"))
    sources.update(dict.fromkeys(arguments, "command line"))
    return merge_layer(values, parse_values(arguments)), sources


def our_defaults(model: str, dataset: str, files: Iterable[Path] = ()) -> dict:
    """Return this project's defaults of a run: overall, the model's, then the dataset's.

    Args:
        files: YAML files of a user's own model class, over those of the model's name.
    """
    merged = _merged_properties("overall", f"model/{model}")
    for layer in (*map(load_yaml, files), dataset_defaults(model, dataset)):
        merged = merge_layer(merged, layer)
    return merged


def recbole_defaults(model: str) -> dict:
    """Return what RecBole's own YAML files set for every run and for a model."""
    folder = recbole_dir() / "properties"
    paths = [folder / "overall.yaml", folder / "dataset" / "sample.yaml"]
    # Its files of XGBoost and LightGBM are in lower case.
    paths += [folder / "model" / f"{name}.yaml" for name in dict.fromkeys((model, model.lower()))]
    merged: dict[str, Any] = {}
    for path in paths:
        merged = merge_layer(merged, load_yaml(path) if path.is_file() else {})
    return merged


def dataset_defaults(model: str, dataset: str) -> dict:
    """Return what ``properties/dataset`` sets for a dataset, and for a model on it."""
    return _merged_properties(*_dataset_parts(model, dataset))


def _dataset_parts(model: str, dataset: str) -> tuple[str, str]:
    return f"dataset/{dataset}", f"dataset/{dataset}/{model}"


def _merged_properties(*parts: str) -> dict:
    """The files of ``properties`` that there are among `parts`, later ones over earlier ones."""
    merged: dict[str, Any] = {}
    for part in parts:
        path = properties_dir() / f"{part}.yaml"
        if path.is_file():
            merged = merge_layer(merged, load_yaml(path))
    # What `convert --preset` reads is no key of a run.
    return {key: value for key, value in merged.items() if key != CONVERT_KEY}


def parse_values(values: dict) -> dict:
    """The values that texts spell, key by key; texts of intervals stay texts."""
    return {
        key: value if key in INTERVALS and not _is_word(value) else parse_value(value)
        for key, value in values.items()
    }


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and value.strip().lower() in WORDS


def parse_value(value: Any) -> Any:
    """Turn a string into the plain value that it spells, else give it back as it is.

    Python literals (``[5, 10]``, ``{'LS': 'valid_and_test'}``, ``1e-3``), YAML's lists and dicts
    (``[Hit, NDCG]``, ``{LS: valid_and_test}``), and true, false and none in any case are
    understood; everything else, Python code included, stays text.
    """
    if not isinstance(value, str):
        return value
    if _is_word(value):
        return WORDS[value.strip().lower()]
    try:
        parsed = ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return _flow_style(value)
    return parsed if isinstance(parsed, PLAIN_TYPES) and _is_shallow(parsed) else value


def _is_shallow(value: Any, depth: int = 0) -> bool:
    """Whether lists stand within lists at most ``MAX_DEPTH`` deep."""
    if not isinstance(value, list | tuple | dict):
        return True
    parts = value.values() if isinstance(value, dict) else value
    return depth < MAX_DEPTH and all(_is_shallow(part, depth + 1) for part in parts)


def _flow_style(text: str) -> Any:
    """A list or dict in YAML's one-line form, else the text as it is."""
    if (text.strip()[:1], text.strip()[-1:]) not in (("[", "]"), ("{", "}")):
        return text
    try:
        parsed = _plain(yaml.load(text, Loader=PlainYamlLoader))  # a SafeLoader
    except (yaml.YAMLError, ValueError, IndexError, KeyError, TypeError, RecursionError):
        return text  # whatever PyYAML says to a text that is not its own
    # "{a, b}" is YAML for keys without values: no one means that.
    empty = isinstance(parsed, dict) and not any(v is not None for v in parsed.values())
    return text if empty or not _is_shallow(parsed) else parsed


def _plain(value: Any) -> Any:
    """The value with Python's None for the text None; ValueError for dates and other types."""
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if isinstance(value, dict):
        return {_plain(key): _plain(part) for key, part in value.items()}
    if not isinstance(value, PLAIN_TYPES):
        raise ValueError(f"{type(value)} is no plain value")
    return None if value == "None" else value


def merge_layer(base: dict, layer: dict) -> dict:
    """Return ``base`` overlaid by ``layer``.

    Keys replace keys as in RecBole, with one exception: ``eval_args`` is merged key by key, so that
    ``{'mode': 'uni100'}`` keeps the split (RecBole would fall back to a random 8:1:1 split).
    """
    merged = {**base, **layer}
    for key in MERGED_KEYS:
        if isinstance(base.get(key), dict) and isinstance(layer.get(key), dict):
            merged[key] = {**base[key], **layer[key]}
    return merged
