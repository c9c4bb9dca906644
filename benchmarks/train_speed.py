"""Seconds per training epoch of TEMA and LLM4CDSR against RecBole's SASRec, in one run.

    python benchmarks/train_speed.py [--dataset ml-100k-genre] [--data_path FOLDER] [--out FILE]

Same data, hidden size, layers, heads and sequence length; each model trains with its own loss and
RecBole's trainer. The first epoch of our models is a warm-up and is not counted.
"""

import argparse
import json
import platform
from pathlib import Path
from time import perf_counter

import torch
from recbole.utils import init_seed

from recbole_tema.config import TemaConfig
from recbole_tema.data import create_dataset, data_preparation
from recbole_tema.quick_start import _ensure_dataset
from recbole_tema.trainer import build_trainer

SIZES = {"hidden_size": 64, "n_layers": 2, "n_heads": 2, "inner_size": 256}
# (model, epochs run, epochs counted from the end)
MODELS = (("TEMA", 3, 2), ("LLM4CDSR", 3, 2), ("SASRec", 1, 1))


def seconds_per_epoch(name, epochs, counted, args):
    """Mean seconds of the last ``counted`` of ``epochs`` training epochs."""
    keys = {**SIZES, "MAX_ITEM_LIST_LENGTH": args.length, "show_progress": False}
    if args.data_path:
        keys["data_path"] = args.data_path
    config = TemaConfig(name, args.dataset, config_dict=keys)
    init_seed(config["seed"], True)
    _ensure_dataset(config)
    dataset = create_dataset(config, config.model_class)
    train_data = data_preparation(config, dataset, config.model_class).train_data
    model = config.model_class(config, train_data.dataset)
    trainer = build_trainer(config, model, dataset)
    times = []
    for epoch in range(epochs):
        start = perf_counter()
        trainer._train_epoch(train_data, epoch)
        times.append(perf_counter() - start)
        print(f"{name} epoch {epoch}: {times[-1]:.2f} s", flush=True)
    return sum(times[-counted:]) / counted


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", default="ml-100k-genre")
    parser.add_argument("--data_path")
    parser.add_argument("--length", type=int, default=50, help="MAX_ITEM_LIST_LENGTH")
    parser.add_argument("--out", type=Path, help="write the numbers here as JSON too")
    args = parser.parse_args()
    seconds = {name: seconds_per_epoch(name, n, k, args) for name, n, k in MODELS}
    report = {
        "dataset": args.dataset,
        "length": args.length,
        **SIZES,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "seconds_per_epoch": {name: round(value, 3) for name, value in seconds.items()},
        "times_faster_than_SASRec": {
            name: round(seconds["SASRec"] / value, 1) for name, value in seconds.items()
        },
    }
    print(json.dumps(report, indent=2))
    if args.out:
        args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
