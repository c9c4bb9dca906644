"""What conversions, tags, trainings and reports write, against a record of it.

Files are compared by their SHA-256, numbers of trainings to four places, as the last ones are the
machine's. `UPDATE_GOLDEN=1 python -m pytest tests/test_golden.py` makes the record anew; a change
of it is a change of what users get and is to be explained.
"""

import gzip
import hashlib
import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from dataset_tools.cli import main as dataset_tools
from dataset_tools.encoders import text_encoder
from dataset_tools.enrich.tags import tag_dataset
from dataset_tools.llm.answers import AnswerStore
from dataset_tools.llm.session import Session
from dataset_tools.options import TagOptions
from recbole_tema import run_recbole_tema
from recbole_tema.cli import main
from tests.support.word_backend import WordBackend, write_shop

pytestmark = pytest.mark.long

RECORD = Path(__file__).with_name("golden.json")


def check(name, found):
    """Compare with the record, or write it."""
    record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    if os.environ.get("UPDATE_GOLDEN"):
        text = json.dumps({**record, name: found}, indent=1, sort_keys=True)
        RECORD.write_text(text + "\n", encoding="utf-8")
    else:
        assert found == record[name]


def sha256(folder, *names):
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def test_convert_csv(tmp_path):
    pytest.importorskip("duckdb", reason="the extra convert is not installed")
    events = ["user,item,time,rating"] + [
        f"u{(7 * n) % 23},{'bf'[n % 2]}{(5 * n + n // 9) % 13},{1_500_000_000 + 86400 * (n % 60)},"
        f"{1 + n % 5}"
        for n in range(400)
    ]
    with gzip.open(tmp_path / "events.csv.gz", "wt") as file:
        file.write("\n".join(events) + "\n")
    items = ["item,domain,title,category,price"] + [
        f'{d[0]}{n},{d},"The ""{d}"", no. {n} &amp; more","a|b{n % 3}",${n}.50'
        for d in ("book", "film")
        for n in range(13)
    ]
    (tmp_path / "items.csv").write_text("\n".join(items) + "\n")
    words = ["convert", "csv", "golden", "--data_path", str(tmp_path)]
    words += ["--interactions", str(tmp_path / "events.csv.gz"), "--items"]
    words += [str(tmp_path / "items.csv"), "--min_rating", "2", "--user_core", "3"]
    done = CliRunner().invoke(dataset_tools, words)
    assert done.exit_code == 0, done.output
    check("convert csv", sha256(tmp_path / "golden", "golden.inter", "golden.item"))


@pytest.mark.skipif(bool(text_encoder.missing_packages()), reason="no text encoder")
@pytest.mark.parametrize("likelihoods", [True, False])
def test_tag(tmp_path, likelihoods):
    dataset = write_shop(tmp_path, ("food", "kitchen", "book"))
    with AnswerStore(dataset.folder / "llm-answers") as store:
        session = Session(WordBackend(likelihoods), store, progress=False)
        said = tag_dataset(dataset, session, "minilm", TagOptions(max_share=0.6), force=False)
    names = sorted(path.name for path in dataset.folder.glob("shop.*"))
    found = sha256(dataset.folder, "shop.inter", "shop.item")
    check(
        f"tag, likelihoods {likelihoods}",
        {"files": names, "said": said.replace(str(tmp_path), ""), "sha256": found},
    )


@pytest.mark.parametrize("model", ["TEMA", "LLM4CDSR"])
def test_two_epochs(settings, model):
    result = run_recbole_tema(model, "tiny", config_dict={**settings, "learning_rate": 0.003})
    found = {
        phase: {
            key: round(value, 4) for key, value in result[f"{phase}_result"].items() if "@5" in key
        }
        for phase in ("best_valid", "test")
    }
    check(model, {**found, "file": Path(result["model_file"]).name})


def test_report(small_root, tmp_path):
    pytest.importorskip("duckdb", reason="the extra benchmark is not installed")
    pytest.importorskip("matplotlib", reason="the extra benchmark is not installed")
    keys = {"models": "Pop", "dataset": "genre-small", "epochs": "1", "threads": "1"}
    keys |= {"data_path": str(small_root), "results_dir": str(tmp_path / "results")}
    assert main([f"--{key}={value}" for key, value in keys.items()]) == 0
    names = ("table.csv", "table.md", "table.tex")
    check("report", sha256(tmp_path / "results", *names))
