"""Whole runs through the public interface: every model meets the same evaluation, and RecBole's."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recbole_tema import load_model, run_recbole_tema
from recbole_tema.errors import ConfigError, DataError
from recbole_tema.progress import ProgressBar
from recbole_tema.quick_start import evaluate_checkpoint
from recbole_tema.trainer import trainer
from recbole_tema.trainer.checkpoint import read_checkpoint
from recbole_tema.trainer.trainer import evaluate_model
from tests.support.small_genre import NAME
from tests.support.tiny_dataset import make_dataset, write

pytestmark = pytest.mark.long

MODELS = ("TEMA", "LLM4CDSR", "SASRec", "GRU4Rec", "BERT4Rec", "Pop", "LightGCN")
LENGTH = 10
ROOT = Path(__file__).resolve().parents[2]
QUICK = {
    "epochs": 1,
    "MAX_ITEM_LIST_LENGTH": LENGTH,
    "hidden_size": 32,
    "train_batch_size": 4096,
    "show_progress": False,
    "metrics": ["Hit", "NDCG", "MRR", "Recall"],
    "topk": [5, 10],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the runs of this module leave their files."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("run"))
    yield Path.cwd()
    os.chdir(before)


@pytest.fixture(scope="module")
def runs(small_root, folder):
    """Model -> (result, phase -> (EvalData, dataset, ranks)) of its last evaluation of a phase."""
    found, seen = {}, {}

    def recording(model, eval_data, config, dataset, show_progress=False):
        result, ranks = evaluate_model(model, eval_data, config, dataset, show_progress)
        seen[eval_data.plan.phase] = (eval_data, dataset, ranks)
        return result, ranks

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "evaluate_model", recording)
        for model in MODELS:
            keys = {**QUICK, "data_path": str(small_root)}
            result = run_recbole_tema(model, NAME, config_dict=keys)
            found[model] = (result, dict(seen))
            seen.clear()
    return found


@pytest.fixture(scope="module")
def expected(small_root):
    """Phase -> user -> (target, history), and item -> domain, by pandas from the written files."""
    events = pd.read_csv(small_root / NAME / f"{NAME}.inter", sep="\t", dtype=str)
    events.columns = [head.partition(":")[0] for head in events.columns]
    events["timestamp"] = events["timestamp"].astype(float)
    events = events.sort_values("timestamp", kind="stable")
    items = pd.read_csv(small_root / NAME / f"{NAME}.item", sep="\t", dtype=str)
    domain = dict(zip(items["item_id:token"], items["domain:token"], strict=True))
    lists = {user: rows.tolist() for user, rows in events.groupby("user_id")["item_id"]}
    targets = {
        phase: {user: (row[-back], row[:-back]) for user, row in lists.items()}
        for phase, back in (("valid", 2), ("test", 1))
    }
    return targets, domain


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("phase", ["valid", "test"])
def test_every_model_is_ranked_on_the_files_targets_and_domains(runs, expected, model, phase):
    targets, domain = expected
    eval_data, dataset, ranks = runs[model][1][phase]
    plan = eval_data.plan
    users = dataset.id2token("user_id", plan.users).tolist()
    items = dataset.id2token("item_id", plan.targets).tolist()
    assert dict(zip(users, items, strict=True)) == {u: t for u, (t, _) in targets[phase].items()}
    assert len(users) == len(targets[phase])

    tokens = dataset.field2id_token["item_id"]
    candidates = plan._candidate_mask(np.arange(len(plan))).numpy()
    for row, target in enumerate(items):
        same = {item for item, place in domain.items() if place == domain[target]}
        same -= {*targets[phase][users[row]][1]}  # nobody has a film twice: exclude_history is True
        assert set(tokens[candidates[row]]) == same
        assert plan.n_candidates[row] == len(same) > ranks[row] >= 0

    seen = {}
    for rows, batch in eval_data.loader:
        for place, row in enumerate(rows):
            assert row not in seen
            seen[row] = dataset.id2token("user_id", batch["user_id"][place].item())
            if "item_id_list" in batch and model not in ("Pop", "LightGCN"):
                length = int(batch["item_length"][place])
                history = batch["item_id_list"][place][:length].numpy()
                past = targets[phase][seen[row]][1][-LENGTH:]
                assert dataset.id2token("item_id", history).tolist() == past
    assert [seen[row] for row in range(len(users))] == users


def test_results_have_the_same_form_and_follow_from_the_ranks(runs):
    keys = [list(result["test_result"]) for result, _ in runs.values()]
    assert all(one == keys[0] for one in keys)
    assert {"ndcg@10", "heart/ndcg@10", "thrill/hit@5"} <= set(keys[0])
    for model, (result, phases) in runs.items():
        assert list(result["best_valid_result"]) == keys[0]
        for phase, name in (("valid", "best_valid_result"), ("test", "test_result")):
            ranks = phases[phase][2]
            gain = np.where(ranks < 10, 1 / np.log2(ranks + 2), 0).mean()
            assert result[name]["ndcg@10"] == pytest.approx(gain, abs=1e-6), model
        assert result["best_valid_score"] == result["best_valid_result"]["ndcg@10"]
        lines = [line.split() for line in result["table"].splitlines()]
        row = next(line for line in lines if line[:1] == ["overall"])
        assert f"{result['test_result']['ndcg@10']:.4f}" in row
        assert Path(result["model_file"]).is_file()
        assert not list(Path("saved").glob("*.last.pth"))


STOCK = """
import json, sys, torch
import numpy as np
# numpy 2 dropped these, which RecBole reads.
np.float_, np.complex_, np.unicode_ = np.float64, np.complex128, np.str_
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.trainer import Trainer
from recbole.utils import get_model
keys = json.loads(sys.argv[1])
config = Config(model=sys.argv[2], dataset=sys.argv[3], config_dict=keys)
_, _, test = data_preparation(config, create_dataset(config))
model = get_model(sys.argv[2])(config, test._dataset)
state = torch.load(sys.argv[4], weights_only=True)
model.load_state_dict(state["state_dict"])
result = Trainer(config, model).evaluate(test, load_best_model=False)
assert not any(name.startswith("recbole_tema") for name in sys.modules)
print("RESULT" + json.dumps(result))
"""


@pytest.mark.parametrize("model", ["SASRec", "GRU4Rec"])
def test_recboles_own_evaluation_of_the_same_weights(runs, small_root, folder, model):
    """Among all items, RecBole's trainer in a process without the plugin comes to our metrics."""
    path = runs[model][0]["model_file"]
    protocol = {"candidates": "all", "exclude_history": False}  # RecBole's, of sequential models
    ours = evaluate_checkpoint(path, protocol, phases=["test"])["test"]
    stock_keys = {
        **{key: value for key, value in QUICK.items() if key != "epochs"},
        "data_path": str(small_root),
        "load_col": {
            "inter": ["user_id", "item_id", "timestamp"],
            "item": ["item_id", "domain"],
        },
        "train_neg_sample_args": None,
        "valid_metric": "NDCG@10",
        "metric_decimal_place": 6,
        "eval_args": {
            "split": {"LS": "valid_and_test"},
            "order": "TO",
            "group_by": "user",
            "mode": "full",
        },
    }
    done = subprocess.run(
        [sys.executable, "-c", STOCK, json.dumps(stock_keys), model, NAME, str(folder / path)],
        capture_output=True,
        text=True,
        cwd=folder,
    )
    assert "RESULT" in done.stdout, done.stderr[-3000:]
    theirs = json.loads(done.stdout.split("RESULT")[1])
    assert {key: value for key, value in ours.items() if "/" not in key} == pytest.approx(
        theirs, abs=2e-6
    )


