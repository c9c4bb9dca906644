"""The same seed gives the same numbers, and so does a run that was killed and resumed."""

import ast
import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from recbole_tema import run_recbole_tema
from recbole_tema.config.registry import get_model_class
from recbole_tema.config.tema_config import TemaConfig
from recbole_tema.data.preparation import create_dataset, data_preparation
from recbole_tema.trainer.checkpoint import read_checkpoint
from recbole_tema.trainer.trainer import TrainerLayer
from tests.support.small_genre import NAME
from tests.support.terminal import open_terminal

pytestmark = pytest.mark.long

SCRIPT = Path(__file__).resolve().parents[3] / "run_recbole_tema.py"


def outcome(result):
    """Everything that a run comes to: metrics and the weights of the best model."""
    weights = read_checkpoint(result["model_file"])["state_dict"]
    return (
        result["best_valid_score"],
        result["best_valid_result"],
        result["test_result"],
        {name: values.tolist() for name, values in weights.items()},
    )


# The same seed


@pytest.mark.parametrize("model", ["TEMA", "LLM4CDSR", "SASRec", "BPR"])
def test_the_seed_decides_every_number(settings, model):
    runs = []
    for number, seed in enumerate((5, 5, 6)):
        torch.rand(number + 1)  # what was drawn before a run must not matter
        keys = {**settings, "seed": seed, "checkpoint_dir": f"saved{number}"}
        runs.append(outcome(run_recbole_tema(model, "tiny", config_dict=keys)))
    assert runs[0] == runs[1]
    assert runs[0][2] != runs[2][2]
    assert runs[0][3] != runs[2][3]


SIZES = [202, 45, 45]
# Found on Python 3.11 and 3.13 alike, with numpy 1.26 and 2.4.
DRAWN = "7f6fcbfc66b679e3"


def test_what_is_drawn_and_sorted_is_the_same_on_every_python_and_machine(settings):
    """Orders of rows, windows, negatives and users: by integers, so equal to the last bit.

    numpy sorts equal keys differently from one release and processor to the next, unless told not
    to: TEMA's first epoch depended on it.
    """
    keys = {**settings, "loss_type": "BCE", "train_batch_size": 2048, "overlap_ratio": 0.5}
    keys |= {"eval_args": {"mode": "uni5"}, "repeat_bias": False}
    config = TemaConfig("LLM4CDSR", "tiny", config_dict=keys)
    dataset = create_dataset(config, config.model_class)
    prepared = data_preparation(config, dataset, config.model_class)
    drawn = hashlib.sha256(dataset.train_sequences.items.astype("<i8").tobytes())
    sizes = [len(dataset.train_sequences.items)]
    for epoch in range(2):
        prepared.train_data.set_epoch(epoch)
        for batch in prepared.train_data:
            for name in sorted(batch.interaction):
                drawn.update(batch[name].numpy().astype("<i8").tobytes())
            sizes.append(len(batch))
    for phase in ("valid", "test"):
        plan = prepared.plans[phase]
        drawn.update(plan.negatives.astype("<i8").tobytes())
        for rows, _ in prepared.eval_data[phase]:
            drawn.update(np.asarray(rows).astype("<i8").tobytes())
    assert sizes == SIZES
    assert drawn.hexdigest()[:16] == DRAWN


# Interrupted as by Ctrl-C


def interrupt_after(monkeypatch, model, n_batches):
    """Let the training loss of ``model`` raise KeyboardInterrupt after ``n_batches`` batches."""
    model_class, calls = get_model_class(model), []
    original = model_class.calculate_loss

    def interrupted(self, *arguments, **keywords):
        calls.append(1)
        if len(calls) > n_batches:
            raise KeyboardInterrupt
        return original(self, *arguments, **keywords)

    monkeypatch.setattr(model_class, "calculate_loss", interrupted)


