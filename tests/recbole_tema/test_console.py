"""What a run shows: a line for it, one an epoch, the results, the table; the log file has all."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from recbole_tema import run_recbole_tema
from recbole_tema.cli import main
from recbole_tema.config.registry import get_model_class
from recbole_tema.progress import ProgressBar
from recbole_tema.trainer.epochs import is_shown
from tests.support.terminal import open_terminal

pytestmark = pytest.mark.long

SCRIPT = Path(__file__).resolve().parents[2] / "run_recbole_tema.py"
RESULTS = ("best valid : {'", "test result: {'")
IN_THE_LOG = (
    *("Training Hyper Parameters:", "(item_embedding): Embedding(", "The number of users: 41"),
    *("train_loss1: ", "valid result: ", "FutureWarning", "epoch 1: ", "best valid : {'"),
)
# One process for several runs, as importing takes longest: what each writes stands between marks.
SEVERAL = """
import json, logging, sys
from recbole_tema.cli import main
for words in json.loads(sys.argv[1]):
    code = main(words)
    assert not logging.getLogger().handlers, "what the program logs next is its own"
    for stream in (sys.stdout, sys.stderr):
        print(f"== {code}", file=stream, flush=True)
"""


def words(root, *more, batch=64):
    keys = {"data_path": root, "train_batch_size": batch, "MAX_ITEM_LIST_LENGTH": 8}
    keys |= {"model": "TEMA", "dataset": "tiny", "epochs": 2, "hidden_size": 16}
    return [*(f"--{key}={value}" for key, value in keys.items()), *more]


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def log_of(folder):
    """The text of the one log file in a folder."""
    (path,) = folder.glob("log/*/*.log")
    return path.read_text()


@pytest.fixture(scope="module")
def run(tiny_root, tmp_path_factory):
    """(stdout, stderr, text of the log file) of the command with pipes."""
    folder = tmp_path_factory.mktemp("plain")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *words(tiny_root)],
        cwd=folder,
        env=environment(),
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.decode(), done.stderr.decode(), log_of(folder)


@pytest.fixture(scope="module")
def several(tiny_root, tmp_path_factory):
    """Name -> (exit code, stdout, stderr) of runs in one process."""
    root = tmp_path_factory.mktemp("data")
    broken = root / "tiny"
    broken.mkdir()
    for suffix in ("inter", "item"):
        shutil.copy(tiny_root / "tiny" / f"tiny.{suffix}", broken)
    with open(broken / "tiny.inter", "a") as file:
        file.write("u1\tno-such-item\t1\n")
    unknown_key = root / "a.yaml"
    unknown_key.write_text("gamma: 1\n")  # another model's
    runs = {
        "data error": words(root),
        "key error": words(tiny_root, "--hiden_size=3"),
        "quiet": words(tiny_root, "--quiet", f"--config_files={unknown_key}"),
        "verbose": words(tiny_root, "--verbose"),
        "warning": words(tiny_root, f"--config_files={unknown_key}"),
        "state": words(tiny_root, "--state=error"),
        "both": words(tiny_root, "--quiet", "--verbose"),
    }
    done = subprocess.run(
        [sys.executable, "-c", SEVERAL, json.dumps(list(runs.values()))],
        cwd=tmp_path_factory.mktemp("several"),
        env=environment(),
        capture_output=True,
        text=True,
    )
    parts = [re.split(r"== (\d+)\n", text) for text in (done.stdout, done.stderr)]
    assert len(parts[0]) == len(parts[1]) == 2 * len(runs) + 1, done.stderr[-3000:]
    return {
        name: (int(parts[0][2 * i + 1]), parts[0][2 * i], parts[1][2 * i])
        for i, name in enumerate(runs)
    }


def is_table(text):
    lines = text.splitlines()
    return [line.split()[0] for line in lines[3:]] == ["overall", "macro", "book", "film"]


def test_the_screen_has_the_run_the_epochs_the_results_and_the_table(run):
    out, err, _ = run
    assert is_table(out.removeprefix("\n"))
    lines = err.splitlines()
    place = next(i for i, line in enumerate(lines) if " on tiny: " in line)
    notes, (first, *epochs, loaded, best, tested) = "\n".join(lines[:place]), lines[place:]
    assert "2 users with fewer than 3 events" in notes and "1 users with 3 events" in notes
    # What decides the candidates, and what the model goes without.
    assert "exclude_history is False (auto): one in a thousand or more, 2 of 234" in notes
    assert "TEMA: no image features, trained without" in notes
    assert place == 5
    # 2 of the 40 users, who have 309 events, have fewer than 3
    assert "TEMA on tiny: 40 users, 30 items, 309 events, domains book, film; " in first
    assert "epochs=2" in first and "hidden_size=16" in first and "seed=2020, cpu (" in first
    assert re.search(r"log: log/TEMA/TEMA-tiny-\S+\.log$", first)
    for number, line in enumerate(epochs):
        assert re.search(
            rf"INFO  epoch {number}: [\d.]+ s, next-item \d+\.\d{{4}}, intra-domain \d+\.\d{{4}}, "
            r"valid NDCG@10 \d\.\d{4} \((best so far|best \d\.\d{4}, epoch 0)\)$",
            line,
        ), line
    assert len(epochs) == 2
    assert re.search(r"parameters from saved/TEMA-tiny-\S+\.pth \(epoch [01]\)$", loaded)
    for line, start in zip((best, tested), RESULTS, strict=True):
        assert line.partition("INFO  ")[2].startswith(start) and line.endswith("}")


def test_no_carriage_return_and_no_colour_in_pipes_and_the_log(run):
    for text in run:
        assert "\r" not in text and "\x1b" not in text and "%|" not in text


def test_the_log_file_has_it_all(run):
    out, err, log = run
    for part in IN_THE_LOG:
        assert part in log
    assert out in log  # the table
    for line in err.splitlines():
        assert line.partition("  ")[2].partition("  ")[2] in log


def test_quiet_leaves_the_table(several):
    code, out, err = several["quiet"]
    assert (code, err) == (0, "") and is_table(out)


def test_verbose_shows_what_the_log_has(several):
    code, out, err = several["verbose"]
    assert code == 0 and is_table(out.removeprefix("\n"))
    for part in IN_THE_LOG:
        assert err.count(part) >= 1
    assert err.count("best valid : {") == 1  # no handlers are left of the runs before


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("data error", "item 'no-such-item' has no row in tiny.item"),
        ("key error", "unknown key 'hiden_size'"),
        ("both", "quiet is True (command line); allowed: False where verbose is True"),
    ],
)
def test_an_error_is_the_one_line(several, name, says):
    code, out, err = several[name]
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and says in err


def test_a_warning_of_ours_stays(several):
    code, _, err = several["warning"]
    assert code == 0
    (line,) = [line for line in err.splitlines() if "WARNING" in line]
    assert "keys without effect on TEMA: gamma" in line


def test_state_silences_as_in_recbole(several):
    assert several["state"] == (0, "", "")


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="a pseudo terminal")
def test_a_terminal_has_bars_that_leave_no_line(tiny_root, tmp_path):
    screen, terminal = open_terminal()
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), *words(tiny_root, batch=1)],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=terminal,
    )
    os.close(terminal)
    shown = b""
    try:
        while part := os.read(screen, 65536):
            shown += part
    except OSError:  # so Linux says that the other end is closed
        pass
    process.communicate(timeout=60)
    os.close(screen)
    assert process.returncode == 0, shown
    text = shown.decode()
    assert re.search(
        r"\rTrain +0: .*%\|.*\d+/\d+ \[\d\d:\d\d<\d\d:\d\d, .*(it/s|s/it)\]", plain(text)
    )
    lines = [
        line.rpartition("\r")[2].strip() for line in plain(text).replace("\r\n", "\n").split("\n")
    ]
    assert not [line for line in lines if "%|" in line]
    assert len([line for line in lines if "epoch " in line and " s, next-item " in line]) == 2


def plain(text):
    return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)


def test_the_error_and_its_place_are_in_the_log(tiny_root, tmp_path, monkeypatch, capsys):
    """In a process whose root logger has no handlers yet, as the command's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    arguments = words(tiny_root, "--target_domain=music")
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith("error: target_domain is 'music'")
    assert "ERROR  error: target_domain is 'music'" in log_of(tmp_path)


