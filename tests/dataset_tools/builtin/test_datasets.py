"""Built-in datasets: built when missing or outdated, once, and by the command line."""

import os
import signal
import stat
import subprocess
import sys

import pytest
import yaml
from click.testing import CliRunner

from dataset_tools.__main__ import main
from dataset_tools.builtin.datasets import BUILTIN, ensure_builtin, rebuild_reason
from dataset_tools.dataset.card import read_card
from dataset_tools.encoders import text_encoder
from recbole_tema.errors import ConfigError, DataError
from recbole_tema.paths import default_data_path

pytestmark = pytest.mark.long

NAME = "ml-100k-genre"
ABSENT = "a_package_that_is_not_there"


@pytest.fixture(autouse=True)
def no_encoder(monkeypatch):
    """As on a machine without the `features` extra, which also makes a build take a second."""
    monkeypatch.setattr(text_encoder, "PACKAGES", (ABSENT,))


def stamps(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def edit_card(folder, **changes):
    path = folder / f"{NAME}.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))


def test_names():
    assert NAME in BUILTIN
    with pytest.raises(ConfigError, match=f"'ml100k'; nearest: '{NAME}'"):
        ensure_builtin("ml100k", "unused")


def test_built_once_without_vectors_and_says_how_to_get_them(tmp_path, caplog):
    caplog.set_level("INFO")
    folder = ensure_builtin(NAME, tmp_path)
    assert folder == tmp_path / NAME
    assert "not there yet" in caplog.text
    hints = [r.message for r in caplog.records if "recbole-tema[features]" in r.message]
    assert len(hints) == 1 and ABSENT in hints[0]
    files = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert files == {f"{NAME}.{suffix}" for suffix in ("inter", "item", "yaml")}
    card = read_card(folder, NAME)
    assert card["text_vectors"] is False and "clip_text" not in card["generated"]
    before = stamps(folder)
    caplog.clear()
    assert ensure_builtin(NAME, str(tmp_path)) == folder
    assert stamps(folder) == before and not caplog.text
    ensure_builtin(NAME, tmp_path, force=True)
    assert all(stamps(folder)[file] > before[file] for file in files)


DAMAGE = {  # what is done to the folder, what is said
    "half a card": (lambda f: (f / f"{NAME}.yaml").write_text("[half a car"), "unfinished"),
    "no card": (lambda f: (f / f"{NAME}.yaml").unlink(), "unfinished"),
    "another format": (lambda f: edit_card(f, format=99), "unfinished"),
    "no items": (lambda f: (f / f"{NAME}.item").unlink(), f"{NAME}.item missing"),
    "no events": (lambda f: (f / f"{NAME}.inter").write_text(""), f"{NAME}.inter missing"),
    "old": (lambda f: edit_card(f, builder={"name": "x", "version": 0}), "version 0, now"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_built_again_when_unusable(tmp_path, caplog, case):
    damage, says = DAMAGE[case]
    caplog.set_level("INFO")
    folder = ensure_builtin(NAME, tmp_path)
    good = {file: (folder / file).read_bytes() for file in stamps(folder)}
    damage(folder)
    caplog.clear()
    ensure_builtin(NAME, tmp_path)
    assert says in caplog.text
    assert {file: (folder / file).read_bytes() for file in stamps(folder)} == good


def test_built_again_once_vectors_can_be_had(tmp_path, monkeypatch):
    folder = ensure_builtin(NAME, tmp_path)
    assert rebuild_reason(NAME, folder) is None
    monkeypatch.setattr(text_encoder, "PACKAGES", ())
    assert "without text vectors" in rebuild_reason(NAME, folder)
    edit_card(folder, text_vectors=True)
    assert rebuild_reason(NAME, folder) is None


def test_changes_by_hand_are_kept_and_named(tmp_path, caplog):
    folder = ensure_builtin(NAME, tmp_path)
    path = folder / f"{NAME}.item"
    path.write_text(path.read_text().replace("Toy Story", "Toy Tale"))
    caplog.clear()
    ensure_builtin(NAME, tmp_path)
    assert f"kept: {NAME}.item" in caplog.text and "Toy Tale" in path.read_text()


CHILD = f"""
import logging, sys
logging.basicConfig(level=logging.INFO)
from dataset_tools.builtin import datasets as builtin
from dataset_tools.encoders import text_encoder
text_encoder.PACKAGES = ("{ABSENT}",)
print("ready", flush=True); sys.stdin.readline()
builtin.ensure_builtin("{NAME}", sys.argv[1])
"""


def start_child(code, folder):
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", code, str(folder)]
    child = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    assert child.stdout.readline() == "ready\n"
    return child


def test_two_processes_build_it_once(tmp_path):
    children = [start_child(CHILD, tmp_path) for _ in range(2)]
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    logs = [child.communicate()[1] for child in children]
    assert [child.returncode for child in children] == [0, 0], logs
    assert sum("building" in log for log in logs) == 1, logs
    assert rebuild_reason(NAME, tmp_path / NAME) is None


def test_killed_while_building_then_built(tmp_path, caplog):
    code = CHILD.replace(
        'print("ready", flush=True); sys.stdin.readline()',
        "import time\nimport dataset_tools.dataset.writer as writer\n"
        "def stop(*_):\n    print('ready', flush=True)\n    time.sleep(60)\n"
        "writer._swap = stop",
    )
    child = start_child(code, tmp_path)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert not (tmp_path / NAME / f"{NAME}.inter").exists()
    caplog.set_level("INFO")
    ensure_builtin(NAME, tmp_path)
    assert "unfinished" in caplog.text
    assert not [p for p in (tmp_path / NAME).iterdir() if "staging" in p.name]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_copy_is_used(tmp_path):
    folder = ensure_builtin(NAME, tmp_path)
    writable = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH
    for path in (folder, tmp_path):
        path.chmod(path.stat().st_mode & ~writable)
    try:
        assert ensure_builtin(NAME, tmp_path) == folder
    finally:
        for path in (tmp_path, folder):
            path.chmod(path.stat().st_mode | stat.S_IWUSR)


def test_a_data_path_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        ensure_builtin(NAME, tmp_path / "file")


# ---- command line and paths


def test_command_builds_into_the_named_and_the_default_folder(tmp_path, monkeypatch):
    done = CliRunner().invoke(main, ["build", NAME, "--data_path", str(tmp_path / "a")])
    assert done.exit_code == 0 and done.stdout == f"{tmp_path / 'a' / NAME}\n"
    monkeypatch.setenv("RECBOLE_TEMA_DATA", str(tmp_path / "b"))
    done = CliRunner().invoke(main, ["build", NAME])
    assert done.exit_code == 0 and done.stdout == f"{tmp_path / 'b' / NAME}\n"
    before = stamps(tmp_path / "b" / NAME)
    CliRunner().invoke(main, ["build", NAME])
    assert stamps(tmp_path / "b" / NAME) == before
    CliRunner().invoke(main, ["build", NAME, "--force"])
    assert stamps(tmp_path / "b" / NAME) != before


def run_command(*arguments):
    command = [sys.executable, "-m", "dataset_tools", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_wrong_name_is_one_line_and_exit_2(tmp_path):
    done = run_command("build", "ml-100k-gender", "--data_path", str(tmp_path))
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and f"nearest: '{NAME}'" in done.stderr
    assert os.listdir(tmp_path) == []


def test_help_has_examples():
    done = run_command("build", "--help")
    assert done.returncode == 0
    assert f"python -m dataset_tools build {NAME} --data_path ./dataset --force\n" in done.stdout


def test_default_data_path(monkeypatch, tmp_path):
    monkeypatch.delenv("RECBOLE_TEMA_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if sys.platform == "linux":
        assert default_data_path() == tmp_path / "recbole-tema" / "dataset"
    monkeypatch.setenv("RECBOLE_TEMA_DATA", "~/sets")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_data_path() == tmp_path / "sets"
