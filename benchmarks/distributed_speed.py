"""How much faster two processes train TEMA than one, one thread each, and whether as well.

    python benchmarks/distributed_speed.py --epochs=8       # ml-100k-genre, 3 seeds, 12 minutes
    python benchmarks/distributed_speed.py --epochs=3 --seeds=1 MAX_ITEM_LIST_LENGTH=20

Histories are of 50 events, RecBole's default, unless KEY=VALUE arguments say otherwise.

For each seed the runs with one and with two processes follow each other, on the CPU with gloo. The
result is in results/distributed_speed.json: seconds of an epoch (the median over the epochs but the
first), their ratio, and the test NDCG@10 of both.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import mean, median, stdev

ROOT = Path(__file__).resolve().parent.parent
EPOCH = re.compile(r"epoch (\d+) training \[time: ([\d.]+)s")
TEST = re.compile(r"test result.*?'ndcg@10': ([\d.]+)")


def train(nproc: int, seed: int, options, folder: Path) -> dict:
    """Train once; seconds of each epoch and the test NDCG@10."""
    keys = {
        **{"model": options.model, "dataset": options.dataset, "epochs": options.epochs},
        **{"seed": seed, "nproc": nproc, "threads": 1, "show_progress": False, "gpu_id": ""},
        "verbose": True,  # RecBole's line has the seconds of the training alone
        "checkpoint_dir": folder / f"{nproc}-{seed}",
        **options.keys,
    }
    command = [sys.executable, "-W", "ignore", str(ROOT / "run_recbole_tema.py")]
    command += [f"--{key}={value}" for key, value in keys.items()]
    if options.data_path:
        command.append(f"--data_path={options.data_path}")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    text = done.stdout + done.stderr
    seconds = [float(found[1]) for found in EPOCH.findall(text)]
    return {"seconds": seconds, "ndcg@10": float(TEST.search(text)[1])}


def main() -> None:
    """Run all and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="TEMA")
    parser.add_argument("--dataset", default="ml-100k-genre")
    parser.add_argument("--data_path")
    parser.add_argument("--epochs", type=int, default=300, help="at most; early stopping ends it")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "distributed_speed.json")
    parser.add_argument("keys", nargs="*", metavar="KEY=VALUE", help="keys of the runs")
    options = parser.parse_args()
    given = dict(text.split("=", 1) for text in options.keys)
    options.keys = {"MAX_ITEM_LIST_LENGTH": "50", "window_stride": "None", **given}
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(2020, 2020 + options.seeds):
            for nproc in (1, 2):
                found = train(nproc, seed, options, Path(folder))
                typical = median(found["seconds"][1:] or found["seconds"])
                runs.append({"nproc": nproc, "seed": seed, "epoch_seconds": typical, **found})
                print(
                    f"seed {seed}, {nproc} process(es): {typical:.2f} s an epoch, "
                    f"{len(found['seconds'])} epochs, test NDCG@10 {found['ndcg@10']:.4f}",
                    flush=True,
                )
    one, two = ([run for run in runs if run["nproc"] == n] for n in (1, 2))
    ratio = [a["epoch_seconds"] / b["epoch_seconds"] for a, b in zip(one, two, strict=True)]
    quality = {n: [run["ndcg@10"] for run in part] for n, part in ((1, one), (2, two))}
    result = {
        **{"model": options.model, "dataset": options.dataset, "date": date.today().isoformat()},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("torch", "recbole", "numpy")},
        "keys": options.keys,
        "speedup": ratio,
        "speedup_median": median(ratio),
        "ndcg@10_mean": {n: mean(found) for n, found in quality.items()},
        "ndcg@10_std": {
            n: stdev(found) if len(found) > 1 else None for n, found in quality.items()
        },
        "runs": runs,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"speed-up {median(ratio):.2f}x; NDCG@10 {result['ndcg@10_mean']}; {options.out}")


if __name__ == "__main__":
    main()