@pytest.mark.parametrize("model", ["TEMA", "SASRec", "RecVAE"])
def test_losses_are_the_means_of_the_batches(settings, caplog, monkeypatch, model):
    caplog.set_level("INFO")
    seen = []
    model_class = get_model_class(model)
    stock = model_class.calculate_loss

    def recorded(self, *args, **kwargs):
        losses = stock(self, *args, **kwargs)
        terms = losses if isinstance(losses, tuple) else (losses,)
        seen.append([term.item() for term in terms])
        return losses

    monkeypatch.setattr(model_class, "calculate_loss", recorded)
    names = {"TEMA": ["next-item", "intra-domain"], "SASRec": ["loss"]}.get(model)
    # RecVAE's trainer runs over the data three times for the encoder, once for the decoder.
    names, loops = names or [f"loss{number}" for number in (1, 2, 3, 4)], 1 if names else 4
    run_recbole_tema(model, "tiny", config_dict={**settings, "train_batch_size": 16})
    told = [r.getMessage() for r in caplog.records if re.match(r"epoch \d+: ", r.getMessage())]
    assert len(told) == settings["epochs"]
    batches = np.array(seen).reshape(len(told), loops, -1, len(seen[0]))
    assert batches.shape[2] > 1
    for line, of_epoch in zip(told, batches.mean(axis=2).reshape(len(told), -1), strict=True):
        found = [float(re.search(rf"{name} ([\d.]+)[,$]?", line)[1]) for name in names]
        assert found == pytest.approx(of_epoch, abs=6e-5)


