"""Train a suite of models over seeds and write its table: ``results/SUITE.jsonl`` and ``.md``.

    python benchmarks/quality.py benchmarks/suites/NAME.yaml [--data_path FOLDER] [--jobs 2]

A suite names a dataset, the seeds, keys common to all runs, and its runs: a label, a model, the
keys that differ, and maybe seeds or a dataset of its own. The suite and a run may name presets
(``preset: abxi``), which join; seeds that the suite does not give are those of its presets. Every
model is trained once a seed and evaluated under two protocols, the full in-domain ranking and 100
sampled ones, overall, per domain and for the least popular third of the targets. A run that is
already in the file is not repeated, so an interrupted suite goes on where it was. With
``search: true`` only validation metrics are computed and shown.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

import numpy as np
import yaml

PROTOCOLS = {"full": "full", "sampled": "uni100"}
RESULTS = Path(os.environ.get("RESULTS_DIR", Path(__file__).resolve().parent.parent / "results"))


def read_suite(path: Path) -> dict:
    """The suite, with every run's keys merged over the common ones."""
    from recbole_tema.benchmark.command import seeds_of
    from recbole_tema.config.presets import names_of, presets_of

    suite = yaml.safe_load(path.read_text())
    common = suite.get("common", {})
    for preset in presets_of(suite):
        if "seeds" in preset.benchmark:
            suite.setdefault("seeds", seeds_of(str(preset.benchmark["seeds"]).strip("[]")))

    def keys_of(run: dict) -> dict:
        presets = [*names_of(suite.get("preset")), *names_of(run.get("preset"))]
        return {**common, **(run.get("keys") or {}), **({"preset": presets} if presets else {})}

    suite["runs"] = {
        label: {
            "model": run["model"],
            "keys": keys_of(run),
            "seeds": run.get("seeds", suite["seeds"]),
            "dataset": run.get("dataset", suite["dataset"]),
        }
        for label, run in suite["runs"].items()
    }
    return suite


def run_id(suite: dict, label: str, seed: int) -> str:
    """Name of a run by all that its result depends on: new defaults make it another run."""
    from recbole_tema.config.tema_config import TemaConfig
    from recbole_tema.trainer.checkpoint import run_name

    run = suite["runs"][label]
    keys = {**run["keys"], "seed": seed}
    config = TemaConfig(run["model"], run["dataset"], config_dict=keys)
    return run_name(config)


def run_one(suite: dict, label: str, seed: int, data_path: str | None) -> dict:
    """Train and evaluate one run in this process."""
    import torch

    from recbole_tema.evaluation import popularity_notes, target_groups
    from recbole_tema.quick_start import rank_checkpoint, run_recbole_tema

    run = suite["runs"][label]
    keys = {**run["keys"], "seed": seed, "show_progress": False}
    if data_path:
        keys["data_path"] = data_path
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # RecBole writes its logs into the current folder
        result = run_recbole_tema(run["model"], run["dataset"], config_dict=keys)
        phases = ("valid",) if suite.get("search") else ("valid", "test")
        metrics = {}
        for name, mode in PROTOCOLS.items():
            keys_of_mode = {"eval_args": {"mode": mode}, "eval_groups": ["popularity"]}
            ranked = rank_checkpoint(result["model_file"], keys_of_mode, phases)
            metrics[name] = {phase: found[0] for phase, found in ranked.items()}
        # The same targets whatever they are ranked among.
        _, _, plan, dataset = ranked[phases[-1]]
        popularity = dataset.split_popularity()
        thirds = target_groups(plan, ["popularity"], popularity)
    seconds = result["epoch_seconds"]
    return {
        "label": label,
        "run": run_id(suite, label, seed),
        "model": run["model"],
        "dataset": run["dataset"],
        "seed": seed,
        "keys": run["keys"],
        "epochs": len(seconds),
        "seconds_per_epoch": round(float(np.median(seconds)), 2) if seconds else None,
        "metrics": metrics,
        "thirds": popularity_notes(popularity[plan.targets], thirds),
        "date": date.today().isoformat(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def start(args, label, seed):
    """Run :func:`run_one` in a process of its own; its record, or None if it failed."""
    command = [sys.executable, "-W", "ignore", __file__, str(args.suite), "--one", label, str(seed)]
    if args.data_path:
        command += ["--data_path", args.data_path]
    log = Path(tempfile.gettempdir()) / f"{args.suite.stem}-{label}-{seed}.log".replace("/", "_")
    with open(log, "w") as file:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=file, text=True)
    if done.returncode:
        print(f"{label} seed {seed} failed, see {log}", flush=True)
        return None
    print(f"{label} seed {seed} done", flush=True)
    return json.loads(done.stdout.splitlines()[-1])


def table(records: list, phases) -> str:
    """Mean and standard deviation over seeds, one row a label."""
    columns = [
        (f"{phase} {name} {metric}", phase, name, key)
        for phase in phases
        for name in PROTOCOLS
        for metric, key in (("NDCG@10", "ndcg@10"), ("HR@10", "hit@10"))
    ]
    domains = sorted(
        {
            key.split("/")[0]
            for record in records
            for key in record["metrics"]["full"][phases[-1]]
            if "/" in key and "=" not in key
        }
    )
    for part in [*domains, "popularity=low"]:
        for name in PROTOCOLS:
            columns.append((f"{phases[-1]} {name} {part}", phases[-1], name, f"{part}/ndcg@10"))
    lines = [
        "| run | seeds | s/epoch | epochs | " + " | ".join(c[0] for c in columns) + " |",
        "| --- " * (4 + len(columns)) + "|",
    ]
    for label in dict.fromkeys(record["label"] for record in records):
        mine = [record for record in records if record["label"] == label]
        cells = []
        for _, phase, name, key in columns:
            values = [record["metrics"][name][phase].get(key, float("nan")) for record in mine]
            spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.4f}{spread}")
        seconds = np.mean([record["seconds_per_epoch"] for record in mine])
        epochs = "/".join(str(record["epochs"]) for record in mine)
        presets = mine[0]["keys"].get("preset", [])
        named = label + (f" (preset {', '.join(presets)})" if presets else "")
        lines.append(
            f"| {named} | {len(mine)} | {seconds:.1f} | {epochs} | " + " | ".join(cells) + " |"
        )
    return "\n".join(lines)