# Python callers


def test_names_come_from_files_and_dicts_where_no_argument_gives_them(settings, tmp_path):
    (tmp_path / "a.yaml").write_text("model: Pop\ndataset: tiny\n")
    keys = {**settings, "state": "error"}
    result = run_recbole_tema(config_file_list=["a.yaml"], config_dict=keys)
    assert Path(result["model_file"]).name.startswith("Pop-tiny-")
    stronger = {**keys, "model": "BPR", "epochs": 1}
    result = run_recbole_tema(config_file_list="a.yaml", config_dict=stronger)
    assert Path(result["model_file"]).name.startswith("BPR-tiny-")
    result = run_recbole_tema(model="Pop", dataset="three", config_dict=stronger)
    assert Path(result["model_file"]).name.startswith("Pop-three-")
    with pytest.raises(ConfigError, match="unknown model 'TEMMA'"):
        run_recbole_tema(cmd_config_dict={"model": "TEMMA"})


def test_a_wrong_call_leaves_nothing_behind(settings, tmp_path):
    with pytest.raises(ConfigError, match=r"unknown dataset 'tinny'.*did you mean tiny"):
        run_recbole_tema("Pop", "tinny", config_dict=settings)
    for keys in ({"nproc": 2}, {"world_size": 4}, {"nproc": 2, "local_rank": 0}):
        with pytest.raises(ConfigError, match=r"(nproc|world_size|local_rank) is .*process"):
            run_recbole_tema("Pop", "tiny", config_dict={**settings, **keys})
    with pytest.raises(ConfigError, match=r"local_rank is 0.*one process"):
        run_recbole_tema("Pop", "tiny", config_dict={**settings, "local_rank": 0})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(settings, tmp_path):
    (tmp_path / "saved").write_text("in the way")
    with pytest.raises(ConfigError, match=r"checkpoint_dir '.*saved' .*cannot be written"):
        run_recbole_tema("Pop", "tiny", config_dict=settings)
    (tmp_path / "log").rename(tmp_path / "former")
    (tmp_path / "log").write_text("in the way")
    with pytest.raises(ConfigError, match="the log cannot be written"):
        run_recbole_tema("Pop", "tiny", config_dict=settings)


