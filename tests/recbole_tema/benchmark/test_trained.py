"""Models of a finished benchmark, ranked again under another protocol."""

import json
import shutil

import pandas as pd
import pytest

from recbole_tema.benchmark.targets import read_targets
from recbole_tema.benchmark.trained import evaluation_keys
from recbole_tema.cli import main
from recbole_tema.errors import ConfigError
from tests.recbole_tema.benchmark.test_command import words as words_of_all

pytestmark = pytest.mark.long

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


PROTOCOL = {
    **{"exclude_history": "False", "candidates": "all", "topk": "[3, 10]"},
    **{"eval_args": "{mode: uni20}", "eval_neg_seed": "7"},
}


def test_it_ranks_as_a_benchmark_under_that_protocol_would(done, small_root, tmp_path):
    again, fresh = tmp_path / "again", tmp_path / "fresh"
    asked = {**MODELS, **PROTOCOL}
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
    assert "whose protocol chose their best epochs" in (again / "report.html").read_text()
    assert "chose their best epochs" not in (fresh / "report.html").read_text()


@pytest.mark.slow
def test_a_chain_ends_where_it_began(done, small_root, tmp_path):
    """What a folder in between was ranked by does not stay: ranks are those of `done` again."""
    between, again = tmp_path / "between", tmp_path / "again"
    assert main(words(small_root, between, **POP, trained=str(done), candidates="all")) == 0
    assert main(words(small_root, again, **POP, trained=str(between))) == 0
    ranks = [
        read_targets(folder / "runs" / "Pop-seed2020" / "test.parquet")["rank"]
        for folder in (done, between, again)
    ]
    assert ranks[2].equals(ranks[0]) and not ranks[1].equals(ranks[0])


@pytest.mark.slow
def test_a_model_that_was_trained_again_is_ranked_again(done, small_root, tmp_path, capsys):
    trained, again = tmp_path / "trained", tmp_path / "again"
    shutil.copytree(done, trained)
    asked = words(small_root, again, **POP, trained=str(trained))
    assert main(asked) == 0
    path = again / "runs" / "Pop-seed2020" / "run.json"
    record = json.loads(path.read_text())
    there = trained / "runs" / "Pop-seed2020" / "run.json"
    # As if another machine had trained it: its facts are told, not those of the ranking.
    there.write_text(json.dumps({**json.loads(there.read_text()), "threads": 77}))
    capsys.readouterr()
    assert main([*asked, "--jobs=0"]) == 2
    assert "the models of 1 runs were trained again since" in capsys.readouterr().err
    assert main(asked) == 0
    assert "1 runs are ranked again" in capsys.readouterr().out
    after = json.loads(path.read_text())
    assert after["threads"] == 77 and after["metrics"] == record["metrics"]
    assert main(asked) == 0
    assert "1 of 1 runs are there already" in capsys.readouterr().out


def test_without_models_it_says_what_to_give(done, capsys):
    assert main([f"--trained={done}"]) == 2
    assert "benchmark needs --models=A,B,C" in capsys.readouterr().err


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


def test_a_seed_that_is_not_there_fails_alone(done, small_root, tmp_path, capsys):
    again = tmp_path / "again"
    assert main(words(small_root, again, **POP, seeds="2", trained=str(done))) == 1
    assert "no finished run to rank again" in capsys.readouterr().out
    assert [p.parent.name for p in again.glob("runs/*/run.json")] == ["Pop-seed2020"]
    # The folder is one of ranked models now, and takes no trained ones.
    assert main(words(small_root, again, **POP)) == 2
    assert "models that were ranked again there, trained models now" in capsys.readouterr().err


def test_a_model_that_is_gone_is_told(done, small_root, tmp_path, capsys):
    partial = tmp_path / "partial"
    shutil.copytree(done, partial)
    shutil.rmtree(partial / "runs" / "Pop-seed2020" / "model")
    keys = {**POP, "trained": str(partial)}
    assert main(words(small_root, tmp_path / "again", **keys)) == 2  # nothing to report
    assert "the trained model is gone" in capsys.readouterr().out


def test_models_of_another_split_are_not_ranked_again(tmp_path):
    path = tmp_path / "benchmark.json"

    def statement(split):
        keys = {"eval_args": {"split": split, "mode": "full"}, "hidden_size": 8}
        entries = {"TEMA": {"model": "TEMA", "keys": keys}}
        return {"dataset": "tiny", "content": "0", "entries": entries}

    path.write_text(json.dumps(statement({"LS": "valid_and_test"})))
    assert evaluation_keys(tmp_path, statement({"LS": "valid_and_test"}), path)
    with pytest.raises(ConfigError, match=r"--trained: eval_args.split is .*per_domain.*TEMA"):
        evaluation_keys(tmp_path, statement({"LS": "per_domain"}), path)
