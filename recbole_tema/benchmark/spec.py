"""What a benchmark runs: models, seeds and variants on one dataset, and all that they depend on."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from recbole_tema.config.presets import KEY as PRESET
from recbole_tema.config.presets import names_of
from recbole_tema.errors import ConfigError, DataError

RUNS = "runs"
# Files of a dataset that a model can read.
CONTENT = (
    *("inter", "item", "itemtext", "itemimage", "itemllm", "userllm", "tag"),
    *("user", "kg", "link", "net"),
)
# Keys that say how a trained model is evaluated and nothing of how it was trained. valid_metric is
# none of them: by it the best epoch was chosen.
EVALUATION = (
    *("eval_args", "eval_neg_seed", "eval_groups", "eval_batch_size"),
    *("candidates", "exclude_history", "metrics", "topk", "metric_decimal_place"),
    "uncut_metrics",
)
# By which keys two rows would have other targets, candidates or metrics.
ALIKE = {
    *{*EVALUATION} - {"eval_batch_size", "eval_groups", "metric_decimal_place"},
    *("target_domain", "dataset", "data_path", "val_interval", "rm_dup_inter"),
    *("user_inter_num_interval", "item_inter_num_interval", "filter_inter_by_user_or_item"),
    *("USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD", "DOMAIN_FIELD"),
}
EACH = "each of "  # target_domain of a row that is trained for one domain after the other


@dataclass(frozen=True)
class Entry:
    """One row of the table: a model with the keys that are its own.

    Attributes:
        label: Its name in the table.
        model: Of our models or RecBole's.
        keys: Beside the keys of the whole benchmark.
        domains: Target domains that it is trained for one by one; empty: one run for all.
    """

    label: str
    model: str
    keys: dict[str, Any] = field(default_factory=dict)
    domains: tuple[str, ...] = ()

    @property
    def targets(self) -> tuple[str | None, ...]:
        """The target domain of each of its runs, None for all domains at once."""
        return self.domains or (None,)


@dataclass(frozen=True)
class Spec:
    """A benchmark on one dataset.

    Attributes:
        dataset: Its name. data_path: The folder that holds its folder.
        entries: Rows of the table. seeds: Each is a run of each row.
        keys: Given for all runs, over the defaults.
        reference: Label of the row that the others are tested against; None: the best baseline.
        trained: Folder of a benchmark whose models are ranked again, not trained; None: train.
        evaluation: Label -> keys by which they are ranked again.
    """

    dataset: str
    data_path: Path
    entries: tuple[Entry, ...]
    seeds: tuple[int, ...]
    keys: dict[str, Any] = field(default_factory=dict)
    reference: str | None = None
    trained: Path | None = None
    evaluation: dict[str, dict[str, Any]] = field(default_factory=dict)

    def runs(self) -> list[tuple[Entry, int, str | None]]:
        """(entry, seed, target domain) of all runs; every row gets its first seed before any gets
        its second."""
        return [
            (entry, seed, domain)
            for seed in self.seeds
            for entry in self.entries
            for domain in entry.targets
        ]


def resolved(spec: Spec, entry: Entry) -> dict[str, Any]:
    """Every key that the results of an entry depend on, with its value, as JSON can hold them.

    Raises:
        ConfigError: a key or value is refused.
    """
    from recbole_tema.config.tema_config import TemaConfig
    from recbole_tema.trainer.checkpoint import NOT_IN_RUN_NAME, plain_config

    keys = {**spec.keys, **entry.keys, "data_path": str(spec.data_path)}
    if entry.domains:
        keys["target_domain"] = entry.domains[0]
    config = plain_config(TemaConfig(entry.model, spec.dataset, config_dict=keys))
    kept = {k: v for k, v in sorted(config.items()) if k not in {*NOT_IN_RUN_NAME, "seed"}}
    if entry.domains:
        kept["target_domain"] = EACH + ", ".join(entry.domains)
    return json.loads(json.dumps(kept, sort_keys=True, default=str))


def content_hash(folder: Path, name: str) -> str:
    """SHA-256 over a dataset's files that models read, by their names and bytes.

    Raises:
        DataError: there is no such dataset.
    """
    found = hashlib.sha256()
    for suffix in CONTENT:
        path = folder / f"{name}.{suffix}"
        if not path.is_file():
            continue
        found.update(f"{suffix}\0".encode())
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                found.update(block)
    if not (folder / f"{name}.inter").is_file():
        raise DataError(f"{folder / name}.inter not found; no such dataset")
    return found.hexdigest()


def stated(spec: Spec) -> dict[str, Any]:
    """What a folder of results belongs to: the dataset's content and each entry's keys."""
    return {
        **({"ranked_again": True} if spec.trained else {}),
        "dataset": spec.dataset,
        "content": content_hash(spec.data_path / spec.dataset, spec.dataset),
        "entries": {
            entry.label: {
                "model": entry.model,
                **_named(spec, entry),
                "keys": resolved(spec, entry),
            }
            for entry in spec.entries
        },
    }


def _named(spec: Spec, entry: Entry) -> dict[str, list[str]]:
    names = names_of({**spec.keys, **entry.keys}.get(PRESET))
    return {PRESET: names} if names else {}


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What differs between the statement that a folder holds and a new one; one line each.

    Entries that only one of them has are no difference: rows can be added, and left out.
    """
    lines = []
    if old.get("ranked_again") != new.get("ranked_again"):
        kinds = {None: "trained models", True: "models that were ranked again"}
        lines.append(
            f"{kinds[old.get('ranked_again')]} there, {kinds[new.get('ranked_again')]} now"
        )
    if old["dataset"] != new["dataset"]:
        lines.append(f"dataset {old['dataset']!r} there, {new['dataset']!r} now")
    elif old["content"] != new["content"]:
        lines.append(
            f"the files of dataset {old['dataset']!r} have changed (SHA-256 {old['content'][:12]} "
            f"there, {new['content'][:12]} now)"
        )
    for label, entry in new["entries"].items():
        before = old["entries"].get(label)
        if before is None:
            continue
        if before["model"] != entry["model"]:
            lines.append(f"{label}: model {before['model']} there, {entry['model']} now")
            continue
        for key in sorted(set(before["keys"]) | set(entry["keys"])):
            a, b = (keys.get(key, "(not set)") for keys in (before["keys"], entry["keys"]))
            if a != b:
                lines.append(f"{label}: {key} {a!r} there, {b!r} now")
    return lines


