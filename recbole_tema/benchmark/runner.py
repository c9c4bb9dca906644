"""Runs of a benchmark, each in a process of its own, with their state on disk.

    RESULTS/benchmark.json         what the folder belongs to: dataset, and each row's keys
    RESULTS/runs/LABEL-seedN/      spec.json, log.txt, curve.jsonl, model/, and at its end
                                   valid.parquet, test.parquet (a row a target), run.json;
                                   with -to-DOMAIN where each domain is trained for

A run is finished when it has `run.json`. Whatever ends the benchmark, the same command goes on.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

import recbole_tema
from recbole_tema.benchmark.record import RECORD, read_record, statement_of
from recbole_tema.benchmark.spec import (
    RUNS,
    Spec,
    as_json,
    differences,
    run_folder,
    run_name,
    unlike,
)
from recbole_tema.benchmark.worker import SPEC as RUN_SPEC
from recbole_tema.data.atomic import replace_file
from recbole_tema.errors import ConfigError, DataError
from recbole_tema.progress import ProgressBar

STATEMENT, LOG = "benchmark.json", "log.txt"
PACKAGES = Path(recbole_tema.__file__).resolve().parents[1]  # where this package was found
POLL = 0.2
PATIENCE = 10  # seconds that a process has to end when it is told to


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        name: For messages. where: Its folder. spec: What it is, as JSON for its process.
    """

    name: str
    where: Path
    spec: str

    def is_done(self) -> bool:
        """Whether it is finished.

        Raises:
            DataError: a run of other keys or data is finished in its folder.
        """
        path = self.where / RECORD
        return path.is_file() and bool(read_record(path, json.loads(self.spec)["stated"]))


@dataclass
class Outcome:
    """How the runs ended.

    Attributes:
        done: Finished, now or before. failed: Name -> its log.
    """

    done: int = 0
    failed: dict[str, Path] = field(default_factory=dict)


def open_results(folder: Path, new: dict, write: bool = True) -> None:
    """Make a folder of results, or go on with one, if it belongs to this dataset and these keys.

    Args:
        new: What is to be run (`spec.stated`).
        write: State it in the folder; False: only look whether it fits.

    Raises:
        ConfigError: it belongs to others; the message says what differs.
        DataError: it cannot be read or written, or holds a run of other keys or data.
    """
    path = folder / STATEMENT
    try:
        (folder / RUNS).mkdir(parents=True, exist_ok=True)
        if path.is_file():
            old = json.loads(path.read_text(encoding="utf-8"))
            # A row of which nothing is done, as its keys were wrong, holds nobody to them.
            entries = old["entries"].items()
            old["entries"] = {label: e for label, e in entries if has_begun(folder, label)}
            found = differences(old, new)
            if found:
                shown = "\n  ".join(found[:10]) + ("\n  ..." if len(found) > 10 else "")
                raise ConfigError(
                    f"{folder} holds results of something else:\n  {shown}\n"
                    f"give another --results_dir, or what was given then{_or_delete(found, new)}"
                )
            for label, entry in new["entries"].items():  # how many trials chose its keys stays
                new["entries"][label] = {**old["entries"].get(label, {}), **entry}
            new["entries"] = {**old["entries"], **new["entries"]}
            if found := unlike(new["entries"]):
                shown = "\n  ".join(found[:10])
                raise ConfigError(
                    f"{folder} holds rows that were ranked otherwise:\n  {shown}\n"
                    "give another --results_dir, or what was given then"
                )
        for label in new["entries"]:
            for done in (folder / RUNS).glob(f"{_runs_of(label)}*/{RECORD}"):
                read_record(done, statement_of(new, label))
        if write:
            with replace_file(path) as file:
                file.write((json.dumps(new, indent=1) + "\n").encode())
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise DataError(f"{path}: no JSON ({error}); give another --results_dir") from None
    except OSError as error:
        raise DataError(f"{folder} cannot be written: {error.strerror or error}") from None


def has_begun(folder: Path, label: str) -> bool:
    """Whether a run of a row is finished, or has a checkpoint to go on from."""
    runs = f"{_runs_of(label)}*"
    found = [*(folder / RUNS).glob(runs), *folder.glob(runs)]  # of a search they lie in the folder
    return any((run / RECORD).is_file() or any(run.glob("model/*.pth")) for run in found)


def _runs_of(label: str) -> str:
    return run_name(label, 0).removesuffix("0")


