"""A search of each model's own space on validation data, with the same number of trials for all.

    RESULTS/tune/LABEL.journal       Optuna's record of the trials
    RESULTS/tune/LABEL-trialN/       a run as in the benchmark, without test targets

A trial's keys depend on the seed, its number and the results of those before it, so that a search
that was interrupted ends as one that was not.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole_tema.benchmark.record import RECORD
from recbole_tema.benchmark.runner import Job, has_begun, open_results, run_jobs, shows_progress
from recbole_tema.benchmark.spec import Entry, Spec, as_json, resolved, run_name
from recbole_tema.config.files import load_yaml, properties_dir
from recbole_tema.errors import ConfigError, DataError, how_to_get

if TYPE_CHECKING:
    from optuna import Study, Trial

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


@dataclass
class Search:
    """What a search found.

    Attributes:
        spec: With the best keys of each entry; entries of which all trials failed are left out.
        trials: Label -> trials that have a score. failed: Name of a trial -> its log.
    """

    spec: Spec
    trials: dict[str, int] = field(default_factory=dict)
    failed: dict[str, Path] = field(default_factory=dict)


def tuned(
    folder: Path,
    spec: Spec,
    statement: dict,
    trials: int,
    jobs: int,
    say: Callable[[str], None],
) -> Search:
    """The best keys that the first `trials` trials of each entry found.

    The first trial has the keys that are given, so that a search never ends worse than none. A
    trial that failed is tried again with the same keys when the search is asked for again.

    Args:
        statement: What is searched (`spec.stated`).

    Raises:
        ConfigError: a space is refused, or gives a key that is given too, or the folder holds
            trials of other data, keys or spaces.
        DataError: Optuna is missing, all trials of all entries failed, the dataset has nothing to
            validate on, or the folder cannot be written.
    """
    open_results(folder / FOLDER, _with_spaces(statement), write=jobs > 0)
    for entry in spec.entries:
        if jobs and not has_begun(folder / FOLDER, entry.label):
            _journal(folder, spec, entry).unlink(missing_ok=True)  # it may be of another space
    studies = {entry.label: _study(folder, spec, entry) for entry in spec.entries}
    search = Search(spec)
    for number in range(trials):
        wanted: list[Job] = []
        asked: dict[str, list[Path]] = {}
        for entry in spec.entries:
            study = studies[entry.label]
            if not jobs and number >= len(study.get_trials(deepcopy=False)):
                raise ConfigError(
                    f"--jobs=0 runs nothing, and trial {number + 1} of {trials} of {entry.label} "
                    "has not begun"
                )
            keys = _keys_of_trial(study, spec, entry, number)
            if keys is None:
                continue
            asked[entry.label] = []
            kept = replace(entry, keys=keys)
            depends = {"content": statement["content"], "keys": resolved(spec, kept)}
            for domain in entry.targets:
                name = f"{entry.label}, trial {number + 1} of {trials}"
                name += f", to {domain}" if domain else ""
                run = run_name(entry.label, spec.seeds[0], domain)
                where = folder / FOLDER / f"{run}-trial{number}"
                text = as_json(spec, kept, spec.seeds[0], domain, depends, phases=("valid",))
                wanted.append(Job(name, where, text))
                asked[entry.label].append(where)
        if wanted and jobs:
            title = f"trials {number + 1} of {trials}"
            search.failed |= run_jobs(
                wanted, jobs, title, lambda text: None, shows_progress(spec)
            ).failed
        for label, places in asked.items():
            if jobs and all((where / RECORD).is_file() for where in places):
                studies[label].tell(number, _score(places))
    found = []
    for entry in spec.entries:
        scored = _scored(studies[entry.label], trials)
        if not scored:
            say(f"failed: all trials of {entry.label}; it is left out")
            continue
        search.trials[entry.label] = len(scored)
        best = max(scored, key=lambda trial: (trial.value, -trial.number))
        keys, score = dict(best.user_attrs["keys"]), best.value
        shown = ", ".join(f"{key} {value}" for key, value in keys.items()) or "the given keys"
        few = "" if len(scored) == trials else f" ({len(scored)} of {trials} trials have a score)"
        say(f"{entry.label}: best validation score {score:.4f} with {shown}{few}")
        found.append(replace(entry, keys={**entry.keys, **keys}))
    if not found:
        raise DataError(f"all trials failed; see the logs in {folder / FOLDER}")
    search.spec = replace(spec, entries=tuple(found))
    return search


def _with_spaces(statement: dict) -> dict:
    """A statement in which the space counts as one of an entry's keys."""
    entries = {
        label: {**entry, "keys": {**entry["keys"], "space": space_of(entry["model"])}}
        for label, entry in statement["entries"].items()
    }
    return {**statement, "entries": entries}


def _journal(folder: Path, spec: Spec, entry: Entry) -> Path:
    return folder / FOLDER / f"{run_name(entry.label, spec.seeds[0])}.journal"


def _study(folder: Path, spec: Spec, entry: Entry) -> "Study":
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError:
        raise DataError(f"optuna is not installed: {how_to_get('benchmark')}") from None
    optuna.logging.set_verbosity(logging.ERROR)
    given = set(spec.keys) | set(entry.keys)
    both = sorted(given & set(space_of(entry.model)))
    if both:
        raise ConfigError(
            f"{', '.join(both)} of {entry.label} is given and searched; leave it out, or take it "
            "out of properties/hyper"
        )
    path = _journal(folder, spec, entry)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        backend = JournalFileBackend(str(path))
        return optuna.create_study(
            storage=JournalStorage(backend),
            study_name=entry.label,
            direction="maximize",
            load_if_exists=True,
        )
    except OSError as error:
        raise DataError(f"{path.parent} cannot be written: {error.strerror or error}") from None


def _keys_of_trial(study: "Study", spec: Spec, entry: Entry, number: int) -> dict | None:
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


def _drawn(trial: "Trial", space: dict) -> dict:
    keys: dict[str, Any] = {}
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


def _score(places: list[Path]) -> float:
    """The score of a trial that has finished, more is better; of runs for several domains their
    mean."""
    records = [json.loads((where / RECORD).read_text(encoding="utf-8")) for where in places]
    scores = [record["best_valid_score"] for record in records]
    if None in scores:
        raise DataError(
            f"{places[scores.index(None)]}: no validation target, so nothing to tune by"
        )
    score = sum(scores) / len(scores)
    return score if records[0]["bigger_is_better"] else -score


def _scored(study: "Study", trials: int) -> list:
    """Those of the first `trials` trials that have a score."""
    return [t for t in study.get_trials(deepcopy=False)[:trials] if t.value is not None]
