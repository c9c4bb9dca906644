"""`recbole-tema doctor`: what it names as wrong, each made so in a process of its own."""

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "run_recbole_tema.py"


def doctor(folder, **variables):
    """(exit code, lines) of the doctor, started in a folder."""
    ours = {"HF_HOME": str(folder / "hub"), "RECBOLE_TEMA_DATA": str(folder / "data"), **variables}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "doctor"],
        cwd=folder,
        env={**os.environ, **ours},
        capture_output=True,
        text=True,
    )
    assert not done.stderr, done.stderr
    return done.returncode, done.stdout.splitlines()


def pretend(folder, name, version):
    """Metadata of another version of a package, found before the true one's."""
    metadata = folder / f"{name}-{version}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@pytest.mark.slow  # .ci/run asks the doctor too
def test_here_nothing_is_to_be_mended(tmp_path):
    code, lines = doctor(tmp_path)
    assert (code, lines[-1]) == (0, "nothing to mend")
    assert {line.split()[1] for line in lines[:-1]} >= {"Python", "RecBole", "GPU", "datasets"}
    assert all(line.startswith("ok ") for line in lines[:-1])
    assert not list(tmp_path.iterdir()), "it leaves nothing behind"


@pytest.mark.long
def test_what_is_wrong_is_named_with_its_remedy(tmp_path):
    pretend(tmp_path / "site", "pandas", "3.1.0")
    pretend(tmp_path / "site", "recbole", "1.1.1")
    pretend(tmp_path / "site", "duckdb", "0.1.0")
    (tmp_path / "file").touch()
    wrong = {
        "PYTHONPATH": str(tmp_path / "site"),
        "RECBOLE_TEMA_DATA": str(tmp_path / "file" / "x"),
    }
    code, lines = doctor(tmp_path, **wrong)
    assert code == 1
    told = {one.split()[1]: (one, two) for one, two in pairwise(lines) if one[:2] == "!!"}
    assert "pandas 3.1.0 (not <3,>=2.2)" in told["packages"][0]
    assert told["packages"][1].strip() == "run: pip install 'recbole-tema'"
    assert "RecBole 1.1.1 is installed" in told["RecBole"][0]
    assert told["RecBole"][1].strip() == "run: pip install --no-deps recbole==1.2.1"
    assert (
        "duckdb 0.1.0" in told["[convert]"][0] and "recbole-tema[convert]" in told["[convert]"][1]
    )
    assert "cannot be written: Not a directory" in told["datasets"][0]
    assert "RECBOLE_TEMA_DATA" in told["datasets"][1]
    assert lines[-1] == f"{len(told)} to mend, marked by !!"