def _or_delete(found: list[str], new: dict) -> str:
    labels = [label for label in new["entries"] if any(f.startswith(f"{label}: ") for f in found)]
    if sum(any(f.startswith(f"{label}: ") for label in labels) for f in found) < len(found):
        return ""  # other data: no row of the folder is of any use
    folders = ", ".join(f"{RUNS}/{_runs_of(label)}*" for label in labels)
    return f", or delete what there is of these rows ({folders})"


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Keep other benchmarks out of a folder of results.

    Raises:
        DataError: one works in it.
    """
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise DataError(f"{folder}: another benchmark works in it; wait until it ends") from None


def run_all(
    folder: Path,
    spec: Spec,
    statement: dict,
    jobs: int = 1,
    say: Callable[[str], None] = print,
) -> Outcome:
    """Do what is missing of a benchmark's runs, at most `jobs` at a time; failures stop no other.

    Args:
        statement: What the folder belongs to (`spec.stated`).

    Raises:
        DataError: a folder cannot be written, or holds a run of other keys or data.
    """
    wanted = [
        Job(
            f"{entry.label}, seed {seed}" + (f", to {domain}" if domain else ""),
            run_folder(folder, entry, seed, domain),
            as_json(spec, entry, seed, domain, statement_of(statement, entry.label)),
        )
        for entry, seed, domain in spec.runs()
    ]
    return run_jobs(wanted, jobs, "runs", say, shows_progress(spec))


def shows_progress(spec: Spec) -> bool:
    """Whether the keys of a benchmark want progress shown."""
    return spec.keys.get("show_progress", True) and not spec.keys.get("quiet", False)


def run_jobs(
    wanted: list[Job],
    jobs: int,
    title: str,
    say: Callable[[str], None] = print,
    progress: bool = True,
) -> Outcome:
    """Do the jobs that are not finished, at most `jobs` at a time.

    Args:
        progress: Show a bar, or a line a finished job where standard error is no terminal.

    Raises:
        DataError: a folder cannot be written, or holds a run of other keys or data.
    """
    waiting = [job for job in wanted if not job.is_done()]
    outcome = Outcome(done=len(wanted) - len(waiting))
    if outcome.done:
        say(f"{outcome.done} of {len(wanted)} {title} are there already")
    shown = progress and bool(waiting)
    bar = ProgressBar(
        total=len(wanted), initial=outcome.done, desc=title, unit="run", disable=not shown
    )
    running: dict[subprocess.Popen, Job] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                job = waiting.pop(0)
                running[_start(job, jobs)] = job
                bar.set_postfix_str("; ".join(job.name for job in running.values()))
            for process in [p for p in running if p.poll() is not None]:
                job = running.pop(process)
                if process.returncode == 0 and job.is_done():
                    outcome.done += 1
                    if shown and bar.disable:
                        ended = f"{outcome.done} of {len(wanted)} {title}: {job.name}"
                        print(ended, file=sys.stderr, flush=True)
                else:
                    outcome.failed[job.name] = job.where / LOG
                    bar.write(f"failed: {job.name}: {last_line(job.where / LOG)}")
                bar.update()
            time.sleep(POLL)
    finally:
        bar.close()
        _stop(list(running))
    return outcome


def _start(job: Job, jobs: int) -> subprocess.Popen:
    try:
        job.where.mkdir(parents=True, exist_ok=True)
        with replace_file(job.where / RUN_SPEC) as file:
            file.write(job.spec.encode())
        log = open(job.where / LOG, "a", encoding="utf-8")  # noqa: SIM115 (the process's)
    except OSError as error:
        raise DataError(f"{job.where} cannot be written: {error.strerror or error}") from None
    environment = dict(os.environ)
    if jobs > 1:
        share = str(max(1, (os.cpu_count() or 1) // jobs))
        environment.setdefault("OMP_NUM_THREADS", share)
    # Python looks for modules where it is started: there, no other copy of this package may lie.
    paths = [str(PACKAGES), *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    environment["PYTHONPATH"] = os.pathsep.join(os.path.abspath(path) for path in paths)
    command = [sys.executable, "-W", "ignore", "-m", "recbole_tema.benchmark.worker"]
    command.append(str(job.where))
    with log:
        return subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=job.where,
            start_new_session=True,
        )


def _stop(processes: list[subprocess.Popen]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def last_line(log: Path) -> str:
    """What a failed run said last."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    said = [line.strip() for line in lines if line.strip()]
    return f"{said[-1] if said else 'it said nothing'} (see {log})"
