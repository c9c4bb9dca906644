"""Seconds and peak memory of a training step of TEMA as the catalogue grows, beside SASRec's.

    python benchmarks/catalogue_scale.py                                    # an hour, 24 GB
    python benchmarks/catalogue_scale.py --items 3000 30000 --events 200000 --steps 10 --out x.json

For each catalogue a dataset of two domains is generated: Zipf popularity, histories of
MAX_ITEM_LIST_LENGTH events on average. Each model has a process of its own; it reads the files,
takes some steps that are not counted, then steps whose median is. TEMA has ids alone and samples
its softmax; SASRec is RecBole's own class with its softmax over the catalogue, in the batches that
this package makes for it. A model that does not fit into --memory is told as such.
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
from statistics import median
from time import perf_counter, process_time

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
NAME = "generated"
MODELS = ("TEMA", "SASRec")


def generate(folder: Path, n_items: int, n_events: int, length: int, seed: int = 0) -> None:
    """Write ``n_events`` events of ``n_events / length`` users, in the order of time."""
    rng = np.random.default_rng(seed)
    users = rng.integers(max(1, n_events // length), size=n_events)
    ranks = np.minimum(rng.zipf(1.3, size=n_events), n_items) - 1
    items = rng.permutation(n_items)[ranks]
    folder.mkdir(parents=True)
    with open(folder / f"{NAME}.inter", "w") as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        rows = enumerate(zip(users.tolist(), items.tolist(), strict=True))
        file.writelines(f"u{user}\ti{item}\t{time}\n" for time, (user, item) in rows)
    with open(folder / f"{NAME}.item", "w") as file:
        file.write("item_id:token\tdomain:token\n")
        file.writelines(f"i{item}\t{'ab'[item % 2]}\n" for item in range(n_items))


def peak_mb() -> int:
    """Most memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def measure(args) -> None:
    """One model's steps in this process; prints a line of JSON."""
    if args.memory:
        resource.setrlimit(resource.RLIMIT_AS, (int(args.memory * 2**30),) * 2)
    import torch
    from recbole.utils import init_seed

    from recbole_tema.config.tema_config import TemaConfig
    from recbole_tema.data.preparation import create_dataset, data_preparation
    from recbole_tema.trainer.factory import build_trainer
    from recbole_tema.trainer.memory import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(args.threads)
    keys = {"data_path": args.root, "MAX_ITEM_LIST_LENGTH": args.length, "state": "error"}
    keys |= {"train_batch_size": args.batch, "show_progress": False, "checkpoint_dir": args.root}
    if args.one == "TEMA":
        keys |= {"full_softmax_items": 1, "sampled_softmax_items": args.negatives}
    config = TemaConfig(args.one, NAME, config_dict=keys)
    init_seed(config["seed"], True)
    start = perf_counter()
    dataset = create_dataset(config, config.model_class)
    train_data = data_preparation(config, dataset, config.model_class).train_data
    ready = perf_counter() - start
    model = config.model_class(config, train_data.dataset)
    trainer = build_trainer(config, model, dataset)
    found = {"seconds_to_prepare": round(ready, 1), "peak_mb_prepared": peak_mb()}
    seconds, cpu = [], []
    model.train()
    batches = iter(train_data)
    for _ in range(args.warmup + args.steps):
        batch = next(batches)
        before = perf_counter(), process_time()
        trainer.optimizer.zero_grad()
        loss = model.calculate_loss(batch)
        (sum(loss) if isinstance(loss, tuple) else loss).backward()
        trainer.optimizer.step()
        seconds.append(perf_counter() - before[0])
        cpu.append(process_time() - before[1])
    found |= {
        "step_seconds": round(median(seconds[args.warmup :]), 4),
        "step_cpu_seconds": round(median(cpu[args.warmup :]), 4),
        "peak_mb": peak_mb(),
    }
    print(json.dumps(found))


def run(model: str, root: str, args) -> dict:
    """What `measure` found of a model, or why it found nothing."""
    command = [sys.executable, "-W", "ignore", __file__, "--one", model, "--root", root]
    for name in ("length", "batch", "negatives", "steps", "warmup", "threads", "memory"):
        command += [f"--{name}", str(getattr(args, name))]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=root, timeout=args.patience, check=False
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not done within {args.patience} s"}
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return {"failed": lines[-1][:200]}
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure all and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--items", type=int, nargs="+", default=[30_000, 300_000, 3_000_000])
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--length", type=int, default=256, help="MAX_ITEM_LIST_LENGTH")
    parser.add_argument("--batch", type=int, default=1024, help="targets of a batch")
    parser.add_argument("--negatives", type=int, default=4096, help="sampled_softmax_items")
    parser.add_argument("--steps", type=int, default=50, help="steps that are counted")
    parser.add_argument("--warmup", type=int, default=5, help="steps before them")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", type=float, default=0, help="GB a process may have; 0: any")
    parser.add_argument("--patience", type=int, default=3600, help="seconds a process may take")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "catalogue_scale.json")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--root", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        return measure(args)
    runs = []
    for n_items in args.items:
        with tempfile.TemporaryDirectory() as root:
            generate(Path(root) / NAME, n_items, args.events, args.length)
            for model in args.models:
                runs.append({"model": model, "items": n_items, **run(model, root, args)})
                print(json.dumps(runs[-1]), flush=True)
    steps = {}
    for found in runs:
        if "step_seconds" in found:
            steps.setdefault(found["model"], []).append(found["step_seconds"])
    shared = ("events", "length", "batch", "negatives", "steps", "threads", "memory")
    report = {
        **{name: getattr(args, name) for name in shared},
        "times_the_first_step": {
            model: round(seconds[-1] / seconds[0], 2) for model, seconds in steps.items()
        },
        "runs": runs,
        "versions": {name: version(name) for name in ("recbole", "torch", "numpy")},
        **{"python": platform.python_version(), "date": date.today().isoformat()},
    }
    args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"times the first step: {report['times_the_first_step']}; {args.out}")


if __name__ == "__main__":
    main()
