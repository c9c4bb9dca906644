"""What a dataset folder holds, read from the headers of its atomic files.

A dataset in the form of the data contract needs no YAML file of its own: the columns to load, the
aliases and the preloaded matrices follow from the files that are there. Keys set by the user or
in ``properties/dataset/NAME.yaml`` win over these.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole_tema.config.keys import may_read
from recbole_tema.config.presets import REQUIREMENTS, presets_of
from recbole_tema.data.atomic import read_header, require_fields
from recbole_tema.data.split import SPLIT_FIELD
from recbole_tema.errors import ConfigError, DataError

if TYPE_CHECKING:
    from recbole_tema.config.tema_config import TemaConfig
    from recbole_tema.data.atomic import Field

# suffix -> (id field, value field, field whose ids it shares)
FEATURE_FILES = {
    "itemtext": ("text_iid", "clip_text", "item_id"),
    "itemimage": ("image_iid", "clip_image", "item_id"),
    "itemllm": ("llm_iid", "llm_emb", "item_id"),
    "userllm": ("profile_uid", "profile_emb", "user_id"),
    "tag": ("tag_id", "tag_emb", "tag_id"),
}

# The types that the data contract gives to the fields that this package reads.
FIELD_TYPES = (
    {
        "user_id": "token",
        "item_id": "token",
        "timestamp": "float",
        "rating": "float",
        SPLIT_FIELD: "token",
        "domain": "token",
        "tags": "token_seq",
        "tag_weights": "float_seq",
        "tag_domain": "token_seq",
        "augmented_text": "token_seq",
    }
    | {id_field: "token" for id_field, _, _ in FEATURE_FILES.values()}
    | {value_field: "float_seq" for _, value_field, _ in FEATURE_FILES.values()}
)

TAG_FIELDS = ("tags", "tag_weights")
GENERATED_FIELDS = (*TAG_FIELDS, "augmented_text")  # columns of NAME.item that a model wrote

# Columns of items that the data contract names besides; a dataset may give them other types.
ITEM_TYPES = {
    "title": "token_seq",
    "category": "token_seq",
    "brand": "token",
    "price": "float",
    "year": "token",
    "description": "token_seq",
    "image_url": "token",
}

# Keys of RecBole that work on a field of NAME.inter or NAME.item, which then has to be loaded.
FIELD_KEYS = ("val_interval", "threshold", "normalize_field", "numerical_features")
# Keys of feature-aware models, whose defaults name a field of RecBole's own ml-100k.
ATTRIBUTE_KEYS = ("selected_features", "item_attribute")


def types_of(*fields: str) -> dict[str, str]:
    """The types of `fields`, which the data contract names."""
    return {field: FIELD_TYPES[field] for field in fields}


def check_types(path: Path, header: "Sequence[Field]") -> None:
    """Raise `DataError` where a known field has another type than the data contract's."""
    for field in header:
        expected = FIELD_TYPES.get(field.name)
        if expected and field.type != expected:
            raise DataError(
                f"{path}, line 1: field '{field.name}' has type '{field.type}', expected "
                f"'{expected}'; write the column header as '{field.name}:{expected}'"
            )


def check_required(folder: str | Path, name: str, keys: Mapping[str, Any]) -> None:
    """Raise `DataError` where a dataset lacks what a preset requires, with the command for it.

    Args:
        folder: the dataset's. keys: of the run: its presets, and the switches of what they require.
    """
    for preset in presets_of(keys):
        for part in map(REQUIREMENTS.__getitem__, preset.requires):
            path = Path(folder) / f"{name}.{part.suffix}"
            if part.switch and keys.get(part.switch) is False:
                continue
            if path.is_file() and part.field in {field.name for field in read_header(path)}:
                continue
            without = f", or leave them out by --{part.switch}=False" if part.switch else ""
            raise DataError(
                f"preset '{preset.name}' requires {part.words}, and {path} "
                f"{f'has no column {part.field}' if path.is_file() else 'is not there'}; make "
                f"them by {part.command.replace('NAME', name)}{without}"
            )


