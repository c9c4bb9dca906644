"""Published benchmarks: the numbers of their tables come out of their ranks, by trec_eval."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import duckdb
import numpy as np
import pytest
import pytrec_eval

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = sorted((ROOT / "results").glob("benchmark-*"))
MEASURES = {"ndcg@10": "ndcg_cut_10", "hit@10": "success_10", "recall@10": "recall_10"}


def test_there_are_published_benchmarks():
    assert PUBLISHED


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda path: path.name)
def test_a_table_is_what_trec_eval_makes_of_the_ranks(folder):
    ranks = duckdb.read_parquet(str(folder / "ranks.parquet")).df()
    with open(folder / "table.csv", encoding="utf-8", newline="") as file:
        table = [line for line in csv.DictReader(file) if line["metric"] in MEASURES]
    # A rank beyond the first ten counts as none: one query a rank is enough.
    qrels = {str(rank): {"target": 1} for rank in range(1, 12)}
    run = {
        str(rank): {f"other{i}": 100.0 - i for i in range(1, rank)} | {"target": 100.0 - rank}
        for rank in range(1, 12)
    }
    found = pytrec_eval.RelevanceEvaluator(qrels, set(MEASURES.values())).evaluate(run)
    models = {column.rpartition(" ")[0] for column in ranks.columns if " " in column}
    assert {line["model"] for line in table} == models
    for line in table:
        own = [column for column in ranks if column.rpartition(" ")[0] == line["model"]]
        if line["slice"] == "macro":  # the mean over the domains, whose lines are judged
            continue
        inside = slice(None) if line["slice"] == "overall" else ranks["domain"] == line["slice"]
        value = np.array([found[str(rank)][MEASURES[line["metric"]]] for rank in range(1, 12)])
        values = value[np.minimum(ranks.loc[inside, own].to_numpy(dtype=int), 11) - 1]
        assert int(line["targets"]) == len(values) and int(line["seeds"]) == len(own)
        assert float(line["mean"]) == pytest.approx(values.mean(), abs=1e-9)


def test_runs_of_other_targets_are_not_published_together(tmp_path):
    for name, candidates in (("a", 5), ("b", 6)):
        folder = tmp_path / "from" / "runs" / name
        folder.mkdir(parents=True)
        record = {"label": name, "seed": 1, "target_domain": None}
        (folder / "run.json").write_text(json.dumps(record))
        (folder / "curve.jsonl").write_text('{"epoch": 0}\n')
        columns = f"'x' AS \"user\", 'book' AS domain, 2 AS rank, {candidates} AS candidates"
        columns += ", 3 AS history, true AS overlap, 4 AS popularity"
        duckdb.sql(f"SELECT {columns}").write_parquet(str(folder / "test.parquet"))
    command = [sys.executable, str(ROOT / "tools" / "publish_results.py"), str(tmp_path / "from")]
    refused = subprocess.run([*command, str(tmp_path / "to")], capture_output=True, text=True)
    assert refused.returncode == 1 and "has ranked other targets" in refused.stderr
    assert not (tmp_path / "to").exists()
    (tmp_path / "from" / "runs" / "b" / "run.json").unlink()
    subprocess.run([*command, str(tmp_path / "to")], check=True, capture_output=True)
    (row,) = duckdb.read_parquet(str(tmp_path / "to" / "ranks.parquet")).fetchall()
    assert row == ("book", 5, 3, True, 4, 2), "without the user"
    (line,) = (tmp_path / "to" / "runs.jsonl").read_text().splitlines()
    assert json.loads(line)["curve"] == [{"epoch": 0}]