def test_the_best_epoch_so_far_is_named(settings, caplog):
    caplog.set_level("INFO")
    scores = []
    run_recbole_tema(
        "BPR",
        "tiny",
        config_dict={**settings, "epochs": 8, "learning_rate": 0.05},
        after_epoch=lambda epoch, score: scores.append(score),
    )
    lines = [r.getMessage() for r in caplog.records if re.match(r"epoch \d+: ", r.getMessage())]
    best = 0
    for epoch, (line, score) in enumerate(zip(lines, scores, strict=True)):
        best = epoch if score >= scores[best] else best
        said = "best so far" if best == epoch else f"best {scores[best]:.4f}, epoch {best}"
        assert line.endswith(f"valid NDCG@3 {score:.4f} ({said})")


def test_a_long_training_shows_few_of_its_epochs():
    shown = list(filter(is_shown, range(300)))
    assert shown[:13] == [*range(10), 10, 15, 20]
    # with the run's line, the loaded model, two results, a table of two domains and the last epoch
    assert len(shown) + 1 + 1 + 2 + 7 + 1 <= 40
    assert len(list(filter(is_shown, range(10_000)))) < 60


def test_bars_are_for_terminals(capsys, monkeypatch):
    for _ in ProgressBar(range(3)):
        pass
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    for _ in ProgressBar(range(3)):
        pass
    assert "3/3" in capsys.readouterr().err
    with ProgressBar(total=3, disable=True) as bar:
        bar.update()
    assert capsys.readouterr().err == ""


WARNING_CALLBACK = """
import json, logging, sys, warnings, numpy
from recbole_tema import run_recbole_tema
def after_epoch(epoch, score):
    warnings.warn(f"mine of epoch {epoch}", stacklevel=1)
    warnings.warn_explicit("of numpy", UserWarning, numpy.__file__, 1)
run_recbole_tema(config_dict=json.loads(sys.argv[1]), after_epoch=after_epoch)
warnings.warn("mine after the run", stacklevel=1)
"""


def test_warnings_of_the_calling_program_are_shown_those_of_libraries_logged(tiny_root, tmp_path):
    keys = {"data_path": str(tiny_root), "dataset": "tiny", "epochs": 1, "hidden_size": 16}
    script = tmp_path / "mine.py"  # a warning of `python -c` has no file
    script.write_text(WARNING_CALLBACK)
    done = subprocess.run(
        [sys.executable, str(script), json.dumps(keys)],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    log = log_of(tmp_path)
    for text, shown, logged in (
        ("UserWarning: mine of epoch 0", True, True),
        ("UserWarning: of numpy", False, True),
        ("UserWarning: mine after the run", True, False),
    ):
        assert (text in done.stderr, text in log) == (shown, logged), text
