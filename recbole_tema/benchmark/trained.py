"""Models of a finished benchmark, ranked again under another protocol of evaluation."""

import json
import shutil
from pathlib import Path
from typing import Any

from recbole_tema.benchmark.spec import differences
from recbole_tema.errors import ConfigError, DataError

# Keys that say how a trained model is evaluated and nothing of how it was trained. valid_metric is
# none of them: by it the best epoch was chosen.
EVALUATION = (
    *("eval_args", "eval_neg_seed", "eval_groups", "eval_batch_size"),
    *("candidates", "exclude_history", "metrics", "topk", "metric_decimal_place"),
)
# RecBole's, made from eval_args.
DERIVED = ("valid_neg_sample_args", "test_neg_sample_args")


def changed_keys(trained: Path, statement: dict, path: Path) -> dict[str, dict[str, Any]]:
    """Label -> keys of the evaluation that are not what they were when the models were trained.

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
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(
            f"--trained: {trained} is no folder of a benchmark's results: no readable {path.name}"
        ) from None
    absent = [label for label in statement["entries"] if label not in entries]
    if absent:
        raise ConfigError(
            f"--trained: {trained} has no {', '.join(absent)}; there are {', '.join(entries)}"
        )
    ours = {**statement, "ranked_again": there.get("ranked_again")}
    ours["entries"], changed = {}, {}
    for label, entry in statement["entries"].items():
        old, keys = entries[label]["keys"], dict(entry["keys"])
        changed[label] = {k: keys[k] for k in EVALUATION if k in keys and keys[k] != old.get(k)}
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
            f"only keys of the evaluation can change: {', '.join(EVALUATION)}"
        )
    return changed


def finished_run(folder: Path, record: str, curve: str, here: Path) -> tuple[dict, Path]:
    """(record, checkpoint) of a run that was trained before; its validations are copied.

    Args:
        folder: Of that run. record, curve: Names of its files. here: Folder of the new run.

    Raises:
        DataError: it is not finished, or its model is gone.
    """
    try:
        found = json.loads((folder / record).read_text(encoding="utf-8"))
        model = folder / found["model_file"]
        if (folder / curve).is_file():
            shutil.copyfile(folder / curve, here / curve)
    except (OSError, ValueError, KeyError):
        raise DataError(f"{folder} holds no finished run to rank again; train it first") from None
    if not model.is_file():
        raise DataError(f"{model}: the trained model is gone; train it again")
    return found, model