@pytest.mark.parametrize(
    ("model", "keys", "n_batches"),
    [
        ("TEMA", {}, 10),
        ("TEMA", {"eval_step": 2, "ema_decay": 0.9}, 14),
        (
            "TEMA",
            {"full_softmax_items": 5, "sampled_softmax_items": 6, "learner": "adamw"},
            10,
        ),
        (
            "LLM4CDSR",
            {
                "loss_type": "BCE",
                "train_neg_sample_args": {"distribution": "uniform", "sample_num": 1},
            },
            10,
        ),
        ("BERT4Rec", {"hidden_size": 16, "mask_ratio": 0.6}, 14),
        ("LightGCN", {}, 8),
        ("GRU4Rec", {"learner": "adagrad", "eval_step": 0}, 14),
        ("RecVAE", {"latent_dimension": 8, "hidden_dimension": 8, "n_enc_epochs": 1}, 5),
        ("FPMC", {"train_batch_size": 128}, 5),
    ],
    ids=str,
)
def test_an_interrupted_run_goes_on_as_if_nothing_had_been(
    settings, monkeypatch, tmp_path, model, keys, n_batches
):
    keys = {**settings, "epochs": 4, **keys}
    whole = outcome(run_recbole_tema(model, "tiny", config_dict={**keys, "checkpoint_dir": "a"}))
    with monkeypatch.context() as patch:
        interrupt_after(patch, model, n_batches)
        with pytest.raises(KeyboardInterrupt):
            run_recbole_tema(model, "tiny", config_dict=keys)
    (last,) = (tmp_path / "saved").glob("*.last.pth")
    done = read_checkpoint(last)["epoch"] + 1
    assert 0 < done < 4
    result = run_recbole_tema(model, "tiny", config_dict={**keys, "resume": True})
    assert outcome(result) == whole
    assert len(result["epoch_seconds"]) == 4 - done
    assert not last.exists()


def test_a_run_interrupted_after_its_last_epoch_only_evaluates(settings, monkeypatch, tmp_path):
    whole = outcome(
        run_recbole_tema("BPR", "tiny", config_dict={**settings, "checkpoint_dir": "a"})
    )

    def interrupted(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrainerLayer, "end_run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_recbole_tema("BPR", "tiny", config_dict=settings)
    assert len(list((tmp_path / "saved").glob("*.last.pth"))) == 1
    result = run_recbole_tema("BPR", "tiny", config_dict={**settings, "resume": True})
    assert result["epoch_seconds"] == [] and outcome(result) == whole


def test_a_finished_run_is_not_trained_again(settings, caplog):
    caplog.set_level("INFO")
    keys = {**settings, "stopping_step": 1, "epochs": 30}
    first = run_recbole_tema("SASRec", "tiny", config_dict={**keys, "hidden_size": 16})
    assert len(first["epoch_seconds"]) < 30
    again = run_recbole_tema(
        "SASRec", "tiny", config_dict={**keys, "hidden_size": 16, "resume": True}
    )
    assert again["epoch_seconds"] == [] and outcome(again) == outcome(first)
    assert any("is this run, finished" in r.message for r in caplog.records)


def test_another_config_starts_anew_and_leaves_the_first_run_alone(settings, caplog):
    caplog.set_level("INFO")
    first = run_recbole_tema("BPR", "tiny", config_dict=settings)
    before = Path(first["model_file"]).read_bytes()
    for keys in ({"seed": 7}, {"learning_rate": 0.01}, {"epochs": 1}, {"candidates": "all"}):
        caplog.clear()
        result = run_recbole_tema("BPR", "tiny", config_dict={**settings, **keys, "resume": True})
        assert result["epoch_seconds"] and result["model_file"] != first["model_file"]
        assert any("no run with this very config" in r.message for r in caplog.records)
    assert Path(first["model_file"]).read_bytes() == before


def test_where_a_run_happens_is_no_part_of_its_name(settings, tmp_path):
    from recbole_tema.trainer.checkpoint import run_name

    base = run_name(TemaConfig("BPR", "tiny", config_dict=settings))
    for keys in ({"show_progress": True}, {"data_path": "else"}, {"state": "error"}):
        assert run_name(TemaConfig("BPR", "tiny", config_dict={**settings, **keys})) == base
    assert run_name(TemaConfig("BPR", "tiny", config_dict={**settings, "seed": 3})) != base


def test_an_unfinished_run_is_started_anew_without_the_key(settings, monkeypatch, caplog):
    caplog.set_level("INFO")
    keys = {**settings, "epochs": 3}
    with monkeypatch.context() as patch:
        interrupt_after(patch, "BPR", 8)
        with pytest.raises(KeyboardInterrupt):
            run_recbole_tema("BPR", "tiny", config_dict=keys)
    result = run_recbole_tema("BPR", "tiny", config_dict=keys)
    assert len(result["epoch_seconds"]) == 3
    assert any("add --resume=True to continue it" in r.message for r in caplog.records)


def test_without_saving_nothing_is_resumed_or_removed(settings, monkeypatch, tmp_path):
    keys = {**settings, "epochs": 3}
    with monkeypatch.context() as patch:
        interrupt_after(patch, "BPR", 8)
        with pytest.raises(KeyboardInterrupt):
            run_recbole_tema("BPR", "tiny", config_dict=keys)
    before = {path: path.read_bytes() for path in (tmp_path / "saved").iterdir()}
    result = run_recbole_tema("BPR", "tiny", config_dict={**keys, "resume": True}, saved=False)
    assert len(result["epoch_seconds"]) == 3 and result["model_file"] is None
    assert {path: path.read_bytes() for path in (tmp_path / "saved").iterdir()} == before


# Killed


def command(small_root, folder, model, *more, stderr=subprocess.PIPE):
    arguments = [f"--model={model}", f"--dataset={NAME}", f"--data_path={small_root}"]
    arguments += ["--epochs=3", "--train_batch_size=128", "--MAX_ITEM_LIST_LENGTH=10"]
    arguments += ["--hidden_size=32", "--threads=1", f"--checkpoint_dir={folder / 'saved'}"]
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *arguments, *more],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=stderr,
    )