@pytest.mark.parametrize("model", ["TEMA", "SASRec"])
def test_no_epochs_evaluate_the_model_as_it_was_made(settings, model):
    keys = {**settings, "epochs": 0, "hidden_size": 16}
    result = run_recbole_tema(model, "tiny", config_dict=keys)
    assert result["epoch_seconds"] == []
    assert result["best_valid_score"] == result["best_valid_result"]["ndcg@3"]
    again = evaluate_checkpoint(result["model_file"])
    assert again == {"valid": result["best_valid_result"], "test": result["test_result"]}


def cut(root, target, name, n_events):
    """A copy of a dataset with the first ``n_events`` events of each user."""
    (target / name).mkdir(parents=True)
    for path in (root / name).glob(f"{name}.item"):
        (target / name / path.name).write_text(path.read_text())
    head, *rows = (root / name / f"{name}.inter").read_text().splitlines()
    rows.sort(key=lambda row: float(row.split("\t")[2]))
    count, kept = {}, [head]
    for row in rows:
        user = row.split("\t")[0]
        count[user] = count.get(user, 0) + 1
        if count[user] <= n_events:
            kept.append(row)
    (target / name / f"{name}.inter").write_text("\n".join(kept) + "\n")
    return str(target)


@pytest.mark.parametrize("model", ["TEMA", "SASRec", "BPR", "Pop"])
@pytest.mark.parametrize("mode", ["full", "uni5"])
def test_training_without_validation_targets(settings, tiny_root, tmp_path, caplog, model, mode):
    keys = {**settings, "data_path": cut(tiny_root, tmp_path / "cut", "tiny", 3), "epochs": 3}
    keys |= {"eval_args": {"mode": mode}, "eval_groups": ["overlap", "popularity", "length"]}
    result = run_recbole_tema(model, "tiny", config_dict=keys)
    assert not result["best_valid_result"]
    assert result["test_result"]["ndcg@3"] > 0
    assert len(result["epoch_seconds"]) == (1 if model == "Pop" else 3)
    said = [r.message for r in caplog.records if "no user has a validation target" in r.message]
    assert len(said) == 1
    assert "overall" in result["table"] and "valid" not in result["table"]
    # The last epoch's model is the one that was evaluated.
    unsaved = run_recbole_tema(model, "tiny", config_dict=keys, saved=False)
    assert unsaved["test_result"] == result["test_result"]


