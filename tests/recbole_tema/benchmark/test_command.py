"""The runs of a benchmark: what is kept, what goes on, what is refused."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import pytrec_eval
from filelock import FileLock

from recbole_tema.benchmark.command import parse
from recbole_tema.benchmark.runner import owned
from recbole_tema.benchmark.spec import Entry, differences, run_folder, stated
from recbole_tema.benchmark.targets import read_targets, write_targets
from recbole_tema.benchmark.tuning import tuned
from recbole_tema.cli import main
from recbole_tema.evaluation.metrics import per_target
from tests.support.browser import missing, opened
from tests.support.cdr_checkout import write_checkout

pytestmark = pytest.mark.long

pytest.importorskip("duckdb", reason="the extra benchmark is not installed")
pytest.importorskip("matplotlib", reason="the extra benchmark is not installed")

KEYS = {
    "dataset": "genre-small",
    "epochs": "2",
    "train_batch_size": "64",
    "TEMA.hidden_size": "16",
    "threads": "1",
}


def words(root, folder, **more):
    keys = {**KEYS, "data_path": str(root), "results_dir": str(folder), **more}
    return [f"--{key.replace('__', '.')}={value}" for key, value in keys.items()]


@pytest.fixture(scope="module")
def done(small_root, tmp_path_factory):
    """A folder with the results of two models and one that fails."""
    folder = tmp_path_factory.mktemp("results")
    # A batch of GRU4Rec's cannot be so large that its file of logs cannot be made.
    (folder / "runs" / "GRU4Rec-seed2020").mkdir(parents=True)
    (folder / "runs" / "GRU4Rec-seed2020" / "log").write_text("a file where a folder should be")
    code = main(words(small_root, folder, models="TEMA,GRU4Rec,Pop"))
    return folder, code


def test_one_failure_stops_no_other(done):
    folder, code = done
    assert code == 1
    assert {p.parent.name for p in folder.glob("runs/*/run.json")} == {
        "TEMA-seed2020",
        "Pop-seed2020",
    }
    frame = pd.read_csv(folder / "table.csv")
    assert set(frame["model"]) == {"TEMA", "Pop"}
    assert "trained for" not in (folder / "figures" / "curves.svg").read_text()


def test_stored_ranks_are_those_of_the_runs_metrics(done):
    folder, _ = done
    for name in ("TEMA", "Pop"):
        where = folder / "runs" / f"{name}-seed2020"
        record = json.loads((where / "run.json").read_text())
        for phase in ("valid", "test"):
            targets = read_targets(where / f"{phase}.parquet")
            metrics = record["metrics"][phase]
            for key, value in metrics.items():
                domain, _, key = key.rpartition("/")
                if domain == "macro":
                    parts = [metrics[f"{name}/{key}"] for name in targets["domain"].unique()]
                    assert value == pytest.approx(sum(parts) / len(parts), abs=1.1e-6)
                    continue
                part = targets[targets["domain"] == domain] if domain else targets
                metric, _, k = key.partition("@")
                ours = per_target(metric, part["rank"].to_numpy(), int(k)).mean()
                assert ours == pytest.approx(value, abs=5.1e-7)  # RecBole rounds
            assert targets["rank"].le(targets["candidates"]).all()
            assert targets["rank"].min() >= 1


def test_the_table_is_what_trec_eval_makes_of_the_stored_ranks(done):
    folder, _ = done
    table = pd.read_csv(folder / "table.csv").set_index(["model", "slice", "metric"])["mean"]
    names = {"hit": "success", "ndcg": "ndcg_cut"}
    for model in ("TEMA", "Pop"):
        targets = read_targets(folder / "runs" / f"{model}-seed2020" / "test.parquet")
        # A document list as long as the candidates, the target at its stored rank.
        run, qrels, best = {}, {}, {}
        for row in targets.itertuples():
            run[row.user] = {str(place): -float(place) for place in range(1, row.candidates + 1)}
            qrels[row.user] = {str(row.rank): 1}
            best[row.user] = {place: s for place, s in run[row.user].items() if s >= -10}
        wanted = {f"{theirs}.5,10,20" for theirs in names.values()}
        judged = pytrec_eval.RelevanceEvaluator(qrels, wanted).evaluate(run)
        mrr = pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank"}).evaluate(best)
        for part in ("overall", *targets["domain"].unique()):
            users = targets[targets["domain"].isin([part]) | (part == "overall")]["user"]
            for k in (5, 10, 20):
                for ours, theirs in names.items():
                    expected = np.mean([judged[user][f"{theirs}_{k}"] for user in users])
                    assert table[model, part, f"{ours}@{k}"] == pytest.approx(expected, abs=1e-9)
            expected = np.mean([mrr[user]["recip_rank"] for user in users])
            assert table[model, part, "mrr@10"] == pytest.approx(expected, abs=1e-9)


@pytest.mark.slow
def test_rows_that_are_trained_for_each_domain(small_root, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkout = write_checkout(Path("checkout"))  # relative, as one types it
    folder = tmp_path / "results"
    keys = {"models": "Pop,BPR@target,CMF", "recbole_cdr_path": str(checkout), "jobs": "2"}

    def started(**keys):
        return [word for word in words(small_root, folder, **keys) if "TEMA." not in word]

    assert main(started(**keys)) == 0
    runs = {p.parent.name for p in folder.glob("runs/*/run.json")}
    domains = ("heart", "thrill")
    parts = {f"{name}-seed2020-to-{d}" for name in ("BPR_target", "CMF") for d in domains}
    assert runs == {"Pop-seed2020", *parts}
    whole = read_targets(folder / "runs/Pop-seed2020/test.parquet").set_index("user")
    for name in parts:
        part = read_targets(folder / "runs" / name / "test.parquet").set_index("user")
        domain = name.rpartition("-")[2]
        assert set(part["domain"]) == {domain}
        assert set(part.index) == set(whole[whole["domain"] == domain].index)
        same = ["item", "candidates", "history", "overlap", "popularity"]
        assert part[same].equals(whole.loc[part.index, same])
        record = json.loads((folder / "runs" / name / "run.json").read_text())
        assert record["target_domain"] == domain
    table = pd.read_csv(folder / "table.csv")
    overall = table[table["slice"] == "overall"].set_index(["model", "metric"])
    ranks = pd.concat(
        read_targets(folder / "runs" / f"CMF-seed2020-to-{d}" / "test.parquet")["rank"]
        for d in domains
    )
    assert overall.loc[("CMF", "hit@10"), "targets"] == len(whole)
    assert overall.loc[("CMF", "hit@10"), "mean"] == pytest.approx((ranks <= 10).mean(), abs=1e-12)
    page = (folder / "report.html").read_text()
    assert "CMF to heart" in page and "BPR@target to thrill" in page
    curves = (folder / "figures" / "curves.svg").read_text()
    for panel in ("trained for all domains at once", *(f"trained for {d}" for d in domains)):
        assert panel in curves  # their scores are of other targets
    capsys.readouterr()
    assert main(started(**keys)) == 0
    assert "5 of 5 runs are there already" in capsys.readouterr().out
    assert main(started(**{**keys, "models": "TEMA@target"})) == 2
    assert "train_on is 'target'" in capsys.readouterr().err
    assert main(started(nproc="2", **keys)) == 2
    assert "give --jobs" in capsys.readouterr().err
    assert main(started(**{**keys, "models": "BPR@heart"})) == 2
    assert "only 'BPR@target'" in capsys.readouterr().err


def test_targets_are_the_last_events_of_the_files(done, small_root):
    folder, _ = done
    events = pd.read_csv(small_root / "genre-small/genre-small.inter", sep="\t", dtype=str)
    events.columns = [head.partition(":")[0] for head in events.columns]
    events["timestamp"] = events["timestamp"].astype(float)
    last = events.sort_values("timestamp", kind="stable").groupby("user_id").tail(1)
    expected = dict(zip(last["user_id"], last["item_id"], strict=True))
    targets = read_targets(folder / "runs/TEMA-seed2020/test.parquet")
    assert dict(zip(targets["user"], targets["item"], strict=True)) == expected
    lengths = events.groupby("user_id").size()
    assert (targets["history"] == lengths[targets["user"]].to_numpy() - 1).all()


def test_again_it_runs_only_what_is_missing(done, small_root, capsys):
    folder, _ = done
    before = {p: p.stat().st_mtime_ns for p in folder.glob("runs/*/run.json")}
    table = (folder / "table.csv").read_bytes()
    assert main(words(small_root, folder, models="TEMA,Pop")) == 0
    assert "2 of 2 runs are there already" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in folder.glob("runs/*/run.json")} == before
    assert (folder / "table.csv").read_bytes() == table


def test_a_report_of_what_is_finished(done, small_root, capsys):
    folder, _ = done
    assert main(words(small_root, folder, models="TEMA,Pop", seeds="3", jobs="0")) == 0
    assert "| TEMA | 1 |" in capsys.readouterr().out
    assert not (folder / "runs" / "TEMA-seed2021").exists()


def test_the_page_asks_nothing_of_anybody(done):
    page = (done[0] / "report.html").read_text()
    for sign in ("src=", "@import", "url(http", "<script", '<link rel="stylesheet'):
        assert sign not in page
    assert page.count("<svg") == 12 and "TEMA" in page
    assert {p.name for p in (done[0] / "figures").iterdir()} == {
        f"{name}.{end}"
        for name in ("models", "history", "popularity", "overlap", "curves", "time")
        for end in ("png", "svg")
    }


def test_a_folder_of_other_keys_or_data_is_refused(done, small_root, tmp_path, capsys):
    folder, _ = done
    before = (folder / "benchmark.json").read_bytes()
    assert main(words(small_root, folder, models="TEMA,Pop", epochs="3")) == 2
    said = capsys.readouterr().err
    assert "TEMA: epochs 2 there, 3 now" in said and "--results_dir" in said
    given = dict(w[2:].split("=", 1) for w in words(small_root, folder, models="TEMA"))
    new = stated(parse(given)[0])
    old = {**new, "content": "0" * 64}
    assert "files of dataset 'genre-small' have changed" in differences(old, new)[0]
    assert (folder / "benchmark.json").read_bytes() == before


def test_a_report_alone_states_nothing(done, small_root, tmp_path, capsys):
    folder = tmp_path / "results"
    asked = words(small_root, folder, models="TEMA", jobs="0", epochs="5")
    assert main(asked) == 2
    assert "no run is finished" in capsys.readouterr().err and not folder.exists()
    folder.mkdir()
    assert main(asked) == 2
    assert not (folder / "benchmark.json").exists(), "or other keys could not be run there"
    shutil.copytree(done[0], folder, dirs_exist_ok=True)
    assert main(asked) == 2
    assert "holds results of something else" in capsys.readouterr().err


def test_published_ranks_are_no_runs(done, small_root, tmp_path, capsys):
    folder = tmp_path / "results"
    shutil.copytree(done[0], folder)
    ranks = folder / "runs/Pop-seed2020/test.parquet"
    write_targets(read_targets(ranks).drop(columns=["user", "item"]), ranks)
    assert main(words(small_root, folder, models="TEMA,Pop", jobs="0")) == 2
    said = capsys.readouterr().err
    assert "test.parquet has no user and no item, as ranks that were published" in said


@pytest.mark.slow
def test_an_overlap_study_has_its_figure(small_root, tmp_path):
    text = words(small_root, tmp_path / "r", overlap="0.5,1", models="TEMA")
    assert main(text) == 0
    assert (tmp_path / "r/figures/ratio.png").stat().st_size > 1000
    assert (tmp_path / "r/report.html").read_text().count("<svg") == 14


def test_the_word_benchmark_is_another_way_to_ask(small_root, tmp_path, capsys):
    assert main(["benchmark", *words(small_root, tmp_path / "r", models="TEMA", seeds="0")]) == 2
    assert "--seeds is 0" in capsys.readouterr().err
    assert main(["benchmark", "--model=TEMA"]) == 2
    assert "benchmark needs --models" in capsys.readouterr().err


def test_two_benchmarks_do_not_share_a_folder(done, small_root, capsys):
    folder, _ = done
    with FileLock(folder / ".lock"):
        assert main(words(small_root, folder, models="TEMA,Pop")) == 2
    assert "another benchmark works in it" in capsys.readouterr().err


def test_runs_that_ranked_other_targets_are_not_compared(done, small_root, capsys):
    folder, _ = done
    path = folder / "runs/Pop-seed2020/test.parquet"
    whole = path.read_bytes()
    try:
        write_targets(read_targets(path).iloc[1:], path)
        assert main(words(small_root, folder, models="TEMA,Pop")) == 2
        assert "other targets or candidates" in capsys.readouterr().err
        path.write_bytes(whole[:50])
        assert main(words(small_root, folder, models="TEMA,Pop")) == 2
        assert "test.parquet" in capsys.readouterr().err
    finally:
        path.write_bytes(whole)


@pytest.mark.slow
def test_kill_9_three_times_changes_no_number(small_root, tmp_path):
    """At random moments, the whole of it: the runner, and with it the run under way."""
    keys = {"models": "TEMA,GRU4Rec,Pop", "seeds": "2", "epochs": "6", "jobs": "2"}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(words(small_root, whole, **keys)) == 0
    command = [sys.executable, "-W", "ignore", "-c"]
    command += ["import sys; from recbole_tema.cli import main; sys.exit(main(sys.argv[1:]))"]
    rng, kills = random.Random(7), 0
    while kills < 3:
        process = subprocess.Popen([*command, *words(small_root, killed, **keys)])
        time.sleep(rng.uniform(8, 20))
        if process.poll() is not None:
            break
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
        time.sleep(3)  # its runs end by themselves
    assert kills == 3
    assert main(words(small_root, killed, **keys)) == 0
    assert (killed / "table.csv").read_bytes() == (whole / "table.csv").read_bytes()
    for entry in ("TEMA", "GRU4Rec", "Pop"):
        for seed in (2020, 2021):
            ranks = [
                read_targets(run_folder(folder, Entry(entry, entry), seed) / "test.parquet")["rank"]
                for folder in (whole, killed)
            ]
            assert np.array_equal(*ranks)


def test_a_damaged_statement_is_told(done, small_root, capsys):
    folder, _ = done
    path = folder / "benchmark.json"
    whole = path.read_bytes()
    try:
        path.write_text("{")
        assert main(words(small_root, folder, models="TEMA,Pop")) == 2
        assert "no JSON" in capsys.readouterr().err
    finally:
        path.write_bytes(whole)


@pytest.mark.slow
def test_a_search_goes_on_where_it_was(small_root, tmp_path, capsys):
    """In two steps as in one: the same trials, the same choice, the same table."""
    pytest.importorskip("optuna")
    keys = {"models": "BPR", "epochs": "1"}
    once, twice = tmp_path / "once", tmp_path / "twice"
    plain = [word for word in words(small_root, once, **keys, tune="3") if "TEMA" not in word]
    assert main(plain) == 0
    for trials in ("1", "3"):
        again = words(small_root, twice, **keys, tune=trials)
        spec, folder, _ = parse(dict(w[2:].split("=", 1) for w in again if "TEMA" not in w))
        with owned(folder):
            spec = tuned(folder, spec, stated(spec), int(trials), 1, print).spec
    chosen = json.loads((once / "benchmark.json").read_text())["entries"]["BPR"]["keys"]
    assert chosen["learning_rate"] == spec.entries[0].keys.get("learning_rate", 0.001)
    scores = []
    for number in range(3):
        specs = [
            json.loads((f / f"tune/BPR-seed2020-trial{number}/spec.json").read_text())["keys"]
            for f in (once, twice)
        ]
        assert specs[0] == specs[1]
        assert (specs[0] == {}) == (number == 0)
        record = json.loads((once / f"tune/BPR-seed2020-trial{number}/run.json").read_text())
        assert set(record["metrics"]) == {"valid"}  # no test target is looked at
        scores.append((record["best_valid_score"], specs[0]))
    best = max(scores, key=lambda found: found[0])[1]
    assert best == spec.entries[0].keys
    # A report alone runs no trial.
    table = (once / "table.csv").read_bytes()
    assert main([*plain, "--jobs=0"]) == 0
    assert (once / "table.csv").read_bytes() == table
    more = [word.replace("tune=3", "tune=4") for word in plain]
    assert main([*more, "--jobs=0"]) == 2
    assert "--jobs=0 runs nothing, and trial 4 of 4 of BPR has not begun" in capsys.readouterr().err
    # Trials of other keys are no trials of these.
    other = words(small_root, twice, **{**keys, "epochs": "2"}, tune="3")
    trials = {path: path.read_bytes() for path in twice.rglob("run.json")}
    assert main([word for word in other if "TEMA" not in word]) == 2
    assert "BPR: epochs 1 there, 2 now" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in twice.rglob("run.json")} == trials


@pytest.mark.slow
@pytest.mark.skipif(missing() is not None, reason=f"{missing()} is not installed")
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_in_a_browser(done, tmp_path, width):
    path = done[0] / "report.html"
    with opened(path, tmp_path / "profile", width) as page:
        assert page.console() == []
        assert page.requests() == [path.resolve().as_uri()]
        # The figures of this width are seen, those of the other are not, and nothing overflows.
        seen, hidden = ("wide", "narrow") if width > 700 else ("narrow", "wide")
        sizes = "return [...document.querySelectorAll('.%s svg')].map(s => s.clientWidth)"
        shown = page.run(sizes % seen)
        assert len(shown) == 6 and all(0.7 * width < size <= width for size in shown)
        assert not any(page.run(sizes % hidden))
        assert page.run("return document.documentElement.scrollWidth") <= width
        page.screenshot(tmp_path / "page.png")
