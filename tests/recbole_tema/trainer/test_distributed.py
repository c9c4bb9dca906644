"""Several processes on one machine (gloo): the same model as one, shared evaluation, clean ends."""

import copy
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from recbole_tema.cli import main
from recbole_tema.config.tema_config import TemaConfig
from recbole_tema.errors import ConfigError
from recbole_tema.quick_start import evaluate_checkpoint, load_model
from recbole_tema.trainer import distributed
from recbole_tema.trainer.distributed import SharedGradients
from recbole_tema.trainer.optimizer import LazyRows
from recbole_tema.trainer.processes import TORCHRUN, launch_keys, torchrun_keys

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[3]
KEYS = {
    "dataset": "tiny",
    "epochs": 3,
    "train_batch_size": 64,
    "eval_batch_size": 8,
    "MAX_ITEM_LIST_LENGTH": 8,
    "hidden_size": 16,
    "threads": 1,
    "show_progress": False,
    "topk": "[1,3,5]",
    "valid_metric": "NDCG@3",
}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0}
PATIENCE = 240


def command(root, folder, *program, **keys):
    program = program or (sys.executable, str(ROOT / "run_recbole_tema.py"))
    keys = {**KEYS, "data_path": root, "checkpoint_dir": folder, **keys}
    return [*program, *(f"--{key}={value}" for key, value in keys.items())]


def run(words, where):
    environment = {k: v for k, v in os.environ.items() if k not in TORCHRUN}
    return subprocess.run(
        words, cwd=where, env=environment, capture_output=True, text=True, timeout=PATIENCE
    )


def checkpoint(folder) -> Path:
    found = [p for p in Path(folder).glob("*.pth") if not p.name.endswith(".last.pth")]
    assert len(found) == 1
    return found[0]


def weights(folder):
    return load_model(checkpoint(folder))[2].state_dict()


def test_two_processes_make_the_model_of_one(tiny_root, tmp_path):
    # Plain gradient descent: Adam would blow up what floats differ by.
    keys = {"model": "TEMA", **NO_DROPOUT, "learner": "sgd", "learning_rate": 0.5}
    keys["clip_grad_norm"] = "{'max_norm': 0.5}"
    for name, more in (("one", {}), ("two", {"nproc": 2})):
        done = run(command(tiny_root, tmp_path / name, **keys, **more), tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("best valid") + done.stderr.count("best valid") == 1
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert one.keys() == two.keys()
    for name, values in one.items():
        assert np.allclose(values.numpy(), two[name].numpy(), atol=1e-5), name


SLOW = [pytest.param(model, marks=pytest.mark.slow) for model in ("LLM4CDSR", "BPR")]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["SASRec", *SLOW])
def test_shared_evaluation_is_that_of_one_process(tiny_root, tmp_path, model):
    # Three processes and batches of 8 rows: the parts are not of one size.
    keys = {"model": model, "nproc": 3, "epochs": 1, "metrics": "['NDCG','Hit','ItemCoverage']"}
    done = run(command(tiny_root, tmp_path / "saved", **keys), tmp_path)
    assert done.returncode == 0, done.stderr
    text = done.stdout + done.stderr
    line = next(line for line in text.splitlines() if "test result" in line)
    told = json.loads(line[line.index("{") :].replace("'", '"'))
    assert dict(evaluate_checkpoint(checkpoint(tmp_path / "saved"))["test"]) == told


@pytest.mark.slow
def test_torchrun_starts_them_too(tiny_root, tmp_path):
    torchrun = (
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
        str(ROOT / "run_recbole_tema.py"),
    )
    keys = {"model": "TEMA", "epochs": 1, **NO_DROPOUT}
    done = run(command(tiny_root, tmp_path / "torchrun", *torchrun, **keys), tmp_path)
    assert done.returncode == 0, done.stderr
    done = run(command(tiny_root, tmp_path / "nproc", nproc=2, **keys), tmp_path)
    assert done.returncode == 0, done.stderr
    ours, theirs = weights(tmp_path / "nproc"), weights(tmp_path / "torchrun")
    assert all(np.array_equal(ours[name].numpy(), theirs[name].numpy()) for name in ours)