def detect(folder: str | Path, name: str, config: "TemaConfig | None" = None) -> dict:
    """Config defaults for the dataset ``name`` in ``folder``.

    Returns a dict with ``load_col``, ``additional_feat_suffix``, ``alias_of_*`` and
    ``preload_weight``, as RecBole reads them.

    Raises:
        DataError: the folder, ``NAME.inter`` or ``NAME.item`` is missing, or a header is wrong.
    """
    get = (
        (lambda key, default: config[key] or default)
        if config is not None
        else (lambda key, default: default)
    )
    user, item = get("USER_ID_FIELD", "user_id"), get("ITEM_ID_FIELD", "item_id")
    time, domain = get("TIME_FIELD", "timestamp"), get("DOMAIN_FIELD", "domain")
    folder = Path(folder)
    inter_path, item_path = folder / f"{name}.inter", folder / f"{name}.item"
    for path, holds in ((inter_path, "interactions"), (item_path, "items and their domains")):
        if not path.is_file():
            raise DataError(f"{path} not found: dataset '{name}' has no file of {holds}")
    inter_header, item_header = read_header(inter_path), read_header(item_path)
    check_types(inter_path, inter_header)
    check_types(item_path, item_header)
    require_fields(inter_path, inter_header, dict.fromkeys([user, item, time]))
    require_fields(item_path, item_header, {item: None})
    item_names = {field.name for field in item_header}
    if domain not in item_names:
        raise DataError(
            f"{item_path}, line 1: column '{domain}:token' is missing (found: "
            f"{', '.join(map(str, item_header))}), so '{name}' is not a cross-domain dataset; add "
            f"it, or set DOMAIN_FIELD to the column that tells an item's domain"
        )
    require_fields(item_path, item_header, {domain: "token"})

    load_col = {"inter": [user, item, time], "item": [item, domain]}
    _add_named_fields(config, load_col, {"inter": inter_header, "item": item_header}, name)
    load_col |= _knowledge_graph(config)
    has_tags = "tags" in item_names
    if has_tags:
        load_col["item"] += [field for field in TAG_FIELDS if field in item_names]
    aliases: dict[str, list[str]] = {"user_id": [], "item_id": [], "tag_id": []}
    suffixes, preload = [], {}
    for suffix, (id_field, value_field, alias) in FEATURE_FILES.items():
        path = folder / f"{name}.{suffix}"
        if not path.is_file() or (suffix == "tag" and not has_tags):
            continue
        header = read_header(path)
        check_types(path, header)
        names = {field.name for field in header}
        if suffix == "tag" and value_field not in names:
            require_fields(path, header, {id_field: "token"})
            continue  # a tag list without vectors
        require_fields(path, header, {id_field: "token", value_field: "float_seq"})
        suffixes.append(suffix)
        load_col[suffix] = [id_field, value_field]
        aliases[alias].append(id_field)
        preload[id_field] = value_field
    return {
        "load_col": load_col,
        "additional_feat_suffix": suffixes or None,
        "preload_weight": preload or None,
    } | {f"alias_of_{alias}": fields for alias, fields in aliases.items() if fields}


def _knowledge_graph(config: "TemaConfig | None") -> dict:
    """The columns of ``NAME.kg`` and ``NAME.link``, for the models that read them."""
    if config is None or not str(config["MODEL_TYPE"]).endswith("KNOWLEDGE"):
        return {}
    triple = ("HEAD_ENTITY_ID_FIELD", "RELATION_ID_FIELD", "TAIL_ENTITY_ID_FIELD")
    return {
        "kg": [config[key] for key in triple],
        "link": [config["ITEM_ID_FIELD"], config["ENTITY_ID_FIELD"]],
    }


def _add_named_fields(
    config: "TemaConfig | None",
    load_col: dict[str, list[str]],
    headers: "dict[str, list[Field]]",
    name: str,
) -> None:
    """Add to ``load_col`` the fields that the config filters, labels or normalises by, and those
    that the user names as features.

    Raises:
        ConfigError: a named field is in neither file.
    """
    if config is None:
        return
    given = set(config.external_config_dict) | config.dataset_file_keys
    read = [k for k in ATTRIBUTE_KEYS if k in given and may_read(config.model_class, k)]
    for key in (*FIELD_KEYS, *read):
        names = config[key] or ()
        for wanted in [names] if isinstance(names, str) else names:
            sources = [
                source
                for source, header in headers.items()
                if wanted in {field.name for field in header}
            ]
            if not sources:
                there = sorted({field.name for header in headers.values() for field in header})
                raise ConfigError(
                    f"{key} names the field '{wanted}', which neither {name}.inter nor "
                    f"{name}.item has; there are {', '.join(there)}"
                )
            for source in sources:
                if wanted not in load_col[source]:
                    load_col[source].append(wanted)
