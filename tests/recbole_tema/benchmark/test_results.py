"""What a folder of results belongs to: runs, rows and trials of these keys and these data alone."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from recbole_tema.benchmark.command import parse
from recbole_tema.benchmark.spec import content_hash
from recbole_tema.cli import main
from tests.recbole_tema.benchmark.test_command import words as words_of_all
from tests.support.tiny_dataset import make_dataset, write

pytestmark = pytest.mark.long

pytest.importorskip("duckdb", reason="the extra benchmark is not installed")
pytest.importorskip("matplotlib", reason="the extra benchmark is not installed")

POP = {"models": "Pop", "epochs": "1"}


def words(root, folder, **more):
    return [word for word in words_of_all(root, folder, **more) if "TEMA." not in word]


@pytest.fixture(scope="module")
def done(small_root, tmp_path_factory):
    """A benchmark of Pop alone."""
    folder = tmp_path_factory.mktemp("results") / "done"
    assert main(words(small_root, folder, **POP)) == 0
    return folder


@pytest.fixture
def copied(done, tmp_path):
    return shutil.copytree(done, tmp_path / "copied")


def test_presets_of_rows_make_no_table_of_two_protocols(small_root, tmp_path, capsys):
    for models, key in (
        ("Pop@abxi,BPR@llm4cdsr", "eval_args"),
        ("Pop@per-domain,BPR", "eval_args"),
    ):
        assert main(words(small_root, tmp_path / "new", models=models, epochs="1")) == 2
        said = capsys.readouterr().err
        assert f"ranked alike, and these would not be:\n  {key} is " in said
    assert not list(tmp_path.glob("new/runs/*"))


def test_a_row_that_is_ranked_otherwise_does_not_join(copied, small_root, capsys):
    before = (copied / "benchmark.json").read_bytes()
    for protocol in ({"candidates": "all"}, {"topk": "[1, 10]"}, {"eval_args": "{mode: uni5}"}):
        assert main(words(small_root, copied, models="BPR", epochs="1", **protocol)) == 2
        said = capsys.readouterr().err
        assert f"rows that were ranked otherwise:\n  {next(iter(protocol))} is " in said
    assert (copied / "benchmark.json").read_bytes() == before
    assert not list(copied.glob("runs/BPR*"))


def test_a_finished_run_of_other_keys_is_not_taken(copied, small_root, capsys):
    (copied / "benchmark.json").unlink()
    for jobs in ("1", "0"):
        assert main(words(small_root, copied, **{**POP, "learning_rate": "0.5"}, jobs=jobs)) == 2
        said = capsys.readouterr().err
        assert "Pop-seed2020/run.json is of a run with other keys or other data" in said
    assert main(words(small_root, copied, **POP)) == 0  # these are its own
    assert "1 of 1 runs are there already" in capsys.readouterr().out


def worker(folder):
    command = [sys.executable, "-W", "ignore", "-m", "recbole_tema.benchmark.worker", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_keys_and_data_that_change_under_a_benchmark_end_its_runs(copied, small_root, tmp_path):
    """As if a property file or the dataset had been edited after the benchmark began."""
    run = copied / "runs" / "Pop-seed2020"
    (run / "run.json").unlink()
    spec = json.loads((run / "spec.json").read_text())
    other = json.loads(json.dumps(spec))
    other["stated"]["keys"]["MAX_ITEM_LIST_LENGTH"] = 7
    (run / "spec.json").write_text(json.dumps(other))
    ended = worker(run)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert "changed since the benchmark began: Pop: MAX_ITEM_LIST_LENGTH 7 there, " in ended.stderr
    root = shutil.copytree(small_root, tmp_path / "data")
    (run / "spec.json").write_text(json.dumps({**spec, "data_path": str(root)}))
    items = root / "genre-small" / "genre-small.item"
    items.write_text(items.read_text().replace("Toy", "Joy", 1))
    ended = worker(run)
    assert ended.returncode == 2
    assert "the files of dataset 'genre-small' have changed" in ended.stderr
    assert not (run / "run.json").exists()


@pytest.mark.slow
def test_a_row_that_never_ran_holds_nobody_to_its_keys(small_root, tmp_path, capsys):
    folder = tmp_path / "results"
    wrong = words(small_root, folder, models="SASRec", epochs="1", SASRec__hidden_size="63")
    assert main(wrong) == 2
    assert "no run is finished" in capsys.readouterr().err
    right = words(small_root, folder, models="SASRec", epochs="1", SASRec__hidden_size="16")
    assert main(right) == 0
    capsys.readouterr()
    assert main(wrong) == 2  # now there is something of it
    said = capsys.readouterr().err
    assert "SASRec: hidden_size 16 there, 63 now" in said
    assert "or delete what there is of these rows (runs/SASRec-seed*)" in said
    shutil.rmtree(folder / "runs" / "SASRec-seed2020")
    assert main([*wrong, "--jobs=0"]) == 2  # as it says, nothing of it is in the way
    assert "no run is finished" in capsys.readouterr().err


@pytest.fixture(scope="module")
def elsewhere(small_root, tmp_path_factory):
    """A benchmark that was started where another copy of the package lies, of metrics of its own.

    Python looks for modules where it is started first.
    """
    folder = tmp_path_factory.mktemp("elsewhere")
    other = folder / "recbole_tema"
    other.mkdir()
    (other / "__init__.py").write_text("raise SystemExit('the other copy')")
    asked = {**POP, "topk": "[1, 5]", "metrics": "[Hit, NDCG]", "valid_metric": "NDCG@5"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        code = main(words(small_root, folder / "results", **asked))
    return code, folder / "results"


def test_its_processes_are_of_the_package_that_started_them(elsewhere):
    code, folder = elsewhere
    assert code == 0 and (folder / "runs" / "Pop-seed2020" / "run.json").is_file()


def test_the_table_shows_what_was_asked_for(elsewhere):
    _, folder = elsewhere
    for name in ("table.md", "table.tex", "report.html"):
        text = (folder / name).read_text()
        assert "hit@1" in text and "ndcg@10" not in text
    # The figures' own metric is among the numbers.
    metrics = set(pd.read_csv(folder / "table.csv")["metric"])
    assert metrics == {"hit@1", "ndcg@1", "hit@5", "ndcg@5", "ndcg@10"}


def test_a_dataset_with_nothing_to_validate_on(tmp_path):
    folder = tmp_path / "data" / "shop"
    folder.mkdir(parents=True)
    rows = [(f"u{u}", f"i{(u + at) % 5}", at) for u in range(8) for at in range(3)]
    write(folder / "shop.inter", ["user_id:token", "item_id:token", "timestamp:float"], rows)
    heads = ["item_id:token", "domain:token"]
    write(folder / "shop.item", heads, [(f"i{i}", "a" if i < 3 else "b") for i in range(5)])
    keys = {"models": "BPR", "dataset": "shop"}
    assert main(words(tmp_path / "data", tmp_path / "results", **keys)) == 0

    def refused(name):
        raise AssertionError(f"{name} is no JSON")

    text = (tmp_path / "results" / "runs" / "BPR-seed2020" / "run.json").read_text()
    assert json.loads(text, parse_constant=refused)["best_valid_score"] is None


@pytest.mark.slow
def test_a_failed_trial_is_tried_again_and_counted(small_root, tmp_path, capsys):
    pytest.importorskip("optuna")
    folder = tmp_path / "results"
    in_the_way = folder / "tune" / "BPR-seed2020-trial1" / "log"
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_text("a file where a folder should be")
    asked = words(small_root, folder, models="BPR", epochs="1", tune="2")
    assert main(asked) == 1
    said = capsys.readouterr().out
    assert "(1 of 2 trials have a score)" in said and "failed: BPR, trial 2 of 2" in said
    assert "BPR by 1 of 2 trials" in (folder / "report.html").read_text()
    # A report alone is of what is there.
    assert main([*asked, "--jobs=0"]) == 0
    assert "(1 of 2 trials have a score)" in capsys.readouterr().out
    in_the_way.unlink()
    # The trial may choose other keys for the row; what there is of it then has to go.
    shutil.rmtree(folder / "runs" / "BPR-seed2020")
    assert main(asked) == 0
    assert "BPR by 2 of 2 trials" in (folder / "report.html").read_text()
    assert (in_the_way.parent / "run.json").is_file()
    # Asked for one trial, a row has no more than one, whatever others there are.
    shutil.rmtree(folder / "runs" / "BPR-seed2020")
    capsys.readouterr()
    assert main([*words(small_root, folder, models="BPR", epochs="1", tune="1")]) == 0
    assert "with the given keys" in capsys.readouterr().out


def test_ablations_that_would_be_the_same_are_one(tmp_path):
    make_dataset(tmp_path, name="vectors", features=("itemllm",))
    make_dataset(tmp_path, name="ids", features=())
    given = {"data_path": str(tmp_path)}
    spec, _, _ = parse({**given, "dataset": "vectors", "ablation": "LLM4CDSR"})
    assert [entry.keys for entry in spec.entries] == [{}, {"alpha": 0}]
    spec, _, _ = parse({**given, "dataset": "ids", "ablation": "TEMA"})
    assert {"use_id": False} not in [entry.keys for entry in spec.entries]
    spec, _, _ = parse({**given, "dataset": "vectors", "ablation": "TEMA", "TEMA.n_layers": "1"})
    assert len(spec.entries) > 1


def test_every_file_that_a_model_can_read_counts(tiny_root, tmp_path):
    folder = shutil.copytree(tiny_root / "tiny", tmp_path / "tiny")
    before = content_hash(folder, "tiny")
    Path(folder, "notes.txt").write_text("no file of the dataset")
    assert content_hash(folder, "tiny") == before
    seen = {before}
    for suffix in ("kg", "link", "user"):
        (folder / f"tiny.{suffix}").write_text("a\n")
        seen.add(content_hash(folder, "tiny"))
    assert len(seen) == 4
