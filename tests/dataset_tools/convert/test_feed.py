"""The thread that feeds raw files to the database: order, faults, and what stops it."""

import gzip
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from dataset_tools.convert import feed
from dataset_tools.convert.engine import Engine
from dataset_tools.convert.lines import Layout, json_lines, separated
from recbole_tema.errors import DataError

pytest.importorskip("duckdb", reason="the extra convert is not installed")


def numbered(tmp_path, rows):
    path = tmp_path / "many.csv.gz"
    with gzip.open(path, "wt", compresslevel=1) as file:
        file.write("n,text\n")
        file.writelines(f"{i},{'x' * (i % 200)}\n" for i in range(rows))
    return path


@pytest.mark.parametrize("pipes", [True, False], ids=["pipe", "file"])
def test_rows_have_the_numbers_of_their_places(tmp_path, monkeypatch, pipes):
    """Threads read them, in whatever order; a system without named pipes gets a file."""
    if not pipes:
        monkeypatch.delattr(os, "mkfifo")
    path = numbered(tmp_path, 300_000)
    (tmp_path / "work").mkdir()
    engine = Engine(tmp_path / "work", 1 << 30, 4)
    separated(engine, path, "t", Layout("table", ","))
    assert engine.rows("SELECT count(*), count(*) FILTER (n::BIGINT + 1 != _number) FROM t") == [
        (300_000, 0)
    ]
    assert not list((tmp_path / "work").glob("file*"))


def test_a_reader_that_leaves_or_never_comes_is_no_hang(tmp_path):
    path, before = numbered(tmp_path, 300_000), threading.active_count()
    with feed.fed(path, tmp_path / "pipe"):
        pass
    with feed.fed(path, tmp_path / "pipe") as tally, open(tmp_path / "pipe", "rb") as reader:
        reader.read(10)
    assert tally.lines < 300_001
    with feed.fed(path, tmp_path / "pipe"):
        held = os.open(tmp_path / "pipe", os.O_RDONLY)  # open, and nobody reads
    os.close(held)
    with feed.fed(path, tmp_path / "pipe") as tally, open(tmp_path / "pipe", "rb") as reader:
        assert len(reader.read().splitlines()) == tally.lines == 300_001
    assert threading.active_count() == before


def test_what_is_wrong_with_a_file_comes_before_what_its_half_gives(tmp_path):
    path = tmp_path / "cut.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"user_id": "u"}\n' * 500)[:-30])
    (tmp_path / "work").mkdir()
    engine = Engine(tmp_path / "work", 1 << 30, 1)
    with pytest.raises(DataError, match=r"cut\.jsonl\.gz.*cut short"):
        json_lines(engine, path, "t", {"user": "$.user_id"})


def test_the_feeders_fault_is_told(tmp_path, monkeypatch):
    """Whatever it is: half a file must not pass for a whole one."""
    path = numbered(tmp_path, 100_000)
    whole = feed.texts

    def half(*args):
        for number, block in enumerate(whole(*args)):
            if number == 3:
                raise RuntimeError("out of descriptors")
            yield block

    monkeypatch.setattr(feed, "texts", half)
    (tmp_path / "work").mkdir()
    engine = Engine(tmp_path / "work", 1 << 30, 1)
    with pytest.raises(RuntimeError, match="out of descriptors"):
        separated(engine, path, "t", Layout("table", ","))


@pytest.mark.parametrize("signal_name", ["SIGINT", "SIGTERM"])
def test_a_stopped_conversion_leaves_nothing(tmp_path, signal_name):
    path = numbered(tmp_path, 2_000_000)
    command = [sys.executable, "-W", "ignore", "-m", "dataset_tools", "convert", "csv", "shop"]
    command += ["--interactions", str(path), "--column", "user_id=n", "--column", "item_id=n"]
    command += ["--column", "timestamp=n", "--column", "domain=text"]
    command += ["--data_path", str(tmp_path / "out")]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what goes on behind its back with Ctrl-C ignored, and so these tests.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("out/.shop.convert-*/file*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(getattr(signal, signal_name))
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "nothing was written" in said, said
    assert not list((tmp_path / "out").iterdir())
