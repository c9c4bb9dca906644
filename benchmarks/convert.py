"""Conversion of a generated pair of Amazon-like categories: memory, and speed against loops.

    python benchmarks/convert.py [--reviews 20000000] [--memory 4GB] [--work FOLDER]

Reviews and metadata in the form of the release of 2018 are generated, with its proportions (a
metadata line for 12 reviews, 13 reviews an item, 2 a user, both with long tails; half of the users
are in both domains), and converted with 5-core users and 3-core items: peak memory of the process,
and seconds. The first million reviews are converted by the command and, in this same run, by
dicts and lists in the way of LLM4CDSR's notebook (`loops`): every line becomes a dict in a list,
then tuples, then lists with their domain; passes of loops for the window of time and for the cores;
maps of ids; sorted sequences; and the metadata of the items that are kept, which the notebook
looks up in a list of ids (`official`) and which could be looked up in a dict (`mended`). It departs
from the notebook where that makes it faster (json.loads for eval) or is needed for the same events
(a core keeps counts of exactly k, and users and items below it go until none is left).

Writes results/convert.json.
"""

import argparse
import gzip
import json
import multiprocessing
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from datetime import date
from functools import partial
from pathlib import Path

import duckdb
import numpy as np

RESULTS = Path(os.environ.get("RESULTS_DIR", Path(__file__).resolve().parent.parent / "results"))
USER_CORE, ITEM_CORE = 5, 3
BLOCK = 200_000
SYLLABLES = ("pre", "con", "dis", "tra", "mo", "li", "sun", "ga", "tor", "pe", "ment", "ter", "ing")


def texts_of(rng: np.random.Generator, number: int, words: float) -> list[str]:
    """Texts of made-up words, their lengths as skewed as those of reviews."""
    made = ["".join(rng.choice(SYLLABLES, size=2)) for _ in range(400)]
    lengths = rng.gamma(1.0, words, size=number).astype(int) + 1
    return [" ".join(rng.choice(made, size=n)) for n in lengths]


def generate(folder: Path, reviews: int, seed: int, domain: int) -> tuple[Path, Path]:
    """Write one domain's reviews and metadata; users come back in both domains."""
    rng = np.random.default_rng([seed, domain])
    mine = reviews // 2
    users, items, lines = mine // 2, mine // 13, mine // 12
    texts, short = texts_of(rng, 5000, 40), texts_of(rng, 500, 4)
    paths = folder / f"domain{domain}.json.gz", folder / f"meta{domain}.json.gz"
    with gzip.open(paths[0], "wt", compresslevel=3) as file:
        for start in range(0, mine, BLOCK):
            n = min(BLOCK, mine - start)
            who = (users * rng.random(n) ** 2.5).astype(np.int64)
            who += np.where(who % 2, 0, domain * users)  # odd numbers are in both
            what = (items * rng.random(n) ** 2.5).astype(np.int64)
            when = rng.integers(1_400_000_000, 1_600_000_000, size=n)
            said = rng.integers(len(texts), size=n)
            stars = rng.integers(1, 6, size=n)
            columns = (c.tolist() for c in (who, what, when, stars, said))
            file.writelines(
                f'{{"overall": {s}.0, "verified": true, "reviewTime": "11 9, 2012", '
                f'"reviewerID": "A{u:012d}", "asin": "B{domain}{i:08d}", '
                f'"style": {{"Size:": " Large", "Color:": " Blue"}}, "reviewerName": "M. Jones", '
                f'"reviewText": "{texts[w]}", "summary": "{short[w % len(short)]}", '
                f'"unixReviewTime": {t}}}\n'
                for u, i, t, s, w in zip(*columns, strict=True)
            )
    with gzip.open(paths[1], "wt", compresslevel=3) as file:
        for i in range(lines):  # a few of nobody's items, as in the release
            line = {
                "category": ["All", "Sports", short[i % 50], short[i % 70]],
                "description": [texts[i % len(texts)]],
                "title": short[i % len(short)],
                "also_buy": [f"B{domain}{(i * k) % items:08d}" for k in range(1, 20)],
                "image": [f"https://images.example/{i}-{k}.jpg" for k in range(3)],
                "brand": short[i % 90],
                "feature": [short[(i * k) % len(short)] for k in range(1, 6)],
                "rank": f"{i} in Sports",
                "price": f"${i % 90}.{i % 100:02d}",
                "asin": f"B{domain}{i:08d}",
            }
            file.write(json.dumps(line) + "\n")
    return paths


def by_loops(reviews: list[Path], metadata: list[Path], official: bool) -> dict:
    """The notebook's way; seconds of its two halves, events and items with metadata."""
    started = time.perf_counter()
    window = (1_300_000_000, 1_700_000_000)
    data = []
    for domain, path in enumerate(reviews):
        lines = []
        with gzip.open(path, "rb") as file:
            for line in file:
                lines.append(json.loads(line.decode()))
        datas = []
        for row in lines:
            if float(row["overall"]) <= 0:
                continue
            datas.append((row["reviewerID"], row["asin"], int(row["unixReviewTime"])))
        for row in datas:
            row = list(row)
            row.append(domain)
            data.append(row)
    data = [row for row in data if window[0] < row[2] < window[1]]
    whole = False
    users, items, _ = counted(data)
    while not whole:
        kept = []
        domains = {d: {"user": [], "item": []} for d in range(len(reviews))}
        for row in data:
            user, item, _, domain = row
            if items[item] >= ITEM_CORE and users[user] >= USER_CORE:
                kept.append(row)
                domains[domain]["user"].append(user)
                domains[domain]["item"].append(item)
        users, items, whole = counted(kept)
        data = kept
    ids, numbers = mapped(data, len(reviews))
    seconds = time.perf_counter() - started
    found = 0
    for domain, path in enumerate(metadata):
        known = list(ids[domain]) if official else ids[domain]
        infos = []
        with gzip.open(path, "rb") as file:
            for line in file:
                infos.append(json.loads(line))
        datas = {}
        for info in infos:
            if info["asin"] not in known:
                continue
            datas[info["asin"]] = info
        found += len(datas)
    whole_seconds = time.perf_counter() - started
    return {
        "reviews_s": round(seconds, 1),
        "seconds": round(whole_seconds, 1),
        "kept": sum(map(len, numbers.values())),
        "described": found,
    }