def children(pid):
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = path.read_text().rpartition(") ")
        except OSError:
            continue
        if int(rest.split()[1]) == pid:
            command_line = (path.parent / "cmdline").read_bytes()
            if b"spawn_main" in command_line:
                found.append(int(name.split()[0]))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "keys"), [(0, {}), (1, {"full_softmax_items": 5, "sampled_softmax_items": 6})]
)
def test_a_killed_process_ends_the_others_with_a_message(tiny_root, tmp_path, victim, keys):
    keys = {"model": "TEMA", "nproc": 2, **keys}
    whole = run(command(tiny_root, tmp_path / "whole", **keys, epochs=30), tmp_path)
    assert whole.returncode == 0, whole.stderr
    words = command(tiny_root, tmp_path / "killed", **keys, epochs=30)
    process = subprocess.Popen(
        words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + PATIENCE
    while not list((tmp_path / "killed").glob("*.last.pth")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    started = sorted(children(process.pid))
    assert len(started) == 2
    os.kill(started[victim], signal.SIGKILL)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 2
    line = told.strip().splitlines()[-1]
    assert line.startswith("error: process ") and "SIGKILL" in line and "--resume=True" in line
    assert not any(Path(f"/proc/{pid}").exists() for pid in started)
    done = run([*words, "--resume=True"], tmp_path)
    assert done.returncode == 0, done.stderr
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(np.array_equal(one[name].numpy(), two[name].numpy()) for name in one)


@pytest.mark.slow
def test_an_error_of_all_processes_is_told_once(tiny_root, tmp_path):
    words = command(tiny_root, tmp_path, model="TEMA", nproc=2, target_domain="flim")
    done = run(words, tmp_path)
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if line.startswith("error")] == [
        "error: target_domain is 'flim'; the domains of 'tiny' are book, film"
    ]


def test_launch_keys():
    assert launch_keys({"epochs": "3"}) == {}
    assert launch_keys({"nproc": "1", "world_size": "1"}) == {}
    given = {"nproc": "2", "seed": "1"}
    keys = launch_keys(given)
    assert given == {"seed": "1"} and 1024 < keys.pop("port") < 65536
    assert keys == {"nproc": 2, "world_size": 2, "offset": 0, "ip": "localhost"}
    several = {"nproc": "2", "world_size": "6", "group_offset": "4", "ip": "10.0.0.1", "port": "5"}
    assert launch_keys(several) == {
        **{"nproc": 2, "world_size": 6, "offset": 4},
        **{"ip": "10.0.0.1", "port": 5},
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"nproc": "two"}, "--nproc is 'two'; give a whole number"),
        ({"nproc": "0"}, "--nproc is 0; give a whole number from 1"),
        ({"group_offset": "-1"}, "--group_offset is -1; give a whole number from 0"),
        ({"world_size": "0"}, "^--world_size is 0; give the number of processes of all machines"),
        ({"nproc": "2", "world_size": "1"}, "--world_size is 1.*make 2 processes"),
        ({"nproc": "2", "world_size": "4", "group_offset": "3"}, "make 5 processes"),
        ({"nproc": "2", "world_size": "4"}, "--port is missing"),
    ],
)
def test_wrong_launch_keys(given, message):
    with pytest.raises(ConfigError, match=message):
        launch_keys(given)


def test_torchrun_keys(monkeypatch):
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    assert torchrun_keys() == {}
    values = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
    for name, value in {**values, "MASTER_ADDR": "h", "MASTER_PORT": "7"}.items():
        monkeypatch.setenv(name, value)
    assert torchrun_keys() == {
        **{"local_rank": 1, "nproc": 2, "world_size": 4, "offset": 2},
        **{"ip": "h", "port": 7},
    }


@pytest.mark.parametrize(
    ("model", "keys", "message"),
    [
        ("Pop", {}, r"nproc is 2.*Pop trains in one process.*without gradients"),
        ("BPR", {"learner": "sparse_adam"}, r"learner is 'sparse_adam'"),
        ("BPR", {"enable_scaler": True}, r"enable_scaler is True"),
    ],
)
def test_what_several_processes_cannot_train(tiny_root, model, keys, message):
    group = {"local_rank": 0, "offset": 0, "world_size": 2, "nproc": 2}
    group |= {"ip": "localhost", "port": 1}
    with pytest.raises(ConfigError, match=message):
        TemaConfig(model, "tiny", config_dict={"data_path": str(tiny_root), **group, **keys})


def test_wrong_arguments_are_told_before_anything_starts(tiny_root, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--dataset=tiny", f"--data_path={tiny_root}", "--nproc=2", "--world_size=1"]
    assert main(words) == 2
    assert capsys.readouterr().err.startswith("error: --world_size is 1")
    assert list(tmp_path.iterdir()) == []


class TwoThreads:
    """Stands for a group of two processes: two threads, each with its part of what is told."""

    def __init__(self, monkeypatch):
        self.meet, self.told, self.own = threading.Barrier(2), [None, None], threading.local()
        monkeypatch.setattr(distributed, "world_size", lambda: 2)
        for name in ("all_reduce", "all_gather", "broadcast"):
            monkeypatch.setattr(torch.distributed, name, getattr(self, name))

    def _tell(self, tensor):
        self.meet.wait()
        self.told[self.own.rank] = tensor.clone()
        self.meet.wait()
        return list(self.told)

    def all_reduce(self, tensor):
        tensor.copy_(sum(self._tell(tensor)))

    def all_gather(self, places, tensor):
        for place, told in zip(places, self._tell(tensor), strict=True):
            place.copy_(told)

    def broadcast(self, tensor, src):
        tensor.copy_(self._tell(tensor)[src])

    def run(self, job):
        def of(rank):
            self.own.rank = rank
            return job(rank)

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(of, range(2)))


@pytest.mark.parametrize("rows", [([3, 1], [1, 5, 0]), ([], [2]), (None, [4, 4]), (None, None)])
def test_gradients_of_rows_are_averaged_as_those_of_the_whole_table(monkeypatch, rows):
    """Two processes that read other rows take the steps of one table with dense gradients."""
    group, clip = TwoThreads(monkeypatch), {"max_norm": 0.9}
    initial = torch.nn.ModuleList([torch.nn.Embedding(6, 3), torch.nn.Linear(3, 1)])

    def train(rank, sparse):
        model = copy.deepcopy(initial)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        shared = SharedGradients(model, lambda: (0.5, 1.5)[rank], clip)
        shared.before_steps_of(optimizer)
        lazy = LazyRows(optimizer, model[:1]) if sparse else None
        for step in range(3):
            optimizer.zero_grad()
            mine = rows[rank]
            if mine is not None and step != 1:
                model[1](model[0](torch.tensor(mine, dtype=torch.long))).pow(2).sum().backward()
            optimizer.step()
        if lazy:
            lazy.settle_all()
        return [parameter.detach() for parameter in model.parameters()]

    for found in group.run(lambda rank: train(rank, True)):
        for ours, whole in zip(found, group.run(lambda rank: train(rank, False))[0], strict=True):
            torch.testing.assert_close(ours, whole, rtol=0, atol=1e-6)
