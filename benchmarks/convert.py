"""Conversion of a generated pair of Amazon-like categories: memory, and speed against loops.

    python benchmarks/convert.py [--reviews 20000000] [--memory 4GB] [--work FOLDER]

Two gzip files of reviews in the form of 2018 are generated (half of the users in both domains,
popularity by a power law), and converted with 5-core users and items: peak memory of the process
and seconds. Then the first million reviews are converted by the command and, in this same run, by
the dict-and-list way of the usual notebooks: json.loads a line, dicts of lists, and loops for the
cores. Writes results/convert.json.
"""

import argparse
import gzip
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from datetime import date
from pathlib import Path

import duckdb
import numpy as np

RESULTS = Path(os.environ.get("RESULTS_DIR", Path(__file__).resolve().parent.parent / "results"))
CORE = 5
BLOCK = 200_000
TEXT = "It does what it says, and the box came in good order. " * 4


def generate(folder: Path, reviews: int, seed: int) -> list[Path]:
    """Write both files; users come back in both domains, so that they overlap."""
    rng = np.random.default_rng(seed)
    users, items = max(100, reviews // 12), max(50, reviews // 60)
    paths = []
    for domain in range(2):
        path = folder / f"domain{domain}.json.gz"
        with gzip.open(path, "wt", compresslevel=1) as file:
            for start in range(0, reviews // 2, BLOCK):
                n = min(BLOCK, reviews // 2 - start)
                who = rng.integers(users // 2, size=n) + domain * users // 4
                what = (items * rng.random(n) ** 2.5).astype(np.int64)
                when = rng.integers(1_400_000_000, 1_600_000_000, size=n)
                stars = rng.integers(1, 6, size=n)
                file.writelines(
                    f'{{"overall": {s}.0, "verified": true, "reviewerID": "A{u:012d}", '
                    f'"asin": "B{domain}{i:08d}", "reviewText": "{TEXT}", '
                    f'"unixReviewTime": {t}}}\n'
                    for u, i, t, s in zip(
                        who.tolist(), what.tolist(), when.tolist(), stars.tolist(), strict=True
                    )
                )
        paths.append(path)
    return paths


def by_loops(paths: list[Path], limit: int) -> int:
    """The usual notebook: dicts of lists, cores until nothing changes; the events kept."""
    events = []
    for domain, path in enumerate(paths):
        with gzip.open(path, "rt") as file:
            for number, line in enumerate(file):
                if number == limit // len(paths):
                    break
                row = json.loads(line)
                events.append((row["reviewerID"], row["asin"], row["unixReviewTime"], domain))
    while True:
        by_user, by_item = defaultdict(list), defaultdict(list)
        for event in events:
            by_user[event[0]].append(event)
            by_item[event[1]].append(event)
        kept = [e for e in events if len(by_user[e[0]]) >= CORE and len(by_item[e[1]]) >= CORE]
        if len(kept) == len(events):
            break
        events = kept
    sequences = defaultdict(list)
    for event in sorted(events, key=lambda e: e[2]):
        sequences[event[0]].append(event)
    return len(events)


def by_command(paths: list[Path], folder: Path, memory: str) -> dict:
    """Run the command in a process of its own: seconds, peak memory, events kept."""
    started = time.perf_counter()
    command = [sys.executable, "-W", "ignore", "-m", "dataset_tools", "convert", "amazon", "pair"]
    command += [f"d{i}={path}" for i, path in enumerate(paths)]
    command += ["--user_core", str(CORE), "--item_core", str(CORE), "--memory", memory]
    command += ["--data_path", str(folder), "--force"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    with open(folder / "pair" / "pair.inter", "rb") as file:
        rows = sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b"")) - 1
    return {"seconds": round(seconds, 1), "peak_gb": round(peak / 2**30, 2), "kept": rows}


def first_lines(paths: list[Path], folder: Path, limit: int) -> list[Path]:
    """The first `limit` reviews of both files, as files."""
    cut = []
    for path in paths:
        cut.append(folder / f"first-{path.name}")
        with gzip.open(path, "rb") as source, gzip.open(cut[-1], "wb", compresslevel=1) as target:
            for number, line in enumerate(source):
                if number == limit // len(paths):
                    break
                target.write(line)
    return cut


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--reviews", type=int, default=20_000_000)
    parser.add_argument("--compared", type=int, default=1_000_000)
    parser.add_argument("--memory", default="4GB")
    parser.add_argument("--seed", type=int, default=2020)
    parser.add_argument("--work", type=Path, help="folder for some GB of temporary files")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.work) as work:
        folder = Path(work)
        paths = generate(folder, args.reviews, args.seed)
        few = first_lines(paths, folder, args.compared)
        ours = by_command(few, folder, args.memory)
        started = time.perf_counter()
        kept = by_loops(few, args.compared)
        loops = time.perf_counter() - started
        assert kept == ours["kept"], (kept, ours["kept"])
        whole = by_command(paths, folder, args.memory)
    record = {
        "compared_reviews": args.compared,
        "command": {**ours, "reviews_per_second": round(args.compared / ours["seconds"])},
        "loops": {"seconds": round(loops, 1), "reviews_per_second": round(args.compared / loops)},
        "ratio": round(loops / ours["seconds"], 2),
        "reviews": args.reviews,
        "memory": args.memory,
        "whole": {**whole, "reviews_per_second": round(args.reviews / whole["seconds"])},
        "seed": args.seed,
        "date": date.today().isoformat(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "duckdb": duckdb.__version__,
    }
    print(json.dumps(record, indent=1))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "convert.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