def counted(data: list) -> tuple[dict, dict, bool]:
    """Events of each user and item, and whether all have enough."""
    users, items = {}, {}
    for row in data:
        user, item, _, _ = row
        if user not in users:
            users[user] = 1
        else:
            users[user] += 1
        if item not in items:
            items[item] = 1
        else:
            items[item] += 1
    enough = all(n >= USER_CORE for n in users.values())
    return users, items, enough and all(n >= ITEM_CORE for n in items.values())


def mapped(data: list, domains: int) -> tuple[dict, dict]:
    """Numbers of the items of each domain, and every user's sequence of them by time."""
    ids = {domain: {} for domain in range(domains)}
    users, sequences = {}, {}
    for user, item, when, domain in data:
        if item not in ids[domain]:
            ids[domain][item] = len(ids[domain]) + 1
        if user not in users:
            users[user] = len(users) + 1
            sequences[users[user]] = [(ids[domain][item], domain, when)]
        else:
            sequences[users[user]].append((ids[domain][item], domain, when))
    numbers = {}
    for user, events in sequences.items():
        events.sort(key=lambda event: event[2])
        numbers[user] = [event[0] for event in events]
    return ids, numbers


def by_command(reviews: list[Path], metadata: list[Path], folder: Path, memory: str) -> dict:
    """Run the command in a process of its own: seconds, peak memory, events kept."""
    started = time.perf_counter()
    command = [sys.executable, "-W", "ignore", "-m", "dataset_tools", "convert", "amazon", "pair"]
    command += [f"d{i}={path}" for i, path in enumerate(reviews)]
    command += [part for i, path in enumerate(metadata) for part in ("--metadata", f"d{i}={path}")]
    command += ["--user_core", str(USER_CORE), "--item_core", str(ITEM_CORE), "--memory", memory]
    command += ["--data_path", str(folder), "--force"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    with open(folder / "pair" / "pair.inter", "rb") as file:
        rows = sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b"")) - 1
    described = 0
    if metadata:
        lines = (folder / "pair" / "pair.item").read_text().splitlines()
        title = [cell.split(":")[0] for cell in lines[0].split("\t")].index("title")
        described = sum(bool(line.split("\t")[title]) for line in lines[1:])
    record = {"seconds": round(seconds, 1), "peak_gb": round(peak / 2**30, 2)}
    return record | {"kept": rows, "described": described}


def first_lines(path: Path, folder: Path, limit: int) -> Path:
    """The first lines of a file, as a file."""
    target = folder / f"first-{path.name}"
    with gzip.open(path, "rb") as source, gzip.open(target, "wb", compresslevel=3) as cut:
        for number, line in enumerate(source):
            if number == limit:
                break
            cut.write(line)
    return target


def compare(reviews: list[Path], metadata: list[Path], folder: Path, memory: str) -> dict:
    """The command and both ways of loops on the same files, with and without metadata."""
    command = by_command(reviews, metadata, folder, memory)
    bare = by_command(reviews, [], folder, memory)
    # In processes of their own: a child's peak memory begins with that of the parent it comes from.
    with multiprocessing.Pool(1, maxtasksperchild=1) as pool:
        official, mended = pool.map(partial(by_loops, reviews, metadata), [True, False], 1)
    for loops in (official, mended):
        same = (loops["kept"], loops["described"]) == (command["kept"], command["described"])
        assert same, (loops, command)
    return {
        "command": command,
        "command without metadata": bare,
        "loops": {"official": official, "mended": mended},
        "ratio": round(official["seconds"] / command["seconds"], 1),
        "ratio, mended": round(mended["seconds"] / command["seconds"], 1),
        "ratio, reviews alone": round(official["reviews_s"] / bare["seconds"], 1),
    }


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
        few = folder / "few"
        few.mkdir()
        with multiprocessing.Pool(2) as pool:
            small = pool.map(partial(generate, few, args.compared, args.seed), range(2))
            made = pool.map(partial(generate, folder, args.reviews, args.seed), range(2))
        record = {
            "compared_reviews": args.compared,
            **compare(*(list(kind) for kind in zip(*small, strict=True)), folder, args.memory),
        }
        whole = by_command(*(list(kind) for kind in zip(*made, strict=True)), folder, args.memory)
    record |= {
        "reviews": args.reviews,
        "memory": args.memory,
        "whole": {**whole, "reviews_per_second": round(args.reviews / whole["seconds"])},
        "seed": args.seed,
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "duckdb": duckdb.__version__,
    }
    print(json.dumps(record, indent=1))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "convert.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