def write_report(args, suite, records):
    """The Markdown file beside the records."""
    phases = ("valid",) if suite.get("search") else ("valid", "test")
    order = list(suite["runs"])
    # A record of other defaults than today's is no seed of today's run.
    current = {
        (label, run_id(suite, label, seed))
        for label, run in suite["runs"].items()
        for seed in run["seeds"]
    }
    records = sorted(
        (r for r in records if (r["label"], r.get("run")) in current),
        key=lambda r: (order.index(r["label"]), r["seed"]),
    )
    if not records:
        return
    first = records[0]
    held = next((record["thirds"] for record in records if "thirds" in record), None)
    held = f" ({'; '.join(held)})" if held else ""
    text = f"""# {args.suite.stem}

{suite.get("about", "").strip()}

`python benchmarks/quality.py benchmarks/suites/{args.suite.name}`: dataset `{suite["dataset"]}`,
seeds {", ".join(str(s) for s in suite["seeds"])}; {first["date"]}, {platform.machine()},
{first["threads"]} thread(s) a run, torch {first["torch"]}, Python {first["python"]}.
"full" ranks all items of the target's domain, "sampled" 100 of them drawn at random; the columns
without a metric's name are NDCG@10, `popularity=low` is the least popular third of the
targets{held}.
Mean ± standard deviation over seeds. Raw records: `{args.suite.stem}.jsonl`.

{table(records, phases)}
"""
    (RESULTS / f"{args.suite.stem}.md").write_text(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("suite", type=Path)
    parser.add_argument("--data_path")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--only", help="labels to run, separated by commas")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.suite = args.suite.resolve()
    if args.data_path:
        args.data_path = str(Path(args.data_path).resolve())
    suite = read_suite(args.suite)
    if args.one:
        print(json.dumps(run_one(suite, args.one[0], int(args.one[1]), args.data_path)))
        return
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{args.suite.stem}.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {(r["label"], r.get("run")) for r in records}
    todo = [
        (label, seed)
        for seed in sorted({seed for run in suite["runs"].values() for seed in run["seeds"]})
        for label, run in suite["runs"].items()
        if seed in run["seeds"]
        and (not args.only or label in args.only.split(","))
        and (label, run_id(suite, label, seed)) not in done
    ]
    with ThreadPoolExecutor(args.jobs) as pool:
        for record in pool.map(lambda job: start(args, *job), todo):
            if record is not None:
                with open(path, "a") as file:
                    file.write(json.dumps(record) + "\n")
                records.append(record)
                write_report(args, suite, records)
    write_report(args, suite, records)


if __name__ == "__main__":
    main()
