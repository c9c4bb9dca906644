"""Whose a checkpoint is: what its model reads of the dataset's files."""

import re
import shutil

import pytest
import torch
from recbole.model.sequential_recommender import SASRec

from recbole_tema import load_model, run_recbole_tema
from recbole_tema.errors import CheckpointError, DataError
from recbole_tema.quick_start import evaluate_checkpoint
from tests.support.tiny_dataset import make_dataset
from tests.support.tiny_dataset import write as write_rows

pytestmark = pytest.mark.long


def test_a_dataset_that_moved_is_found_where_one_says(run, moved, tmp_path):
    result, path = run(name="mine", data_path=str(moved))
    moved.rename(tmp_path / "there")
    for read in (load_model, evaluate_checkpoint):
        with pytest.raises(DataError, match=r"here/mine not found: .*give data_path"):
            read(path)
    metrics = evaluate_checkpoint(path, data_path=tmp_path / "there")
    assert metrics == {"valid": result["best_valid_result"], "test": result["test_result"]}
    _, dataset, _ = load_model(path, data_path=tmp_path / "there")
    assert dataset.dataset_name == "mine"


def change(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("mine.item", "book3\tbook", "book3\tfilm"),
        ("mine.item", "tag_1 tag_2", "tag_1 tag_3"),
        ("mine.item", "book14\t", "new\tbook\tThe new\ttag_1 tag_2\t0.7 0.3\nbook14\t"),
        ("mine.itemtext", "\t0.", "\t1."),
    ],
)
def test_a_changed_dataset_is_refused(run, moved, file, old, new):
    _, path = run(name="mine", data_path=str(moved))
    change(moved / "mine" / file, old, new)
    for read in (load_model, evaluate_checkpoint):
        with pytest.raises(CheckpointError, match="trained on other files of dataset 'mine'"):
            read(path)


def bare_dataset(root):
    """A dataset without features, and a copy with all of them of the same events."""
    whole = make_dataset(root / "whole", "mine")
    folder = root / "here" / "mine"
    shutil.copytree(whole, folder)
    for suffix in ("itemtext", "itemllm", "userllm", "tag"):
        (folder / f"mine.{suffix}").unlink()
    lines = [line.split("\t")[:3] for line in (folder / "mine.item").read_text().splitlines()]
    (folder / "mine.item").write_text("".join("\t".join(line) + "\n" for line in lines))
    return folder, whole


@pytest.mark.parametrize("model", ["SASRec", "BPR", "Pop", "FDSA"])
def test_features_that_come_later_leave_a_model_that_does_not_read_them(run, tmp_path, model):
    folder, whole = bare_dataset(tmp_path)
    data = {"name": "mine", "data_path": str(folder.parent)}
    result, path = run(model, **data)
    for file in whole.iterdir():
        shutil.copy(file, folder)
    (folder / "mine.itemimage").write_text(
        (folder / "mine.itemtext").read_text().replace("text", "image")
    )
    metrics = evaluate_checkpoint(path)
    assert metrics == {"valid": result["best_valid_result"], "test": result["test_result"]}
    load_model(path)
    change(folder / "mine.itemtext", "\t0.", "\t1.")
    assert evaluate_checkpoint(path) == metrics
    if model == "FDSA":
        return  # tags are what a new run would read
    again, same = run(model, **data, resume=True)
    assert same == path and again["epoch_seconds"] == [], "it was finished"
    assert again["test_result"] == result["test_result"]


def test_an_unfinished_run_goes_on_after_features_came(settings, tmp_path):
    folder, whole = bare_dataset(tmp_path)
    keys = {**settings, "data_path": str(folder.parent), "epochs": 3}

    def stop(epoch, score):
        if epoch == 1:
            raise KeyboardInterrupt

    straight = run_recbole_tema("SASRec", "mine", config_dict=keys)
    with pytest.raises(KeyboardInterrupt):
        keys["checkpoint_dir"] = str(tmp_path / "other")
        run_recbole_tema("SASRec", "mine", config_dict=keys, after_epoch=stop)
    for file in whole.iterdir():
        shutil.copy(file, folder)
    resumed = run_recbole_tema("SASRec", "mine", config_dict={**keys, "resume": True})
    assert len(resumed["epoch_seconds"]) == 1, "the third epoch alone"
    assert resumed["test_result"] == straight["test_result"]


def test_what_is_gone_matters_only_to_who_reads_it(run, moved):
    keys = {"name": "mine", "data_path": str(moved)}
    results = {model: run(model, **keys) for model in ("SASRec", "TEMA")}
    (moved / "mine" / "mine.itemtext").unlink()
    result, path = results["SASRec"]
    assert evaluate_checkpoint(path)["test"] == result["test_result"]
    with pytest.raises(CheckpointError, match=r"clip_text \(mine.itemtext\) is gone"):
        load_model(results["TEMA"][1])


