"""Time and peak memory to build the training data of 1 M interactions: ours against RecBole's.

    python benchmarks/dataset_memory.py [--events 1000000] [--out FILE]

Each side runs in a process of its own on the same files: read the atomic files, split, make the
training loader's data. Counted is the peak resident memory above the process's own after its
imports.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path
from time import perf_counter

import numpy as np

NAME = "generated"


def generate(folder: Path, n_events: int, seed: int = 0):
    """Write a two-domain dataset of ``n_events`` events: 10 an item at least, 40 a user."""
    rng = np.random.default_rng(seed)
    n_users, n_items = max(2, n_events // 40), max(20, n_events // 50)
    users = np.concatenate(
        [np.repeat(np.arange(n_users), 4), rng.integers(n_users, size=n_events - 4 * n_users)]
    )
    items = np.minimum(rng.zipf(1.3, size=n_events), n_items) - 1
    folder.mkdir(parents=True)
    with open(folder / f"{NAME}.inter", "w") as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        rows = enumerate(zip(users, items, strict=True))
        file.writelines(f"u{u}\ti{i}\t{t}\n" for t, (u, i) in rows)
    with open(folder / f"{NAME}.item", "w") as file:
        file.write("item_id:token\tdomain:token\n")
        file.writelines(f"i{i}\t{'ab'[i % 2]}\n" for i in range(n_items))


def build(side: str, root: str):
    """Build the training data in this process and print seconds and peak memory."""
    from recbole.data.dataset import SequentialDataset
    from recbole.data.utils import create_samplers, get_dataloader

    from recbole_tema.config.tema_config import TemaConfig
    from recbole_tema.data.loader import SequenceTrainLoader
    from recbole_tema.data.preparation import create_dataset
    from recbole_tema.data.schema import detect

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = "TEMA" if side == "ours" else "SASRec"
    config = TemaConfig(model, NAME, config_dict={"data_path": root})
    start = perf_counter()
    if side == "ours":
        dataset = create_dataset(config, config.model_class)
        loader = SequenceTrainLoader(config, dataset.build()[0])
        targets = loader.n_targets
    else:
        config.set_data_defaults(detect(config["data_path"], NAME, config))
        dataset = SequentialDataset(config)
        built = dataset.build()
        sampler, _, _ = create_samplers(config, dataset, built)
        loader = get_dataloader(config, "train")(config, built[0], sampler, shuffle=True)
        targets = len(built[0])
    seconds = perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        json.dumps(
            {"seconds": round(seconds, 2), "peak_mb": (peak - before) // 1024, "targets": targets}
        )
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, help="write the numbers here as JSON too")
    parser.add_argument("--side", choices=("ours", "recbole"), help=argparse.SUPPRESS)
    parser.add_argument("--root", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        return build(args.side, args.root)
    report = {"events": args.events}
    with tempfile.TemporaryDirectory() as root:
        generate(Path(root) / NAME, args.events)
        for side in ("ours", "recbole"):
            command = [sys.executable, __file__, "--side", side, "--root", root]
            done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=root)
            report[side] = json.loads(done.stdout.splitlines()[-1])
            print(side, report[side], flush=True)
    ours, theirs = report["ours"], report["recbole"]
    report["times_faster"] = round(theirs["seconds"] / ours["seconds"], 1)
    report["times_smaller"] = round(theirs["peak_mb"] / max(1, ours["peak_mb"]), 1)
    report["versions"] = {name: version(name) for name in ("recbole", "pandas", "torch")}
    report |= {"python": platform.python_version(), "date": date.today().isoformat()}
    print(json.dumps(report, indent=2))
    if args.out:
        args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
