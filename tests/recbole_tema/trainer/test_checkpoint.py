"""Checkpoints: what is no checkpoint, whose it is, how it is written, what is in it."""

import contextlib
import io
import itertools
import json
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse

from recbole_tema import load_model
from recbole_tema.config.tema_config import TemaConfig
from recbole_tema.data.atomic import replace_file
from recbole_tema.data.preparation import create_dataset, data_preparation
from recbole_tema.errors import CheckpointError, ConfigError, DataError
from recbole_tema.quick_start import evaluate_checkpoint
from recbole_tema.trainer import checkpoint
from recbole_tema.trainer.checkpoint import FORMAT, pack_other, read_checkpoint, unpack_other
from recbole_tema.trainer.checkpoint import write_checkpoint as write
from recbole_tema.trainer.factory import build_trainer

pytestmark = pytest.mark.long


def trainer_of(settings, model, name="tiny", **keys):
    config = TemaConfig(model, name, config_dict={**settings, **keys})
    dataset = create_dataset(config, config.model_class)
    prepared = data_preparation(config, dataset, config.model_class)
    return build_trainer(config, config.model_class(config, prepared.train_data.dataset), dataset)


# Files that are no checkpoint


class RunsCode:
    """Unpickled, it creates a file: what a checkpoint from a stranger could do."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (Path(self.trace),)


def foreign_files(folder):
    """name -> (file, what its error says)."""
    saved = io.BytesIO()
    torch.save({"weights": torch.ones(2)}, saved)
    code = io.BytesIO()
    torch.save({"format": FORMAT, "state_dict": RunsCode(folder / "trace")}, code)
    old = io.BytesIO()
    torch.save(RunsCode(folder / "trace"), old, _use_new_zipfile_serialization=False)
    return {
        "empty": (b"", "is empty"),
        "text": (b"epoch: 3\n", "is no file that torch.save wrote"),
        "zip": (b"PK\x03\x04 and then nothing", "is truncated or damaged"),
        "pickle": (pickle.dumps(RunsCode(folder / "trace")), "is no file that torch.save wrote"),
        "old": (old.getvalue(), "is no file that torch.save wrote"),
        "foreign": (saved.getvalue(), "is not a checkpoint of recbole-tema"),
        "code": (code.getvalue(), "objects beyond tensors and plain values"),
    }


@pytest.mark.parametrize("kind", ["empty", "text", "zip", "pickle", "old", "foreign", "code"])
def test_a_foreign_file_is_named_and_not_run(tmp_path, kind):
    content, message = foreign_files(tmp_path)[kind]
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    for read in (read_checkpoint, load_model, evaluate_checkpoint):
        with pytest.raises(CheckpointError, match=message) as caught:
            read(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "trace").exists()


def test_the_code_in_these_files_would_have_run(tmp_path):
    content, _ = foreign_files(tmp_path)["code"]
    torch.load(io.BytesIO(content), weights_only=False)
    assert (tmp_path / "trace").exists()


def test_a_missing_file_and_a_folder_are_not_found(tmp_path):
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(CheckpointError, match="not found"):
            load_model(path)


def test_recboles_own_checkpoint_is_refused(settings, tmp_path):
    trainer = trainer_of(settings, "BPR")
    super(type(trainer).__mro__[1], trainer)._save_checkpoint(0, saved_model_file="recbole.pth")
    with pytest.raises(CheckpointError, match="loading those could run code"):
        load_model(tmp_path / "recbole.pth")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_checkpoint(run, share):
    _, path = run()
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match="is truncated or damaged"):
        load_model(path)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_a_flipped_bit_is_found(run, share):
    _, path = run("BPR")
    with zipfile.ZipFile(path) as archive:  # inside a part: bits between two of them say nothing
        parts = [part for part in archive.infolist() if part.file_size]
        part = parts[int(len(parts) * share)]
    content = bytearray(path.read_bytes())
    head = part.header_offset
    name, extra = (int.from_bytes(content[head + at : head + at + 2], "little") for at in (26, 28))
    content[head + 30 + name + extra + int(part.file_size * share)] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is truncated or damaged; restore it from a copy"):
        load_model(path)


@pytest.mark.parametrize("part", ["model", "dataset", "fingerprint", "config", "state_dict"])
def test_a_checkpoint_without_a_part(run, part):
    _, path = run("Pop")
    state = torch.load(path, weights_only=True)
    for damaged in ({k: v for k, v in state.items() if k != part}, {**state, part: 3}):
        torch.save(damaged, path)
        with pytest.raises(CheckpointError, match=f"is damaged: its part '{part}'"):
            load_model(path)


# Checkpoints of something else


def test_a_checkpoint_of_another_model(run, settings):
    result, path = run("BPR")
    trainer = trainer_of(settings, "TEMA")
    with pytest.raises(CheckpointError, match="holds a BPR, not a TEMA"):
        trainer.resume_checkpoint(path)
    own = trainer_of(settings, "BPR")
    with pytest.raises(CheckpointError, match="a finished model, not a run to resume"):
        own.resume_checkpoint(path)
    assert result["test_result"] == evaluate_checkpoint(path)["test"]


def test_weights_of_another_size(run):
    _, path = run("BPR", embedding_size=8)
    with pytest.raises(CheckpointError, match="does not fit the model as configured"):
        evaluate_checkpoint(path, {"embedding_size": 4})


def test_weights_of_another_model_are_named_in_a_few_words(run):
    _, path = run("TEMA")
    state = torch.load(path, weights_only=True)
    torch.save({**state, "model": "SASRec", "given": {}}, path)
    with pytest.raises(CheckpointError, match=r"the file lacks: .* and \d+ more; ") as caught:
        load_model(path)
    assert "position_embedding.weight" in str(caught.value) and len(str(caught.value)) < 600


def test_a_device_that_is_not_there_is_named(run):
    _, path = run("Pop")
    for device in ("foo", "cuda:99", 1.5):
        with pytest.raises(ConfigError, match=f"device {device!r} cannot be used") as caught:
            load_model(path, device=device)
        assert "\n" not in str(caught.value)
    assert str(load_model(path, device="cpu")[0]["device"]) == "cpu"


def test_phases_that_are_not_there_are_named(run):
    _, path = run("Pop")
    for phases in (["train"], "foo", ["test", "train"]):
        with pytest.raises(ConfigError, match=r"phases is .*valid, test"):
            evaluate_checkpoint(path, phases=phases)
    assert set(evaluate_checkpoint(path, phases="test")) == {"test"}
    with pytest.raises(ConfigError, match="config_dict is"):
        evaluate_checkpoint(path, [1])


# What a model does not read may come, go and change


def test_a_checkpoint_of_the_former_form_is_named(tmp_path):
    torch.save({"format": "recbole-tema checkpoint 1"}, tmp_path / "old.pth")
    with pytest.raises(CheckpointError, match=r"written by an earlier version.*train the model"):
        load_model(tmp_path / "old.pth")


def test_other_interactions_are_evaluated_with_a_warning_but_not_resumed(
    run, moved, settings, caplog
):
    _, path = run(name="mine", data_path=str(moved))
    inter = moved / "mine" / "mine.inter"
    head, *rows = inter.read_text().splitlines()
    inter.write_text("\n".join([head, *rows, rows[-1]]) + "\n")
    assert set(evaluate_checkpoint(path)) == {"valid", "test"}
    assert any("has other interactions" in r.message for r in caplog.records)
    with pytest.raises(CheckpointError, match="trained on other interactions"):
        run(name="mine", data_path=str(moved), resume=True)


def test_a_damaged_data_file_is_a_data_error(run, moved):
    _, path = run(name="mine", data_path=str(moved))
    (moved / "mine" / "mine.item").unlink()
    with pytest.raises(DataError, match=r"mine\.item not found"):
        load_model(path)


def test_the_users_columns_are_read_again(run, settings):
    """A key that the files would imply otherwise stays as it was given for training."""
    columns = {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "domain"]}
    given = {"load_col": columns, "additional_feat_suffix": None, "preload_weight": None}
    result, path = run(**given)
    config, dataset, _ = load_model(path)
    assert config["load_col"] == columns and dataset.tags is None
    assert evaluate_checkpoint(path, phases=["test"])["test"] == result["test_result"]


# Writing


def test_a_failing_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "folder" / "model.pth"
    write(path, {"epoch": 1})
    before = path.read_bytes()
    with pytest.raises((AttributeError, pickle.PicklingError, TypeError)):
        write(path, {"epoch": 2, "weights": torch.ones(1000), "function": lambda: None})
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["model.pth"]


@pytest.mark.parametrize("at", range(1, 30, 3))
def test_ctrl_c_within_a_write_is_no_failing_write(tmp_path, monkeypatch, at):
    """torch's writer raises an error of its own over what ends it in the middle."""
    path = tmp_path / "model.pth"
    write(path, {"epoch": 1})
    before = path.read_bytes()

    @contextlib.contextmanager
    def interrupted(path):
        with replace_file(path) as file:
            whole, places = file.write, itertools.count(1)

            class Interrupted:
                flush = file.flush

                def write(self, data):
                    if next(places) == at:
                        raise KeyboardInterrupt
                    return whole(data)

            yield Interrupted()

    monkeypatch.setattr(checkpoint, "replace_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(path, {"epoch": 2, "weights": torch.ones(100), "list": list(range(10))})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["model.pth"]


def test_a_failing_write_is_told_while_an_interrupt_is_handled(tmp_path):
    (tmp_path / "file").write_text("")
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        with pytest.raises(CheckpointError, match="cannot be written"):
            write(tmp_path / "file" / "model.pth", {"epoch": 1})


FULL_DISK = """
import resource, signal, sys, torch
from recbole_tema.trainer.checkpoint import write_checkpoint
from recbole_tema.errors import CheckpointError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_checkpoint(sys.argv[1], {"weights": torch.ones(200_000)})
except CheckpointError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files")
def test_a_full_disk_is_named_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "model.pth"
    write(path, {"epoch": 1})
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[3],
    )
    assert f"checkpoint {path} cannot be written (" in done.stdout, done.stderr
    assert "choose another checkpoint_dir" in done.stdout and done.stdout.count("\n") == 1
    assert torch.load(path, weights_only=True)["epoch"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["model.pth"]


# Content


@pytest.mark.parametrize("model", ["TEMA", "LLM4CDSR", "SASRec", "LightGCN", "Pop", "ItemKNN"])
def test_what_is_kept_is_plain_and_restores_the_model(run, model):
    result, path = run(model)
    state = torch.load(path, weights_only=True)
    assert state["format"] == FORMAT and state["model"] == model
    json.dumps([state["config"], state["given"], state["best_valid_result"]])
    assert "optimizers" not in state  # what only resuming needs is gone with the end of the run
    assert evaluate_checkpoint(path)["test"] == result["test_result"]
    _, _, network = load_model(path)
    assert not network.training
    for name, values in network.state_dict().items():
        assert torch.equal(values, state["state_dict"][name])
    shutil.rmtree("log_tensorboard")
    load_model(path)
    evaluate_checkpoint(path)
    assert not Path("log_tensorboard").exists()  # reading leaves no files


def test_arrays_and_matrices_beside_the_weights_come_back():
    value = {
        "array": np.arange(6.0).reshape(2, 3),
        "matrix": sparse.random(5, 7, density=0.3, format="csr", random_state=0),
        "list": [torch.ones(2), 3, None, "text"],
    }
    file = io.BytesIO()
    torch.save(pack_other(value), file)
    file.seek(0)
    back = unpack_other(torch.load(file, weights_only=True))
    assert np.array_equal(back["array"], value["array"])
    assert back["matrix"].format == "csr" and (back["matrix"] != value["matrix"]).nnz == 0
    assert torch.equal(back["list"][0], torch.ones(2)) and back["list"][1:] == [3, None, "text"]
    with pytest.raises(CheckpointError, match="a set cannot be kept"):
        pack_other({"a": {1, 2}})