@pytest.mark.parametrize(
    ("keys", "file", "old", "new", "named"),
    [
        ({}, "mine.itemtext", "\t0.", "\t1.", r"clip_text \(mine.itemtext\) changed; "),
        ({}, "mine.item", "tag_1 tag_2", "tag_1 tag_3", "tags changed; "),
        ({}, "mine.tag", "\t0.", "\t1.", r"tag_emb \(mine.tag\) changed; "),
        ({"use_text": False, "id_init": "normal"}, "mine.itemtext", "\t0.", "\t1.", None),
        ({"use_tags": False}, "mine.item", "tag_1 tag_2", "tag_1 tag_3", None),
        ({"use_tags": False}, "mine.tag", "\t0.", "\t1.", None),
        ({}, "mine.itemllm", "\t0.", "\t1.", None),
        ({}, "mine.userllm", "\t0.", "\t1.", None),
        ({}, "mine.item", "The book3", "A book3", None),
        (
            {"selected_features": ["title"]},
            "mine.item",
            "The book3",
            "A book3",
            "'title' .* ch",
        ),
        ({}, "mine.item", "book3\tbook", "book3\tfilm", "domains of items changed"),
    ],
)
def test_what_temas_keys_read_of_the_files(run, moved, keys, file, old, new, named):
    result, path = run("TEMA", name="mine", data_path=str(moved), **keys)
    change(moved / "mine" / file, old, new)
    if named is None:
        assert evaluate_checkpoint(path)["test"] == result["test_result"]
        return
    with pytest.raises(CheckpointError, match=named) as caught:
        evaluate_checkpoint(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "keys", "file", "refused"),
    [
        ("LLM4CDSR", {}, "mine.itemllm", True),
        ("LLM4CDSR", {}, "mine.userllm", True),
        ("LLM4CDSR", {"beta": 0}, "mine.userllm", False),
        ("LLM4CDSR", {}, "mine.itemtext", False),
    ],
)
def test_what_llm4cdsrs_keys_read_of_the_files(run, moved, model, keys, file, refused):
    result, path = run(model, name="mine", data_path=str(moved), **keys)
    change(moved / "mine" / file, "\t0.", "\t1.")
    if refused:
        with pytest.raises(CheckpointError, match=re.escape(f"({file}) changed")):
            load_model(path)
    else:
        assert evaluate_checkpoint(path)["test"] == result["test_result"]


def test_new_images_are_of_another_run_of_tema(run, moved):
    keys = {"name": "mine", "data_path": str(moved)}
    _, path = run("TEMA", **keys)
    text = moved / "mine" / "mine.itemtext"
    (moved / "mine" / "mine.itemimage").write_text(text.read_text().replace("text", "image"))
    with pytest.raises(CheckpointError, match=r"clip_image \(mine.itemimage\) is new"):
        load_model(path)
    _, other = run("TEMA", **keys)
    assert other != path and path.is_file()


def test_a_context_model_reads_every_field(run, moved):
    _, path = run("FM", name="mine", data_path=str(moved))
    change(moved / "mine" / "mine.item", "tag_1 tag_2", "tag_1 tag_3")
    with pytest.raises(CheckpointError, match=r"'tags' \(mine.item\) changed"):
        load_model(path)


class TagSASRec(SASRec):
    """A user's own model, which reads the dataset as RecBole's own do."""

    model_arguments = []

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.tag_embedding = torch.nn.Embedding(dataset.num("tags"), self.hidden_size)
        self.item_tags = dataset.item_feat["tags"]


@pytest.mark.parametrize(
    ("model", "file", "old", "new", "named"),
    [
        (TagSASRec, "mine.item", "The book3\ttag_3", "The book3\ttag_4", "tags"),
        ("DeepFM", "mine.user", "u5\t5", "u5\t7", r"'age' \(mine.user\)"),
    ],
)  # fmt: skip
def test_what_is_read_without_asking_is_part_of_the_checkpoint(
    settings, tmp_path, model, file, old, new, named
):
    """By `dataset.item_feat`, as any class may, and a user's fields by a context model."""
    folder = make_dataset(tmp_path / "own", "mine")
    rows = [(f"u{user}", user % 9) for user in range(40)]
    write_rows(folder / "mine.user", ["user_id:token", "age:token"], rows)
    keys = {k: v for k, v in settings.items() if model is TagSASRec or k != "hidden_size"}
    keys |= {"data_path": str(tmp_path / "own"), "epochs": 1, "resume": True}
    keys["load_col"] = {
        "inter": ["user_id", "item_id", "timestamp"],
        "item": ["item_id", "domain", "title", "tags", "tag_weights"],
        "user": ["user_id", "age"],
    }
    run_recbole_tema(model, "mine", config_dict=keys)
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new))
    with pytest.raises(CheckpointError, match=named):
        run_recbole_tema(model, "mine", config_dict=keys)
