"""Seconds per training epoch of TEMA and LLM4CDSR against RecBole's SASRec, in one run.

    python benchmarks/train_speed.py [--dataset ml-100k-genre] [--data_path FOLDER] [--out FILE]

Same data, hidden size, layers, heads and sequence length; each model has a process of its own and
trains with its own loss and batches. SASRec is stock RecBole, this package is not imported. It is
measured twice: as ``run_recbole`` runs it, with PyTorch's gradient debugging on (RecBole switches
it on wherever its sequential models are imported), and with that debugging off, which is how this
package runs RecBole's models. The first epoch of our models is a warm-up and is not counted.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from time import perf_counter

SIZES = {"hidden_size": 64, "n_layers": 2, "n_heads": 2, "inner_size": 256}
BASELINE = "SASRec (stock RecBole)"
# label -> epochs run, epochs counted from the end
MODELS = {"TEMA": (4, 3), "LLM4CDSR": (4, 3), BASELINE: (1, 1), f"{BASELINE}, no debugging": (1, 1)}


def our_epochs(name, n_epochs, args):
    """Seconds of each training epoch of one of our models."""
    from recbole.utils import init_seed

    from dataset_tools.builtin.datasets import BUILTIN, ensure_builtin
    from recbole_tema.config.tema_config import TemaConfig
    from recbole_tema.data.preparation import create_dataset, data_preparation
    from recbole_tema.trainer.factory import build_trainer

    keys = {**SIZES, "MAX_ITEM_LIST_LENGTH": args.length, "show_progress": False}
    if args.data_path:
        keys["data_path"] = args.data_path
    config = TemaConfig(name, args.dataset, config_dict=keys)
    if args.dataset in BUILTIN:
        ensure_builtin(args.dataset, Path(config["data_path"]).parent)
    init_seed(config["seed"], True)
    dataset = create_dataset(config, config.model_class)
    train_data = data_preparation(config, dataset, config.model_class).train_data
    trainer = build_trainer(config, config.model_class(config, train_data.dataset), dataset)
    return timed(trainer, train_data, n_epochs), config["data_path"]


def stock_epochs(debugging, n_epochs, folder, args):
    """Seconds of each training epoch of SASRec in RecBole alone."""
    import torch
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, get_trainer, init_seed

    sys.argv = sys.argv[:1]  # RecBole reads the command line itself
    keys = {
        **SIZES,
        "MAX_ITEM_LIST_LENGTH": args.length,
        "data_path": str(Path(folder).parent),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "train_neg_sample_args": None,
        "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"},
        "show_progress": False,
    }
    config = Config(model="SASRec", dataset=args.dataset, config_dict=keys)
    init_seed(config["seed"], True)
    train_data, _, _ = data_preparation(config, create_dataset(config))
    model = get_model("SASRec")(config, train_data.dataset)
    if not debugging:
        torch.autograd.set_detect_anomaly(False)
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    return timed(trainer, train_data, n_epochs)


def timed(trainer, train_data, n_epochs):
    times = []
    for epoch in range(n_epochs):
        start = perf_counter()
        trainer._train_epoch(train_data, epoch)
        times.append(perf_counter() - start)
    return times


def measure(args):
    """Measure one label in this process; prints a line of JSON."""
    n_epochs, counted = MODELS[args.one]
    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    if args.one.startswith(BASELINE):
        times, folder = stock_epochs(args.one == BASELINE, n_epochs, args.folder, args), args.folder
    else:
        times, folder = our_epochs(args.one, n_epochs, args)
    seconds = sum(times[-counted:]) / counted
    print(json.dumps([seconds, folder, torch.__version__, torch.get_num_threads()]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", default="ml-100k-genre")
    parser.add_argument("--data_path")
    parser.add_argument("--length", type=int, default=50, help="MAX_ITEM_LIST_LENGTH")
    parser.add_argument("--threads", type=int, default=0, help="threads of torch; 0: its choice")
    parser.add_argument("--out", type=Path, help="write the numbers here as JSON too")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        return measure(args)
    command = [sys.executable, str(Path(__file__).resolve()), "--dataset", args.dataset]
    command += ["--length", str(args.length), "--threads", str(args.threads)]
    if args.data_path:
        command += ["--data_path", str(Path(args.data_path).resolve())]
    seconds, folder = {}, ""
    for label in MODELS:
        one = [*command, "--one", label, "--folder", folder]
        with tempfile.TemporaryDirectory() as cwd:  # RecBole writes its logs where it runs
            done = subprocess.run(one, check=True, stdout=subprocess.PIPE, text=True, cwd=cwd)
        seconds[label], folder, torch_version, threads = json.loads(done.stdout.splitlines()[-1])
        print(f"{label}: {seconds[label]:.2f} s an epoch", flush=True)
    report = {
        "dataset": args.dataset,
        "length": args.length,
        **SIZES,
        "seconds_per_epoch": {name: round(value, 2) for name, value in seconds.items()},
        "times_faster": {
            f"{ours} than {theirs}": round(seconds[theirs] / seconds[ours], 1)
            for theirs in list(MODELS)[2:]
            for ours in list(MODELS)[:2]
        },
        "threads": threads,
        "torch": torch_version,
        "python": platform.python_version(),
        "date": date.today().isoformat(),
    }
    print(json.dumps(report, indent=2))
    if args.out:
        args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