def test_an_epoch_is_chosen_by_a_metric_of_a_slice(settings):
    keys = settings | {"uncut_metrics": ["MRR"], "valid_metric": "macro/MRR", "epochs": 1}
    result = run_recbole_tema("Pop", "tiny", config_dict=keys)
    valid = result["best_valid_result"]
    assert result["best_valid_score"] == valid["macro/mrr"]
    assert valid["macro/mrr"] == pytest.approx(
        (valid["book/mrr"] + valid["film/mrr"]) / 2, abs=1e-6
    )
    assert "macro" in result["table"] and "mrr" in result["table"]
    keys |= {"target_domain": "book", "valid_metric": "film/NDCG@3"}
    with pytest.raises(ConfigError, match="'film'; slices with targets: overall, macro, book"):
        run_recbole_tema("Pop", "tiny", config_dict=keys)


@pytest.mark.parametrize("model", ["TEMA", "SASRec"])
def test_without_any_target_there_are_no_metrics(settings, tiny_root, tmp_path, caplog, model):
    keys = {**settings, "data_path": cut(tiny_root, tmp_path / "cut", "tiny", 2)}
    result = run_recbole_tema(model, "tiny", config_dict=keys)
    assert result["test_result"] == {} and not result["best_valid_result"]
    assert any(r.levelname == "WARNING" and "test: no user" in r.message for r in caplog.records)
    assert evaluate_checkpoint(result["model_file"]) == {"valid": {}, "test": {}}


def test_feature_aware_models_read_the_tags_and_wrong_keys_are_named(settings, caplog):
    caplog.set_level("INFO")  # pytest's handlers keep RecBole from setting it
    for model in ("FDSA", "DIN", "DeepFM"):
        keys = {**settings, "epochs": 1, "train_batch_size": 256}
        result = run_recbole_tema(model, "tiny", config_dict=keys)
        again = evaluate_checkpoint(result["model_file"], phases=["test"])
        assert again["test"] == result["test_result"]
        told = "selected_features is ['tags'] here, not RecBole's ['class']"
        assert (told in caplog.text) == (model == "FDSA")
        caplog.clear()
    titled = run_recbole_tema("FDSA", "tiny", config_dict={**keys, "selected_features": ["title"]})
    _, data, model = load_model(titled["model_file"])
    assert "title" in data.item_feat and model.selected_features == ["title"]
    for model in ("TEMA", "LLM4CDSR", "SASRec"):  # which read no item_attribute
        run_recbole_tema(model, "tiny", config_dict={**keys, "item_attribute": "colour"})
    with pytest.raises(ConfigError, match=r"model 'SASRec': .*hidden size \(30\)"):
        run_recbole_tema("SASRec", "tiny", config_dict={**keys, "hidden_size": 30, "n_heads": 4})
    with pytest.raises(ConfigError, match="loss_type is 'XY'"):
        run_recbole_tema("SASRec", "tiny", config_dict={**keys, "loss_type": "XY"})
    with pytest.raises(ConfigError, match=r"selected_features names the field 'colour'.*domain"):
        run_recbole_tema("FDSA", "tiny", config_dict={**keys, "selected_features": ["colour"]})
    for none in (None, []):
        with pytest.raises(ConfigError, match=r"selected_features is .*'FDSA' learns from one"):
            run_recbole_tema("FDSA", "tiny", config_dict={**keys, "selected_features": none})
        run_recbole_tema("TEMA", "tiny", config_dict={**keys, "selected_features": none})
    with pytest.raises(DataError, match=r"tiny\.kg not found: model 'KGAT'"):
        run_recbole_tema("KGAT", "tiny", config_dict=settings)


