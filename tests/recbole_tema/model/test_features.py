"""Features that models read: absent ones, selected ones, and what is refused of them."""

import pytest
import torch

from recbole_tema import load_model, run_recbole_tema
from recbole_tema.config.files import properties_dir
from recbole_tema.config.tema_config import TemaConfig
from recbole_tema.data.preparation import create_dataset
from recbole_tema.errors import CheckpointError, ConfigError, DataError
from recbole_tema.model.tema import TEMA
from tests.recbole_tema.model.test_models import build
from tests.support.tiny_dataset import make_dataset


def test_absent_features_are_said_once(settings, caplog):
    caplog.set_level("INFO")
    model, _, _ = build(settings, name="bare")
    assert set(model.projections) == {"tag"}  # tags without vectors: theirs are trained
    assert caplog.text.count("no text features") == 1
    with pytest.raises(DataError, match=r"bare\.itemllm"):
        build(settings, "LLM4CDSR", "bare")
    with pytest.raises(ConfigError, match="nothing is left"):
        build(settings, name="bare", use_id=False, use_tags=False)


def test_tags_and_items_without_a_vector_are_left_out_and_said(settings, tmp_path, caplog):
    caplog.set_level("INFO")
    folder = make_dataset(tmp_path / "data", "holes")
    keep = (folder / "holes.tag").read_text().splitlines()[:-2]
    (folder / "holes.tag").write_text("\n".join(keep) + "\n")
    keep = (folder / "holes.itemllm").read_text().splitlines()[:-5]
    (folder / "holes.itemllm").write_text("\n".join(keep) + "\n")
    settings = {**settings, "data_path": str(tmp_path / "data")}
    model, _, _ = build(settings, name="holes")
    assert "2 tags have no vector" in caplog.text
    has = model.tag.abs().sum(1) > 0
    assert 0 < int(has.sum()) < model.n_items - 1
    assert torch.equal(has, model.tag_present)
    model, _, _ = build(settings, "LLM4CDSR", "holes")
    absent = model.local_items.weight[1:][~model.llm_present[1:]]
    assert len(absent) == 5 and (absent.abs().sum(1) > 0).all()


def test_selected_features_add_the_mean_of_their_words(settings, tmp_path):
    folder = make_dataset(tmp_path / "data", "worded")
    head, *rows = (folder / "worded.item").read_text().splitlines()
    cells = [row.split("\t") for row in rows]
    column = head.split("\t").index("title:token_seq")
    for number, row in enumerate(cells):  # one without words, one with a word twice, one long
        row[column] = ["", "red red pan", " ".join(f"w{i}" for i in range(40))][min(number, 2)]
    (folder / "worded.item").write_text("\n".join([head, *map("\t".join, cells)]) + "\n")
    settings = {**settings, "data_path": str(tmp_path / "data")}
    with_words, _, data = build(settings, name="worded", selected_features=["title"])
    without, _, _ = build(settings, name="worded")
    parameters = with_words.state_dict()
    without.load_state_dict({name: parameters[name] for name in without.state_dict()})
    added = (with_words.item_vectors() - without.item_vectors()).detach()
    table = with_words.projections["field0"]
    word = dict(zip(data.field2id_token["title"], table.vectors.weight.detach(), strict=True))
    for row in cells[:3]:
        words = row[column].split()
        wanted = torch.stack([word[w] for w in words]).mean(0) if words else table.missing.detach()
        item = data.token2id("item_id", row[0])
        torch.testing.assert_close(added[item], wanted, rtol=1e-4, atol=1e-6)
    assert added[data.token2id("item_id", cells[1][0])].abs().max() > 1e-3


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"selected_features": ["title", "title"]}, "a list of different fields"),
        ({"selected_features": True}, "a list of different fields"),
        ({"selected_features": ["colour"]}, "names the field 'colour'.*there are domain"),
        (
            {"selected_features": ["user_id"]},
            "names the field 'user_id', which is not loaded from tiny.item",
        ),
        (
            {"selected_features": ["title"], "unload_col": {"item": ["title"]}},
            "names the field 'title', which is not loaded from tiny.item; loaded are domain",
        ),
        ({"repeat_bias": "often"}, "repeat_bias is 'often'"),
        ({"block": "norm"}, "block is 'norm'.*post_norm"),
        ({"domain_adapter": -1}, "domain_adapter is -1.*an integer >= 0"),
        ({"preference": "sum"}, "preference is 'sum'.*attention, aligned"),
        ({"domain_token": 1}, "domain_token is 1.*True or False"),
        ({"label_smoothing": 1}, "label_smoothing is 1.*below 1"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0.*below 1"),
    ],
)
def test_bad_values_of_tema(settings, keys, message):
    with pytest.raises(ConfigError, match=message):
        build(settings, **keys)


def test_features_of_a_model_of_ones_own_are_checked_too(settings):
    class Mine(TEMA):
        pass

    keys = {**settings, "selected_features": ["user_id"]}
    files = [str(properties_dir() / "model" / "TEMA.yaml")]
    config = TemaConfig(Mine, "tiny", config_file_list=files, config_dict=keys)
    with pytest.raises(ConfigError, match="names the field 'user_id', which is not loaded"):
        create_dataset(config, Mine)


def test_a_checkpoint_is_for_the_words_it_has_learned(settings, tmp_path):
    path = make_dataset(tmp_path / "data", "tiny") / "tiny.item"
    keys = {**settings, "data_path": str(tmp_path / "data"), "selected_features": ["title"]}
    file = run_recbole_tema("TEMA", "tiny", config_dict=keys)["model_file"]
    load_model(file)
    head, *rows = path.read_text().splitlines()
    column = head.split("\t").index("title:token_seq")
    cells = rows[0].split("\t")
    cells[column] = " ".join(reversed(cells[column].split()))
    assert "\t".join(cells) != rows[0]
    path.write_text("\n".join([head, "\t".join(cells), *rows[1:]]) + "\n")
    with pytest.raises(CheckpointError):
        load_model(file)


def test_selected_features_that_hold_numbers_are_refused(settings, tmp_path):
    path = make_dataset(tmp_path / "data", "priced") / "priced.item"
    head, *rows = path.read_text().splitlines()
    path.write_text("\n".join([f"{head}\tprice:float", *(f"{row}\t2.5" for row in rows)]) + "\n")
    settings = {**settings, "data_path": str(tmp_path / "data")}
    with pytest.raises(ConfigError, match="selected_features names 'price', which is of type"):
        build(settings, name="priced", selected_features=["price"])
