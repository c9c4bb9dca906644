"""ABXI's protocol on its published data: the targets that its paper counts, chosen by macro MRR."""

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from dataset_tools.cli import main
from recbole_tema import run_recbole_tema
from recbole_tema.quick_start import rank_checkpoint

PUBLISHED = os.environ.get("CDSR_DATA_PATH")  # a folder of the data that papers published
NAME = "abxi-food-kitchen"
PROTOCOL = {
    "eval_args": {"mode": "uni999"},
    **{"uncut_metrics": ["MRR"], "valid_metric": "macro/MRR", "topk": [5, 10]},
    **{"eval_groups": ["cold", "repeat"], "epochs": 1, "show_progress": False, "quiet": True},
}


def test_the_published_targets_of_abxi(tmp_path, monkeypatch):
    folder = Path(PUBLISHED or "") / NAME
    if not PUBLISHED or not folder.is_dir():
        pytest.skip(f"no published data {NAME}: CDSR_DATA_PATH names no folder that has them")
    pytest.importorskip("duckdb", reason="the extra convert is not installed")
    monkeypatch.chdir(tmp_path)
    known = json.loads(gzip.decompress((folder / "map_item_50.txt.gz").read_bytes()))
    rows = "".join(f"{i},{('food', 'kitchen')[d]}\n" for i, d in known.values())
    (tmp_path / "i.csv").write_text("item_id,domain\n" + rows)
    words = ["convert", "csv", NAME, "--data_path", str(tmp_path / "data"), "--items", "i.csv"]
    words += ["--interactions", str(folder / "afk_50_preprocessed.txt.gz")]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    result = run_recbole_tema("Pop", NAME, config_dict={**PROTOCOL, "data_path": "data"})
    test, valid = result["test_result"], result["best_valid_result"]
    assert result["best_valid_score"] == valid["macro/mrr"]
    for found in (test, valid):
        mean = (found["food/mrr"] + found["kitchen/mrr"]) / 2
        assert found["macro/mrr"] == pytest.approx(mean, abs=1e-6)
    # A count of the same files by other code: one draw of negatives.
    assert test["food/hit@10"] == pytest.approx(0.054, abs=0.008)
    assert test["kitchen/hit@10"] == pytest.approx(0.065, abs=0.008)
    _, ranks, plan, dataset = rank_checkpoint(result["model_file"], phases="test")["test"]
    assert np.bincount(plan.target_domain).tolist() == [0, 2419, 4725]
    assert not plan.repeated().any() and not len(plan.left_out)
    assert set(plan.n_candidates) == {1000}
    food = plan.target_domain == dataset.domain_names.index("food") + 1
    assert test["food/mrr"] == pytest.approx((1 / (ranks[food] + 1)).mean(), abs=1e-6)
    # Of no training event, by the events themselves: of each user all but the last two.
    events = {}
    for row in gzip.decompress((folder / "afk_50_preprocessed.txt.gz").read_bytes()).split(b"\n"):
        user, *pairs = row.decode().split()[:1] + row.decode().split()[1:] or [""]
        events[user] = [pair.split("|")[0] for pair in pairs]
    trained = {item for items in events.values() for item in items[:-2]}
    unseen = sum(items[-1] not in trained for items in events.values() if items)
    popularity = dataset.split_popularity()[plan.targets]
    assert unseen == np.count_nonzero(popularity == 0) > 0
