"""What keeping freed memory is worth to a training step's softmax over a large catalogue.

    python benchmarks/freed_memory.py [--items 21327] [--batch 512] [--out FILE]

One step is the loss of 512 states of width 64 over the catalogue, its gradients and Adam's update,
in one thread: as RecBole's sequential models end. Each process runs 30 steps, with and without
`keep_freed_memory` in turn, three times; the losses are equal to the bit.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
from datetime import date
from pathlib import Path
from time import perf_counter

STEPS, WARM_UP, ROUNDS, WIDTH = 30, 3, 3, 64


def steps(keep, n_items, batch):
    """Seconds and page faults a step, the last loss and the peak memory in MB."""
    import torch

    from recbole_tema.trainer.memory import keep_freed_memory

    if keep and not keep_freed_memory():
        raise SystemExit("freed memory cannot be kept here: see keep_freed_memory")
    torch.set_num_threads(1)
    torch.manual_seed(2020)
    items = torch.randn(n_items, WIDTH, requires_grad=True)
    states = torch.randn(batch, WIDTH, requires_grad=True)
    targets = torch.randint(n_items, (batch,))
    adam = torch.optim.Adam([items, states])
    for step in range(WARM_UP + STEPS):
        if step == WARM_UP:
            began, faults = perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        adam.zero_grad()
        loss = torch.nn.functional.cross_entropy(states @ items.T, targets)
        loss.backward()
        adam.step()
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": (perf_counter() - began) / STEPS,
        "page_faults": (used.ru_minflt - faults) / STEPS,
        "loss": loss.item(),
        "peak_mb": used.ru_maxrss / 1024,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--items", type=int, default=21327)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--keep", choices=("yes", "no"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.keep:
        print(json.dumps(steps(args.keep == "yes", args.items, args.batch)))
        return
    sizes = [f"--items={args.items}", f"--batch={args.batch}"]
    found = {"yes": [], "no": []}
    for _ in range(ROUNDS):
        for keep, results in found.items():
            command = [sys.executable, __file__, *sizes, f"--keep={keep}"]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            results.append(json.loads(done.stdout))
    assert len({result["loss"] for results in found.values() for result in results}) == 1
    median = {k: statistics.median(r["seconds"] for r in v) for k, v in found.items()}
    import torch

    summary = {
        "date": str(date.today()),
        "machine": f"{platform.machine()}, torch {torch.__version__}, {platform.python_version()}",
        "items": args.items,
        "batch": args.batch,
        "kept": found["yes"],
        "given_back": found["no"],
        "ratio": median["no"] / median["yes"],
    }
    print(json.dumps(summary, indent=1))
    if args.out:
        args.out.write_text(json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
