"""Rows of a table beside the models themselves: ablations and shares of overlapping users."""

from pathlib import Path

from recbole_tema.benchmark.spec import Entry
from recbole_tema.config.files import load_yaml, properties_dir
from recbole_tema.errors import ConfigError

OVERLAP = ", overlap "  # between an entry's label and its share
# File of a dataset that a switch is about: without it there is nothing to switch off.
NEEDS = {
    "use_tags": ("tag",),
    "tag_weighting": ("tag",),
    "tag_table": ("tag",),
    "feature_whitening": ("tag", "itemtext", "itemimage"),
    "use_text": ("itemtext",),
    "use_image": ("itemimage",),
    "beta": ("userllm",),
    "use_id": ("tag", "itemtext", "itemimage"),  # else nothing is left to make items of
}


def ablations() -> list[str]:
    """Models that have a file of variants."""
    return sorted(path.stem for path in (properties_dir() / "ablation").glob("*.yaml"))


def ablation(whole: Entry, folder: Path, dataset: str) -> list[Entry]:
    """A model and its variants of `properties/ablation/MODEL.yaml` that change something.

    Args:
        whole: The model itself. folder: The dataset's.

    Raises:
        ConfigError: the model has no such file, or it is no mapping of names to keys.
    """
    model, keys = whole.model, whole.keys
    path = properties_dir() / "ablation" / f"{model}.yaml"
    if not path.is_file():
        raise ConfigError(
            f"--ablation: no variants of '{model}' ({path}); there are those of "
            f"{', '.join(ablations())}"
        )
    entries, seen = [whole], []
    for name, changed in load_yaml(path).items():
        if not isinstance(changed, dict) or not changed:
            raise ConfigError(f"{path}: '{name}' names no keys that differ")
        felt = {k: v for k, v in changed.items() if not _is_idle(k, keys, folder, dataset)}
        if not felt or felt in seen:
            continue
        seen.append(felt)
        entries.append(Entry(f"{whole.label} {name}", model, {**keys, **changed}))
    return entries


def _is_idle(key: str, keys: dict, folder: Path, dataset: str) -> bool:
    needed = NEEDS.get(key, ())
    if key == "use_id" and keys.get("selected_features"):
        return False
    return bool(needed) and not any((folder / f"{dataset}.{end}").is_file() for end in needed)


def overlaps(entries: list[Entry], ratios: list[float]) -> list[Entry]:
    """Each entry at each share of overlapping users whose training data stays."""
    return [
        Entry(
            f"{entry.label}{OVERLAP}{ratio:g}", entry.model, {**entry.keys, "overlap_ratio": ratio}
        )
        for entry in entries
        for ratio in ratios
    ]


def ratios_of(text: str) -> list[float]:
    """Shares of `0.25,0.5,1`, ascending.

    Raises:
        ConfigError: one is no number from 0 to 1, or stands twice.
    """
    parts = [part.strip() for part in str(text).split(",") if part.strip()]
    try:
        found = [float(part) for part in parts]
    except ValueError:
        found = []
    if not found or not all(0 <= ratio <= 1 for ratio in found) or len(set(found)) < len(found):
        raise ConfigError(
            f"--overlap is '{text}'; give shares from 0 to 1, each once: 0.25,0.5,0.75,1.0"
        )
    return sorted(found)
