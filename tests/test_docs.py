"""The examples of the documentation run as they stand there."""

import importlib
import importlib.util
import re
from functools import partial
from pathlib import Path

import pytest

from dataset_tools.convert.run import Conversion, convert
from recbole_tema import run_recbole_tema
from recbole_tema.data.atomic import read_table
from tests.support.tiny_dataset import write

pytestmark = pytest.mark.long

PAGE = Path(__file__).resolve().parents[1] / "docs" / "extending.md"


def walks(folder, name, n_users=60, n_items=12):
    """A dataset of users who take the items of two domains in turn, one after another."""
    folder.joinpath(name).mkdir()
    items = [(f"{domain}{i}", domain) for i in range(n_items) for domain in ("book", "film")]
    header = ["item_id:token", "domain:token", "title:token_seq"]
    write(folder / name / f"{name}.item", header, [(*item, item[0]) for item in items])
    events = [
        (f"u{user}", items[(user + step) % len(items)][0], step)
        for user in range(n_users)
        for step in range(8)
    ]
    header = ["user_id:token", "item_id:token", "timestamp:float"]
    write(folder / name / f"{name}.inter", header, events)


def test_the_model_of_the_page_on_extending_learns(tmp_path, monkeypatch):
    text = PAGE.read_text(encoding="utf-8")
    module = re.search(r"`merged_rec.py`:\n\n```python\n(.*?)^```", text, re.S | re.M)[1]
    keys = re.search(r"`MergedRec.yaml`.*?```yaml\n(.*?)^```", text, re.S | re.M)[1]
    (tmp_path / "merged_rec.py").write_text(module, encoding="utf-8")
    (tmp_path / "MergedRec.yaml").write_text(keys, encoding="utf-8")
    walks(tmp_path, "walks")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    model = importlib.import_module("merged_rec").MergedRec
    run = {"epochs": 15, "data_path": str(tmp_path), "train_batch_size": 64, "learning_rate": 0.01}
    result = run_recbole_tema(model=model, dataset="walks", config_dict=run)
    # The next item follows from the last one; by chance it would be 0.38 of twelve.
    assert result["test_result"]["ndcg@10"] > 0.9


def test_the_source_of_the_page_on_extending_reads_its_files(tmp_path):
    text = PAGE.read_text(encoding="utf-8")
    block = r"`dataset_tools/convert/sources/library.py`:\n\n```python\n(.*?)^```"
    module = re.search(block, text, re.S | re.M)[1]
    path = tmp_path / "library.py"
    path.write_text(module, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("library_of_the_page", path)
    library = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(library)
    folder = tmp_path / "lib"
    folder.mkdir()
    (folder / "books.csv").write_text("book;title;shelf\nb1;Dune;fiction\nb2;Cosmos;science\n")
    (folder / "loans.csv").write_text("reader;book;day\nr1;b1;2020-01-02\nr1;b2;2020-01-01\n")
    conversion = Conversion(read=partial(library.read, folder=folder), source="our library")
    convert(conversion, tmp_path / "loans", "loans")
    events = read_table(tmp_path / "loans" / "loans.inter")
    assert events[["user_id", "item_id"]].to_numpy().tolist() == [["r1", "b2"], ["r1", "b1"]]
    items = read_table(tmp_path / "loans" / "loans.item").set_index("item_id")
    assert items["domain"].to_dict() == {"b1": "fiction", "b2": "science"}
