"""Models of a finished benchmark, ranked again under another protocol."""

import json
import shutil

import pandas as pd
import pytest

from recbole_tema.benchmark.targets import read_targets
from recbole_tema.cli import main

from .test_benchmark import words as words_of_all

pytest.importorskip("duckdb", reason="the extra benchmark is not installed")
pytest.importorskip("matplotlib", reason="the extra benchmark is not installed")

MODELS = {"models": "TEMA,Pop", "epochs": "1"}  # of one epoch no other could be the best

POP = {"models": "Pop", "epochs": "1"}


def words(root, folder, **more):
    given = words_of_all(root, folder, **more)
    return [word for word in given if "TEMA" in more["models"] or "TEMA." not in word]


@pytest.fixture(scope="module")
def done(small_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results") / "done"
    assert main(words(small_root, folder, **MODELS)) == 0
    return folder


@pytest.mark.parametrize(
    "protocol",
    [
        {"exclude_history": "True", "candidates": "all", "topk": "[3, 10]"},
        {"eval_args": "{mode: uni20}", "eval_neg_seed": "7"},
    ],
)
def test_it_ranks_as_a_benchmark_under_that_protocol_would(done, small_root, tmp_path, protocol):
    again, fresh = tmp_path / "again", tmp_path / "fresh"
    asked = {**MODELS, **protocol}
    assert main(words(small_root, again, **asked, trained=str(done))) == 0
    assert main(words(small_root, fresh, **asked)) == 0
    same = []
    for model in ("TEMA", "Pop"):
        name = f"{model}-seed2020"
        for phase in ("valid", "test"):
            ours, theirs, before = (
                read_targets(folder / "runs" / name / f"{phase}.parquet")
                for folder in (again, fresh, done)
            )
            pd.testing.assert_frame_equal(ours, theirs)
            same.append(ours["rank"].equals(before["rank"]))
        assert not (again / "runs" / name / "model").exists()  # nothing was trained
        found, first = (
            json.loads((folder / "runs" / name / "run.json").read_text())
            for folder in (again, done)
        )
        assert (again / "runs" / name / found["model_file"]).samefile(
            done / "runs" / name / first["model_file"]
        )
        assert found["best_valid_score"] == first["best_valid_score"]
    assert not any(same)
    assert (again / "table.csv").read_text() == (fresh / "table.csv").read_text()
    assert "chosen, under another protocol" in (again / "report.html").read_text()
    assert "under another protocol" not in (fresh / "report.html").read_text()


def test_under_the_same_protocol_the_ranks_are_the_same(done, small_root, tmp_path):
    again = tmp_path / "again"
    assert main(words(small_root, again, **MODELS, trained=str(done))) == 0
    for name in ("TEMA-seed2020", "Pop-seed2020"):
        ours, before = (
            read_targets(folder / "runs" / name / "test.parquet") for folder in (again, done)
        )
        pd.testing.assert_frame_equal(ours, before)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"TEMA.hidden_size": "32"}, "trained otherwise:\n  TEMA: hidden_size 16 there, 32 now"),
        ({"valid_metric": "MRR@10"}, "valid_metric 'NDCG@10' there, 'MRR@10' now"),
        ({"models": "TEMA,Pop,BPR"}, "has no BPR; there are TEMA, Pop"),
        ({"tune": "2"}, "nothing to --tune"),
        ({"trained": "nowhere"}, "nowhere is no folder of a benchmark's results"),
    ],
)
def test_refused(done, small_root, tmp_path, capsys, monkeypatch, more, says):
    monkeypatch.chdir(tmp_path)
    keys = {**MODELS, "trained": str(done), "exclude_history": "True", **more}
    assert main(words(small_root, tmp_path / "again", **keys)) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "again").exists()


def test_its_own_folder_is_refused(done, small_root, capsys):
    before = (done / "benchmark.json").read_bytes()
    assert main(words(small_root, done, **MODELS, trained=str(done))) == 2
    assert "give another --results_dir" in capsys.readouterr().err
    assert (done / "benchmark.json").read_bytes() == before


def test_folders_of_trained_and_of_ranked_models_are_not_mixed(done, small_root, tmp_path, capsys):
    again = tmp_path / "again"
    assert main(words(small_root, again, **POP, trained=str(done))) == 0
    capsys.readouterr()
    assert main(words(small_root, again, **POP)) == 2
    assert "models that were ranked again there, trained models now" in capsys.readouterr().err


def test_a_seed_that_is_not_there_fails_alone(done, small_root, tmp_path, capsys):
    again = tmp_path / "again"
    assert main(words(small_root, again, **POP, seeds="2", trained=str(done))) == 1
    assert "no finished run to rank again" in capsys.readouterr().out
    assert [p.parent.name for p in again.glob("runs/*/run.json")] == ["Pop-seed2020"]


def test_a_model_that_is_gone_is_told(done, small_root, tmp_path, capsys):
    partial = tmp_path / "partial"
    shutil.copytree(done, partial)
    shutil.rmtree(partial / "runs" / "Pop-seed2020" / "model")
    keys = {**POP, "trained": str(partial)}
    assert main(words(small_root, tmp_path / "again", **keys)) == 2  # nothing to report
    assert "the trained model is gone" in capsys.readouterr().out