def test_result(text):
    line = next(line for line in text.decode().splitlines() if "test result" in line)
    return ast.literal_eval(re.search(r"\{.*\}", line).group())


test_result.__test__ = False


def kill_inside_an_epoch(small_root, folder, model, epoch):
    """``kill -9`` when the progress bar of ``epoch`` stands between 20 and 80 percent."""
    screen, terminal = open_terminal()  # a pipe gets no bar
    process = command(small_root, folder, model, stderr=terminal)
    os.close(terminal)
    shown, waiting = b"", time.monotonic() + 300
    wanted = re.compile(rb"Train +%d[^\r\n]*? ([2-7]\d)%%" % epoch)
    try:
        while not wanted.search(shown):
            assert process.poll() is None and time.monotonic() < waiting, shown[-2000:]
            shown = shown[-400:] + os.read(screen, 65536)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
        os.close(screen)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kill -9")
@pytest.mark.parametrize(("model", "epoch"), [("TEMA", 1), ("SASRec", 2)])
def test_a_killed_run_is_resumed_to_the_same_numbers(small_root, tmp_path, model, epoch):
    folders = [tmp_path / "whole", tmp_path / "killed"]
    for folder in folders:
        folder.mkdir()
    whole = command(small_root, folders[0], model, "--show_progress=False")
    kill_inside_an_epoch(small_root, folders[1], model, epoch)
    (last,) = folders[1].glob("saved/*.last.pth")
    assert read_checkpoint(last)["epoch"] == epoch - 1
    resumed = command(small_root, folders[1], model, "--resume=True", "--show_progress=False")
    text = [b"".join(process.communicate(timeout=300)) for process in (whole, resumed)]
    assert f"Resuming after epoch {epoch - 1}".encode() in text[1]
    assert test_result(text[0]) == test_result(text[1])
    files = [sorted((folder / "saved").iterdir()) for folder in folders]
    assert files[0][0].name == files[1][0].name and len(files[0]) == len(files[1]) == 1
    states = [read_checkpoint(found[0]) for found in files]
    assert states[0]["epoch"] == states[1]["epoch"]
    for name, values in states[0]["state_dict"].items():
        assert torch.equal(values, states[1]["state_dict"][name])
