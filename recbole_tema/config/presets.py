"""Presets: the settings of a paper or a protocol in one word, ``--preset=NAME[,NAME]``.

A file ``properties/preset/NAME.yaml`` holds keys of a run, and beside them:

- ``base``: a preset that this one changes, whose keys and parts it has where it has none itself;
- ``model``: the one model that they are for; without it they are for every model;
- ``requires``: what a dataset has to have (`REQUIREMENTS`);
- ``datasets``: ``{dataset: keys}``, over the file's own keys on that dataset;
- ``benchmark``: ``seeds`` and ``tune`` of a benchmark, where its command does not give them.

Its first line, a comment, is what ``--help`` says of it.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from recbole_tema.config.files import MERGED_KEYS, WORDS, load_yaml, merge_layer, properties_dir
from recbole_tema.config.registry import hint
from recbole_tema.errors import ConfigError

KEY = "preset"
OF_BENCHMARKS = ("seeds", "tune")


class Requirement(NamedTuple):
    """What a preset may require of a dataset.

    Attributes:
        words: for messages. suffix, field: the file and the column that hold it.
        command: makes it. switch: key of the models that leaves it out, None where there is none.
    """

    words: str
    suffix: str
    field: str
    command: str
    switch: str | None = None


TOOL = "python -m dataset_tools"
REQUIREMENTS = {
    "tags": Requirement("tags", "item", "tags", f"{TOOL} tag NAME", "use_tags"),
    "text": Requirement("CLIP text", "itemtext", "clip_text", f"{TOOL} clip NAME", "use_text"),
    "images": Requirement(
        "images", "itemimage", "clip_image", f"{TOOL} clip NAME --images FOLDER", "use_image"
    ),
    "llm": Requirement("LLM item vectors", "itemllm", "llm_emb", f"{TOOL} embed NAME"),
    "profiles": Requirement("user profiles", "userllm", "profile_emb", f"{TOOL} profile NAME"),
    "split": Requirement(
        *("a given split", "inter", "split"),
        f"{TOOL} convert csv NAME --train FILE --valid FILE --test FILE",
    ),
}


@dataclass(frozen=True)
class Preset:
    """One file of ``properties/preset``.

    Attributes:
        name, about: its name, and its first line.
        keys: of a run, those of the dataset asked for among them.
        model: the model it is for, None for all.
        requires: names of `REQUIREMENTS`. benchmark: of `OF_BENCHMARKS`.
    """

    name: str
    about: str
    keys: dict[str, Any]
    model: str | None = None
    requires: tuple[str, ...] = ()
    benchmark: dict[str, Any] = field(default_factory=dict)


def preset_names() -> list[str]:
    """The presets that there are."""
    return sorted(path.stem for path in (properties_dir() / KEY).glob("*.yaml"))


def read_preset(name: str, dataset: str | None = None) -> Preset:
    """The preset of a name, with its keys on a dataset.

    Raises:
        ConfigError: there is none of that name, or its file is wrong.
    """
    if name not in (known := preset_names()):
        close = hint(name, known) or f"; there are {', '.join(known)}"
        raise ConfigError(f"unknown preset '{name}'{close}")
    path = properties_dir() / KEY / f"{name}.yaml"
    keys = load_yaml(path)
    base = read_preset(keys.pop("base"), dataset) if "base" in keys else Preset("", "", {})
    model, requires = keys.pop("model", base.model), keys.pop("requires", base.requires)
    by_dataset, benchmark = keys.pop("datasets", {}), keys.pop("benchmark", base.benchmark)
    if not set(requires) <= set(REQUIREMENTS):
        raise ConfigError(f"{path}: requires is {requires}; allowed: {', '.join(REQUIREMENTS)}")
    if not set(benchmark) <= set(OF_BENCHMARKS):
        raise ConfigError(f"{path}: benchmark is {benchmark}; allowed: {', '.join(OF_BENCHMARKS)}")
    return Preset(
        name,
        path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# "),
        merge_layer(merge_layer(base.keys, keys), by_dataset.get(dataset, {})),
        model,
        tuple(requires),
        benchmark,
    )


def names_of(value: Any, source: str | None = None) -> list[str]:
    """The names in a value of the key ``preset``: ``"a,b"``, a list, or None for none.

    Raises:
        ConfigError: it is none of these.
    """
    if isinstance(value, str) and WORDS.get(value.strip().lower(), value) is None:
        value = None
    parts = value.split(",") if isinstance(value, str) else [] if value is None else value
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        where = f" ({source})" if source else ""
        raise ConfigError(f"preset is {value!r}{where}; allowed: names parted by commas, or none")
    return list(dict.fromkeys(name for part in parts if (name := part.strip())))


def presets_of(given: Mapping[str, Any], dataset: str | None = None) -> list[Preset]:
    """The presets that a user's keys name, which do not contradict each other.

    Raises:
        ConfigError: one is unknown, or two give different values for one key.
    """
    found = [read_preset(name, dataset) for name in names_of(given.get(KEY))]
    said: dict[str, tuple[str, Any]] = {}
    for preset in found:
        for key, value in _flat(preset).items():
            other, before = said.setdefault(key, (preset.name, value))
            if before != value:
                raise ConfigError(
                    f"presets contradict each other: {key} is {before!r} in '{other}' and "
                    f"{value!r} in '{preset.name}'; leave one of them out"
                )
    return found


def _flat(preset: Preset) -> dict[str, Any]:
    """What a preset says, keys that are merged part by part in their parts."""
    said = {} if preset.model is None else {"model": preset.model}
    for key, value in preset.keys.items():
        if key in MERGED_KEYS and isinstance(value, dict):
            said |= {f"{key}.{part}": inner for part, inner in value.items()}
        else:
            said[key] = value
    return said | {f"benchmark.{key}": value for key, value in preset.benchmark.items()}


def of_preset(source: str) -> bool:
    """Whether a key's source (`over_presets`) is a preset."""
    return source.startswith("preset '")


def model_of(given: dict[str, Any]) -> str | None:
    """The model that the presets of a user's keys are for, None where they are for every one."""
    return next((preset.model for preset in presets_of(given) if preset.model), None)


def over_presets(
    given: dict[str, Any],
    sources: dict[str, str],
    models: Collection[str],
    dataset: str | None = None,
) -> tuple[dict[str, Any], dict[str, str]]:
    """A user's keys over those of the presets that they name.

    Args:
        given: the user's keys. sources: ``{key: where it came from}``.
        models: names of the model and of the classes that it is derived from.

    Returns:
        (keys, sources); ``preset`` is a list of names, if there are any.

    Raises:
        ConfigError: a preset is unknown or another model's, or two contradict each other.
    """
    names_of(given.get(KEY), sources.get(KEY))
    keys: dict[str, Any] = {}
    told: dict[str, str] = {}
    found = presets_of(given, dataset)
    for preset in found:
        if preset.model is not None and preset.model not in models:
            raise ConfigError(
                f"preset '{preset.name}' is for {preset.model}, and the model is "
                f"{next(iter(models))}; leave it out, or take --model={preset.model}"
            )
        keys = merge_layer(keys, preset.keys)
        told |= dict.fromkeys(preset.keys, f"preset '{preset.name}'")
    if found:
        keys = merge_layer(keys, {**given, KEY: [preset.name for preset in found]})
        return keys, {**told, **sources}
    return given, sources
