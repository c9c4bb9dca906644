"""Seconds per training epoch of TEMA and LLM4CDSR against RecBole's SASRec, in one run.

    python benchmarks/train_speed.py [--dataset ml-100k-genre] [--data_path FOLDER] [--out FILE]
    python benchmarks/train_speed.py --quality [--lengths 50 20]      # hours: whole trainings

Same data, hidden size, layers, heads and sequence length; each model has a process of its own and
trains with its own loss and batches. SASRec is stock RecBole, this package is not imported. It is
measured twice: as ``run_recbole`` runs it, with PyTorch's gradient debugging on (RecBole switches
it on wherever its sequential models are imported), and with that debugging off, which is how this
package runs RecBole's models. The first epoch of our models is a warm-up and is not counted.

With ``--quality`` TEMA and stock SASRec (debugging off) train until the validation is no better
for ``--patience`` epochs. Both are validated after each epoch alike, NDCG@10 of the validation
targets among all items, RecBole's own evaluation for SASRec. Told are the seconds of training,
without the validations, until 95 % of the model's own best score, and of SASRec's best.

RecTools' SASRec would be a peer: RecTools 0.19 admits no numpy 2 on Python 3.11 and 3.12, so that
it does not install beside this package's pinned versions, and is not measured here.
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


def ours(name, args, **keys):
    """One of our models: (trainer, its training data, validation after an epoch, data folder)."""
    from recbole.utils import init_seed

    from dataset_tools.builtin.datasets import BUILTIN, ensure_builtin
    from recbole_tema.config.tema_config import TemaConfig
    from recbole_tema.data.preparation import create_dataset, data_preparation
    from recbole_tema.evaluation.evaluator import evaluation_data
    from recbole_tema.trainer.factory import build_trainer

    keys = {**SIZES, "MAX_ITEM_LIST_LENGTH": args.length, "show_progress": False, **keys}
    if args.data_path:
        keys["data_path"] = args.data_path
    config = TemaConfig(name, args.dataset, config_dict=keys)
    if args.dataset in BUILTIN:
        ensure_builtin(args.dataset, Path(config["data_path"]).parent)
    init_seed(config["seed"], True)
    dataset = create_dataset(config, config.model_class)
    prepared = data_preparation(config, dataset, config.model_class)
    trainer = build_trainer(
        config, config.model_class(config, prepared.train_data.dataset), dataset
    )
    valid = evaluation_data(config, dataset, prepared)["valid"]
    return (
        trainer,
        prepared.train_data,
        lambda: trainer._valid_epoch(valid)[1]["ndcg@10"],
        config["data_path"],
    )


def stock(debugging, folder, args):
    """SASRec in RecBole alone: (trainer, its training data, validation after an epoch)."""
    import numpy as np
    import torch

    for old, new in (("float_", np.float64), ("complex_", np.complex128), ("unicode_", np.str_)):
        if not hasattr(np, old):  # numpy 2 took away what RecBole reads
            setattr(np, old, new)
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
        "metrics": ["NDCG"],
        "topk": [10],
        "valid_metric": "NDCG@10",
    }
    config = Config(model="SASRec", dataset=args.dataset, config_dict=keys)
    init_seed(config["seed"], True)
    train_data, valid_data, _ = data_preparation(config, create_dataset(config))
    model = get_model("SASRec")(config, train_data.dataset)
    if not debugging:
        torch.autograd.set_detect_anomaly(False)
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    trainer.eval_collector.data_collect(train_data)
    return trainer, train_data, lambda: trainer._valid_epoch(valid_data)[1]["ndcg@10"]


def curve(trainer, train_data, validate, args):
    """[(seconds of training so far, score)] of every epoch until ``patience`` bring no better."""
    points, best, since, seconds = [], -1.0, 0, 0.0
    for epoch in range(args.epochs):
        seconds += timed(trainer, train_data, 1, epoch)[0]
        score = float(validate())
        points.append((round(seconds, 2), score))
        best, since = (score, 0) if score > best else (best, since + 1)
        if since > args.patience:
            break
    return points


def seconds_to(points, score):
    """Seconds of training until a score was reached first; None if it never was."""
    return next((seconds for seconds, found in points if found >= score), None)


def timed(trainer, train_data, n_epochs, first=0):
    """Seconds of each training epoch."""
    times = []
    for epoch in range(first, first + n_epochs):
        start = perf_counter()
        trainer._train_epoch(train_data, epoch)
        times.append(perf_counter() - start)
    return times


def measure(args):
    """Measure one label in this process; prints a line of JSON."""
    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    if args.quality:
        # The catalogue as candidates, as in RecBole's evaluation.
        keys = {"candidates": "all", "exclude_history": False, "topk": [10], "metrics": ["NDCG"]}
        if args.one == "TEMA":
            *parts, folder = ours("TEMA", args, **keys)
        else:
            parts, folder = stock(False, args.folder, args), args.folder
        found = curve(*parts, args)
    else:
        n_epochs, counted = MODELS[args.one]
        if args.one.startswith(BASELINE):
            trainer, train_data, _ = stock(args.one == BASELINE, args.folder, args)
            folder = args.folder
        else:
            trainer, train_data, _, folder = ours(args.one, args)
        found = sum(timed(trainer, train_data, n_epochs)[-counted:]) / counted
    print(json.dumps([found, folder, torch.__version__, torch.get_num_threads()]))


def time_to_quality(command, args):
    """What the models need at each length of histories, for the report."""
    found, folder = {}, ""
    for length in args.lengths:
        curves = {}
        for label in ("TEMA", BASELINE):
            one = [*command, "--length", str(length), "--one", label, "--folder", folder]
            curves[label], folder, *versions = answer(one)
            print(f"histories of {length}, {label}: {len(curves[label])} epochs", flush=True)
        bar = 0.95 * max(score for _, score in curves[BASELINE])
        found[f"histories of {length}"] = {
            label: {
                "seconds_to_95_percent_of_own_best": seconds_to(
                    points, 0.95 * max(score for _, score in points)
                ),
                "seconds_to_95_percent_of_SASRecs_best": seconds_to(points, bar),
                "best_valid_ndcg@10": max(score for _, score in points),
                "epochs": points,
            }
            for label, points in curves.items()
        }
    return found, versions


def answer(command):
    """The JSON that one process told."""
    with tempfile.TemporaryDirectory() as cwd:  # RecBole writes its logs where it runs
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=cwd)
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", default="ml-100k-genre")
    parser.add_argument("--data_path")
    parser.add_argument("--length", type=int, default=50, help="MAX_ITEM_LIST_LENGTH")
    parser.add_argument("--quality", action="store_true", help="seconds to a quality instead")
    parser.add_argument("--lengths", type=int, nargs="+", default=[50, 20], help="of --quality")
    parser.add_argument("--epochs", type=int, default=300, help="most epochs of --quality")
    parser.add_argument("--patience", type=int, default=10, help="epochs borne without a better")
    parser.add_argument("--threads", type=int, default=0, help="threads of torch; 0: its choice")
    parser.add_argument("--out", type=Path, help="write the numbers here as JSON too")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        return measure(args)
    command = [sys.executable, str(Path(__file__).resolve()), "--dataset", args.dataset]
    command += ["--threads", str(args.threads)]
    if args.data_path:
        command += ["--data_path", str(Path(args.data_path).resolve())]
    about = {"dataset": args.dataset, **SIZES}
    if args.quality:
        command += ["--quality", "--epochs", str(args.epochs), "--patience", str(args.patience)]
        found, (torch_version, threads) = time_to_quality(command, args)
        return write({**about, "time_to_quality": found}, threads, torch_version, args.out)
    command += ["--length", str(args.length)]
    seconds, folder = {}, ""
    for label in MODELS:
        one = [*command, "--one", label, "--folder", folder]
        seconds[label], folder, torch_version, threads = answer(one)
        print(f"{label}: {seconds[label]:.2f} s an epoch", flush=True)
    report = {
        **about,
        "length": args.length,
        "seconds_per_epoch": {name: round(value, 2) for name, value in seconds.items()},
        "times_faster": {
            f"{ours} than {theirs}": round(seconds[theirs] / seconds[ours], 1)
            for theirs in list(MODELS)[2:]
            for ours in list(MODELS)[:2]
        },
    }
    write(report, threads, torch_version, args.out)


def write(report, threads, torch_version, path):
    """Show the report, and keep it where a path is given."""
    report |= {"threads": threads, "torch": torch_version}
    report |= {"python": platform.python_version(), "date": date.today().isoformat()}
    print(json.dumps(report, indent=2))
    if path:
        path.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