@pytest.mark.parametrize("model", ["CKE", "CFKG"])
def test_a_knowledge_graph_is_read_where_there_is_one(settings, tmp_path, model):
    folder = make_dataset(tmp_path, "known")
    items = [f"{domain}{i}" for domain in ("book", "film") for i in range(15)]
    write(
        folder / "known.link",
        ["item_id:token", "entity_id:token"],
        [(item, f"m.{item}") for item in items],
    )
    write(
        folder / "known.kg",
        ["head_id:token", "relation_id:token", "tail_id:token"],
        [(f"m.{item}", "kind", f"shelf{i % 4}") for i, item in enumerate(items)],
    )
    keys = {**settings, "data_path": str(tmp_path), "epochs": 1}
    del keys["hidden_size"]
    result = run_recbole_tema(model, "known", config_dict=keys)
    _, data, network = load_model(result["model_file"])
    assert data.entity_num == 1 + 30 + 4 and data.relation_num == 3  # [PAD], kind, [UI-Relation]
    assert network.entity_embedding.weight.shape[0] == 35
    assert evaluate_checkpoint(result["model_file"])["test"] == result["test_result"]


@pytest.mark.parametrize("model", ["S3Rec", "RaCT"])
@pytest.mark.parametrize(("epochs", "kept"), [(0, -1), (1, 0), (3, 2), (4, 3)])
def test_epochs_bounds_pretraining_too(settings, model, epochs, kept):
    """RecBole's pretraining is 500 and 150 epochs, whatever epochs says, saved at every tenth."""
    keys = {**settings, "epochs": epochs, "save_step": 2, "train_batch_size": 512}
    result = run_recbole_tema(model, "tiny", config_dict=keys)
    assert len(result["epoch_seconds"]) == epochs
    assert read_checkpoint(result["model_file"])["epoch"] == kept, "the last epoch's model"
    assert evaluate_checkpoint(result["model_file"])["test"] == result["test_result"]


@pytest.mark.parametrize("given", [1, 3])
def test_a_pretraining_that_is_given_holds(settings, given):
    keys = {**settings, "epochs": 2, "pretrain_epochs": given, "save_step": 5}
    assert len(run_recbole_tema("S3Rec", "tiny", config_dict=keys)["epoch_seconds"]) == given


def test_progress_shows_rate_and_time_left(settings, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    start = ProgressBar.__init__  # shows every step, however soon it follows
    monkeypatch.setattr(
        ProgressBar, "__init__", lambda bar, *a, **k: start(bar, *a, **{**k, "mininterval": 0})
    )
    keys = {**settings, "show_progress": True, "epochs": 1, "eval_batch_size": 4}
    run_recbole_tema("TEMA", "tiny", config_dict=keys)
    shown = capsys.readouterr().err
    for title in ("Train     0", "Evaluate"):
        bars = [line for line in re.split(r"[\r\n]", shown) if title in line]
        assert any(
            re.search(r"[1-9]\d*/\d+ \[\d\d:\d\d<\d\d:\d\d, +[\d.]+(it/s|s/it)", b) for b in bars
        )


@pytest.mark.slow
def test_the_command_runs_every_model_on_the_default_dataset(tmp_path):
    """On the whole ml-100k-genre, built by the first command where it is not there."""
    script = ROOT / "run_recbole_tema.py"
    results = {}
    for model in MODELS:
        done = subprocess.run(
            [sys.executable, str(script), f"--model={model}", "--epochs=1"]
            + ["--MAX_ITEM_LIST_LENGTH=10", "--show_progress=False", "--eval_groups=['overlap']"],
            cwd=tmp_path,
            env={"RECBOLE_TEMA_DATA": str(tmp_path / "data"), **os.environ},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        line = next(part for part in done.stdout.splitlines() + done.stderr.splitlines()
                    if "test result" in part)  # fmt: skip
        results[model] = dict(re.findall(r"'([^']+)': ([\d.]+)", line))
    keys = list(results["TEMA"])
    assert len(keys) > 30 and all(list(found) == keys for found in results.values())
    assert all(float(found["ndcg@10"]) > 0.005 for found in results.values())