def unlike(entries: dict[str, dict[str, Any]]) -> list[str]:
    """By which keys rows of a folder would not be ranked alike; one line each.

    Args:
        entries: Label -> entry of a statement (`stated`).
    """
    lines: list[str] = []
    first = next(iter(entries), "")
    for label, entry in entries.items():
        for key in sorted(ALIKE):
            a, b = (e["keys"].get(key) for e in (entries[first], entry))
            a, b = (None if str(v).startswith(EACH) else v for v in (a, b))
            if a != b:
                lines.append(f"{key} is {a!r} of {first}, {b!r} of {label}")
    return lines


def run_name(label: str, seed: int, domain: str | None = None) -> str:
    """Name of a run's folder."""
    name = f"{label}-seed{seed}" + (f"-to-{domain}" if domain is not None else "")
    return "".join(c if c.isalnum() or c in "-_.+=" else "_" for c in name)


def run_folder(folder: Path, entry: Entry, seed: int, domain: str | None = None) -> Path:
    """The folder of a run in a folder of results."""
    return folder / RUNS / run_name(entry.label, seed, domain)


def check_entries(entries: list[Entry], seeds: list[int]) -> None:
    """Refuse a table without rows or seeds, and rows or seeds that stand twice.

    Raises:
        ConfigError: so it is.
    """
    if not entries:
        raise ConfigError("--models names no model")
    if not seeds:
        raise ConfigError("--seeds is 0; give a number of seeds, from 1, or a list of seeds: 1,2,3")
    names = [run_name(entry.label, 0) for entry in entries]
    twice = {e.label for e, name in zip(entries, names, strict=True) if names.count(name) > 1}
    if twice:
        raise ConfigError(f"--models names {', '.join(sorted(twice))} more than once")
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seeds has a seed more than once: {', '.join(map(str, seeds))}")


def as_json(
    spec: Spec,
    entry: Entry,
    seed: int,
    domain: str | None,
    stated: dict[str, Any],
    phases: Sequence[str] = ("valid", "test"),
) -> str:
    """A run for its process.

    Args:
        stated: What it depends on (`record.statement_of`). phases: Whose targets it ranks.
    """
    trained = spec.trained and str(run_folder(spec.trained, entry, seed, domain))
    return json.dumps(
        {**asdict(entry), "seed": seed, "dataset": spec.dataset, "data_path": str(spec.data_path)}
        | {"common": spec.keys, "phases": list(phases), "target_domain": domain}
        | {"trained": trained, "evaluation": spec.evaluation.get(entry.label, {})}
        | {"stated": stated}
    )


def domains_of(folder: Path, dataset: str, keys: dict[str, Any]) -> tuple[str, ...]:
    """The domains of a dataset that have events, in the order of its `.item` file.

    Args:
        keys: DOMAIN_FIELD and ITEM_ID_FIELD, where they are not RecBole's and this project's.

    Raises:
        DataError: a file is not there, or has no such column.
    """
    from recbole_tema.data.atomic import read_table

    item = str(keys.get("ITEM_ID_FIELD") or "item_id")
    domain = str(keys.get("DOMAIN_FIELD") or "domain")
    events = read_table(folder / f"{dataset}.inter", columns=[item], categories=True)
    items = read_table(folder / f"{dataset}.item", columns=[item, domain])
    return tuple(items.loc[items[item].isin(events[item].unique()), domain].unique())


def check_folders(entries: list[Entry]) -> None:
    """Refuse domains whose runs would have one folder.

    Raises:
        ConfigError: so it is.
    """
    for entry in entries:
        names = {run_name(entry.label, 0, domain) for domain in entry.targets}
        if len(names) < len(entry.targets):
            raise ConfigError(
                f"the domains {', '.join(entry.domains)} differ in signs only that a folder's name "
                "cannot have; rename one of them"
            )
