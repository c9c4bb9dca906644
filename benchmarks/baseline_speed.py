"""Training steps of the baselines that are computed at less work, against RecBole's own classes.

    python benchmarks/baseline_speed.py [--dataset NAME] [--data_path FOLDER] [--features title]

Each pair starts from the same parameters, takes the same batches in turn and is timed step by
step, both without RecBole's debugging of gradients and with freed memory kept. The losses of a
step without dropout are compared first.
"""

import argparse
import json
import math
import platform
import statistics
from datetime import date
from pathlib import Path
from time import perf_counter

import torch
from recbole.utils import get_model, init_seed

from dataset_tools.builtin.datasets import BUILTIN, ensure_builtin
from recbole_tema.config.registry import get_model_class
from recbole_tema.config.tema_config import TemaConfig
from recbole_tema.data.preparation import create_dataset, data_preparation
from recbole_tema.trainer.memory import keep_freed_memory

MODELS = ("BERT4Rec", "FDSA", "GRU4RecF", "SASRecF")
WARM_UP = 2


def measure(name, args):
    """Median seconds of a step of both classes, their ratio and their losses without dropout."""
    keys = {"MAX_ITEM_LIST_LENGTH": args.length, "train_batch_size": args.batch}
    if args.data_path:
        keys["data_path"] = str(args.data_path)
    if name != "BERT4Rec":
        keys["selected_features"] = args.features
    config = TemaConfig(name, args.dataset, config_dict=keys)
    if args.dataset in BUILTIN:
        ensure_builtin(args.dataset, Path(config["data_path"]).parent)
    dataset = create_dataset(config, config.model_class)
    train_data = data_preparation(config, dataset, config.model_class).train_data
    classes = {"here": get_model_class(name), "recbole": get_model(name)}
    torch.autograd.set_detect_anomaly(False)  # which RecBole switches on
    models = {}
    for label, cls in classes.items():
        init_seed(2020, True)
        models[label] = cls(config, train_data.dataset).to(config["device"])
    optimizers = {k: torch.optim.Adam(model.parameters()) for k, model in models.items()}
    losses, seconds = {}, {label: [] for label in models}
    for number, batch in enumerate(train_data):
        batch = batch.to(config["device"])
        if not number:
            for label, model in models.items():
                losses[label] = model.eval().calculate_loss(batch).item()
            if not math.isclose(losses["here"], losses["recbole"], rel_tol=1e-5):
                raise SystemExit(f"error: {name}: other losses than RecBole's: {losses}")
        for label, model in models.items():
            start = perf_counter()
            optimizers[label].zero_grad()
            model.train().calculate_loss(batch).backward()
            optimizers[label].step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[label].append(perf_counter() - start)
        if number + 1 == WARM_UP + args.steps:
            break
    if len(seconds["here"]) <= WARM_UP:
        raise SystemExit(f"error: {len(train_data)} batches of --batch {args.batch} are too few")
    medians = {label: statistics.median(times[WARM_UP:]) for label, times in seconds.items()}
    return {
        "seconds_per_step": {label: round(value, 4) for label, value in medians.items()},
        "times_faster": round(medians["recbole"] / medians["here"], 2),
        "loss_without_dropout": losses,
        "batches_per_epoch": len(train_data),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", default="ml-100k-genre")
    parser.add_argument("--data_path", type=Path)
    parser.add_argument("--features", nargs="+", default=["title"], help="selected_features")
    parser.add_argument("--length", type=int, default=20, help="MAX_ITEM_LIST_LENGTH")
    parser.add_argument("--batch", type=int, default=512, help="train_batch_size")
    parser.add_argument("--steps", type=int, default=15, help="steps timed, after two more")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--out", type=Path, help="write the numbers here as JSON too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    found = {}
    for name in MODELS:
        found[name] = measure(name, args)
        print(f"{name}: {found[name]['times_faster']} times faster", flush=True)
    report = {
        "dataset": args.dataset,
        "length": args.length,
        "batch": args.batch,
        "features": args.features,
        "models": found,
        "threads": args.threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": date.today().isoformat(),
    }
    print(json.dumps(report, indent=1))
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
