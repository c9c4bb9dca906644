"""The user's keys before torch and RecBole are imported: from files and arguments, checked."""

import os
from pathlib import Path

from recbole_tema.config.files import load_yaml, merge_layer, our_defaults, parse_values
from recbole_tema.config.keys import check_keys
from recbole_tema.config.model_rules import check_direction, model_rules
from recbole_tema.config.registry import OUR_MODELS, check_dataset, check_model
from recbole_tema.config.rules import RULES, check_kinds, check_values, read_lists
from recbole_tema.paths import default_data_path


def config_files(text) -> list[str]:
    """The paths in the value of ``--config_files``."""
    if not text:
        return []
    # One path with blanks in it is more likely than several files that spell an existing path.
    return [text] if Path(text).is_file() else text.split()


def merged(files, cmd):
    """Return the user's keys and where each came from, as ``TemaConfig`` will see them."""
    values, sources = {}, {}
    for path in files:
        layer = load_yaml(path)
        values = merge_layer(values, layer)
        sources.update(dict.fromkeys(layer, f"config file '{path}'"))
    sources.update(dict.fromkeys(cmd, "command line"))
    return merge_layer(values, parse_values(cmd)), sources


def check_arguments(model, dataset, values, sources):
    """Raise ``ConfigError`` for a name, key or value that a run would refuse."""
    check_model(model)
    check_keys(sources, model, values=values)
    defaults = our_defaults(model, dataset)
    values = read_lists(merge_layer(defaults, values), defaults)
    values["data_path"] = values["data_path"] or default_data_path()
    rules = {**RULES, **model_rules(model)}
    check_values(values, sources, rules)
    check_direction(values, model, model in OUR_MODELS, sources)
    check_kinds(values, sources, defaults, strict=True, rules=rules)
    check_dataset(dataset, os.path.expanduser(values["data_path"]))
