"""A search of each model's own space on validation data, with the same number of trials for all.

    RESULTS/tune/LABEL.journal       Optuna's record of the trials
    RESULTS/tune/LABEL-trialN/       a run as in the benchmark, without test targets

A trial's keys depend on the seed, its number and the results of those before it, so that a search
that was interrupted ends as one that was not.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from recbole_tema.benchmark.runner import Job, open_results, run_jobs
from recbole_tema.benchmark.spec import Entry, Spec, as_json, run_name
from recbole_tema.benchmark.targets import HOW_TO_GET
from recbole_tema.benchmark.worker import RECORD
from recbole_tema.config_files import load_yaml, properties_dir
from recbole_tema.errors import ConfigError, DataError

FOLDER, DEFAULT = "tune", "default"
RANDOM_TRIALS = 5  # before the sampler learns from those before
PARTS = {"low", "high", "log"}


def space_of(model: str) -> dict:
    """The space of `properties/hyper/MODEL.yaml`, or of default.yaml.

    Raises:
        ConfigError: a key is neither a list of values nor a range.
    """
    folder = properties_dir() / "hyper"
    path = folder / f"{model}.yaml"
    path = path if path.is_file() else folder / f"{DEFAULT}.yaml"
    space = load_yaml(path)
    for key, found in space.items():
        if isinstance(found, list) and found:
            continue
        if not isinstance(found, dict) or not {"low", "high"} <= set(found) <= PARTS:
            raise ConfigError(
                f"{path}: {key} is {found!r}; give a list of values, or low, high and maybe log"
            )
        if not found["low"] < found["high"]:
            raise ConfigError(f"{path}: {key}: low is not below high")
    return space


def tuned(
    folder: Path,
    spec: Spec,
    statement: dict,
    trials: int,
    jobs: int,
    say: Callable[[str], None],
) -> Spec:
    """The spec with the best keys that `trials` trials of each entry found.

    The first trial has the keys that are given, so that a search never ends worse than none.

    Args:
        statement: What is searched (`spec.stated`).

    Raises:
        ConfigError: a space is refused, or gives a key that is given too, or the folder holds
            trials of other data, keys or spaces.
        DataError: Optuna is missing, all trials of an entry failed, or the folder cannot be
            written.
    """
    open_results(folder / FOLDER, _with_spaces(statement))
    studies = {entry.label: _study(folder, spec, entry) for entry in spec.entries}
    for number in range(trials):
        wanted, asked = [], {}
        for entry in spec.entries:
            keys = _keys_of_trial(studies[entry.label], spec, entry, number)
            if keys is None:
                continue
            asked[entry.label] = entry, []
            for domain in entry.targets:
                name = f"{entry.label}, trial {number + 1} of {trials}"
                name += f", to {domain}" if domain else ""
                run = run_name(entry.label, spec.seeds[0], domain)
                where = folder / FOLDER / f"{run}-trial{number}"
                kept = replace(entry, keys=keys)
                text = as_json(spec, kept, spec.seeds[0], domain, phases=("valid",))
                wanted.append(Job(name, where, text))
                asked[entry.label][1].append(where)
        if wanted and not jobs:
            raise ConfigError(
                f"--jobs=0 runs nothing, and trial {number + 1} of {trials} is not finished"
            )
        if wanted:
            run_jobs(wanted, jobs, f"trials {number + 1} of {trials}", lambda text: None)
        for entry, places in asked.values():
            _tell(studies[entry.label], number, places)
    found = []
    for entry in spec.entries:
        keys, score = _best(studies[entry.label], folder, spec, entry)
        shown = ", ".join(f"{key} {value}" for key, value in keys.items()) or "the given keys"
        say(f"{entry.label}: best validation score {score:.4f} with {shown}")
        found.append(replace(entry, keys={**entry.keys, **keys}))
    return replace(spec, entries=tuple(found))


def _with_spaces(statement: dict) -> dict:
    """A statement in which the space counts as one of an entry's keys."""
    entries = {
        label: {**entry, "keys": {**entry["keys"], "space": space_of(entry["model"])}}
        for label, entry in statement["entries"].items()
    }
    return {**statement, "entries": entries}


def _study(folder: Path, spec: Spec, entry: Entry):
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError:
        raise DataError(f"optuna is not installed: {HOW_TO_GET}") from None
    optuna.logging.set_verbosity(logging.ERROR)
    given = set(spec.keys) | set(entry.keys)
    both = sorted(given & set(space_of(entry.model)))
    if both:
        raise ConfigError(
            f"{', '.join(both)} of {entry.label} is given and searched; leave it out, or take it "
            "out of properties/hyper"
        )
    place = folder / FOLDER
    try:
        place.mkdir(parents=True, exist_ok=True)
        backend = JournalFileBackend(str(place / f"{run_name(entry.label, spec.seeds[0])}.journal"))
        return optuna.create_study(
            storage=JournalStorage(backend),
            study_name=entry.label,
            direction="maximize",
            load_if_exists=True,
        )
    except OSError as error:
        raise DataError(f"{place} cannot be written: {error.strerror or error}") from None


def _keys_of_trial(study, spec: Spec, entry: Entry, number: int) -> dict | None:
    """The keys of a trial, asked now or before; None if it has its result."""
    import optuna

    # A sampler of its own for each trial: what it draws does not depend on this process's past.
    study.sampler = optuna.samplers.TPESampler(
        seed=spec.seeds[0] + number, n_startup_trials=RANDOM_TRIALS
    )
    known = study.get_trials(deepcopy=False)
    if number < len(known):
        if known[number].state.is_finished():
            return None
        if "keys" in known[number].user_attrs:
            return {**entry.keys, **known[number].user_attrs["keys"]}
        trial = optuna.trial.Trial(study, known[number]._trial_id)  # killed while it was asked
    else:
        trial = study.ask()
    keys = {} if number == 0 else _drawn(trial, space_of(entry.model))
    trial.set_user_attr("keys", keys)
    return {**entry.keys, **keys}


def _drawn(trial, space: dict) -> dict:
    keys = {}
    for key, found in space.items():
        if isinstance(found, list):
            keys[key] = trial.suggest_categorical(key, found)
        elif all(isinstance(found[end], int) for end in ("low", "high")):
            keys[key] = trial.suggest_int(key, found["low"], found["high"], log=_log(found))
        else:
            low, high = float(found["low"]), float(found["high"])
            value = trial.suggest_float(key, low, high, log=_log(found))
            keys[key] = float(f"{value:.4g}")  # as one would write it
    return keys


def _log(found: dict) -> bool:
    return bool(found.get("log", False))


def _tell(study, number: int, places: list[Path]) -> None:
    """The score of a trial; of runs for several domains their mean."""
    import optuna

    paths = [where / RECORD for where in places]
    if not all(path.is_file() for path in paths):
        study.tell(number, state=optuna.trial.TrialState.FAIL)
        return
    records = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    score = sum(record["best_valid_score"] for record in records) / len(records)
    study.tell(number, score if records[0]["bigger_is_better"] else -score)


def _best(study, folder: Path, spec: Spec, entry: Entry) -> tuple[dict, float]:
    scored = [trial for trial in study.get_trials(deepcopy=False) if trial.value is not None]
    if not scored:
        raise DataError(f"all trials of {entry.label} failed; see the logs in {folder / FOLDER}")
    best = max(scored, key=lambda trial: (trial.value, -trial.number))
    return dict(best.user_attrs["keys"]), best.value
