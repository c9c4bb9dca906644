import copy
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from recbole.data.dataset import SequentialDataset

from recbole_tema.config.tema_config import TemaConfig
from recbole_tema.data.loader import NEGATIVE_SEQ, TARGET_SEQ
from recbole_tema.data.preparation import create_dataset, data_preparation
from recbole_tema.errors import ConfigError, DataError
from tests.support.tiny_dataset import make_dataset, write


def open_dataset(settings, name="tiny", model="TEMA", **keys):
    config = TemaConfig(model, name, config_dict={**settings, **keys})
    return config, create_dataset(config, config.model_class)


def stock_dataset(config):
    """RecBole's own class; it maps ids of extra files only where they are users or items."""
    without = {
        key: copy.deepcopy(config[key]) for key in ("additional_feat_suffix", "preload_weight")
    }
    config["additional_feat_suffix"] = [x for x in without["additional_feat_suffix"] if x != "tag"]
    config["preload_weight"] = {k: v for k, v in without["preload_weight"].items() if k != "tag_id"}
    dataset = SequentialDataset(config)
    for key, value in without.items():
        config[key] = value
    return dataset


@pytest.mark.parametrize("name", ["tiny", "three"])
def test_split_is_recboles(settings, name):
    """Users, histories and targets equal those of RecBole's own dataset class, bit by bit."""
    config, ours = open_dataset(settings, name)
    stock = stock_dataset(config)
    assert (stock.field2id_token["item_id"] == ours.field2id_token["item_id"]).all()
    assert (stock.field2id_token["user_id"] == ours.field2id_token["user_id"]).all()
    _, valid, test = stock.build()
    prepared = data_preparation(config, ours, config.model_class)
    for phase, part in (("valid", valid), ("test", test)):
        rows, batches = zip(*prepared.eval_data[phase], strict=True)
        order = np.argsort(np.concatenate(rows))
        feat = part.inter_feat
        feat.sort(by="user_id")  # RecBole orders rows by the users' first events
        for field in ("user_id", "item_id", "item_length"):
            found = np.concatenate([b[field].numpy() for b in batches])[order]
            assert np.array_equal(found, feat[field].numpy()), field
        width = config["MAX_ITEM_LIST_LENGTH"]
        padded = [
            np.pad(b["item_id_list"], ((0, 0), (0, width - b["item_id_list"].shape[1])))
            for b in batches
        ]
        assert np.array_equal(np.concatenate(padded)[order], feat["item_id_list"].numpy())


def test_training_targets_are_recboles_rows(settings):
    """One epoch of windows has the (user, target) pairs of RecBole's augmented rows."""
    config, ours = open_dataset(settings, window_stride=3)
    stock = stock_dataset(config).build()[0].inter_feat
    expected = sorted(zip(stock["user_id"].tolist(), stock["item_id"].tolist(), strict=True))
    loader = data_preparation(config, ours, config.model_class).train_data
    for _ in range(2):
        found = []
        for batch in loader:
            targets = batch[TARGET_SEQ]
            users = batch["user_id"][:, None].expand_as(targets)
            found += zip(users[targets > 0].tolist(), targets[targets > 0].tolist(), strict=True)
        assert sorted(found) == expected


def test_batches(settings):
    config, dataset = open_dataset(
        settings,
        model="LLM4CDSR",
        loss_type="BCE",
        train_neg_sample_args={"distribution": "uniform", "sample_num": 1},
    )
    loader = data_preparation(config, dataset, config.model_class).train_data
    for batch in loader:
        length = batch["item_length"]
        assert (length.diff() <= 0).all() and batch["item_id_list"].shape[1] == length[0]
        assert ((batch["item_id_list"] > 0).sum(1) == length).all()
        targets, negatives = batch[TARGET_SEQ], batch[NEGATIVE_SEQ]
        assert ((targets > 0) == (negatives > 0)).all()
        domain = dataset.item_domain
        assert (domain[targets.numpy()] == domain[negatives.numpy()]).all()
        # Each input is followed by its target in the user's sequence.
        for row in range(len(length)):
            inputs, target = batch["item_id_list"][row], targets[row]
            sequence = dataset.train_sequences.of(int(batch["user_id"][row])).tolist()
            for step in np.flatnonzero(target.numpy()):
                pair = (int(inputs[step]), int(target[step]))
                assert pair in set(pairwise(sequence))


def test_epochs_differ_and_repeat_with_the_seed(settings):
    config, dataset = open_dataset(settings)
    loader = data_preparation(config, dataset, config.model_class).train_data

    def epoch(number):
        loader.set_epoch(number)
        return [batch["user_id"].tolist() for batch in loader]

    assert epoch(0) != epoch(1)
    assert epoch(1) == epoch(1)


def test_baselines_meet_the_same_split(settings):
    _, ours = open_dataset(settings)
    for model in ("SASRec", "Pop", "BPR", "FM"):
        config, dataset = open_dataset(settings, model=model, hidden_size=16)
        assert np.array_equal(dataset.sequences.items, ours.sequences.items), model
        assert np.array_equal(dataset.item_domain, ours.item_domain), model
        prepared = data_preparation(config, dataset, config.model_class)
        for phase in ("valid", "test"):
            users = ours.targets(phase).users
            assert np.array_equal(prepared.plans[phase].users, users)
            rows = np.concatenate([rows for rows, _ in prepared.eval_data[phase]])
            assert rows.tolist() == list(range(len(users)))
            seen = np.concatenate([b["user_id"].numpy() for _, b in prepared.eval_data[phase]])
            assert np.array_equal(seen, users)
    # General models train on the plain events of the training part.
    config, dataset = open_dataset(settings, model="Pop")
    train = dataset.build()[0].inter_feat
    assert len(train) == len(ours.train_sequences.items)


def test_thinned_training_data_is_the_same_for_all(settings):
    pairs = {}
    for model in ("TEMA", "SASRec", "BPR"):
        _, dataset = open_dataset(settings, model=model, overlap_ratio=0.5)
        train, _, test = dataset.build()
        feat = train.inter_feat
        pairs[model] = set(zip(feat["user_id"].tolist(), feat["item_id"].tolist(), strict=True))
        assert len(test.inter_feat) == len(dataset.targets("test").users)
    assert pairs["TEMA"] == pairs["BPR"]
    # RecBole's rows have no row for the first event of a user.
    assert pairs["SASRec"] < pairs["BPR"]
    _, whole = open_dataset(settings)
    assert len(pairs["BPR"]) < len(whole.train_sequences.items)


def test_a_thinned_user_has_no_profile(settings):
    """It was made of the events that are taken out."""
    _, whole = open_dataset(settings)
    _, thinned = open_dataset(settings, overlap_ratio=0.5)
    matrix, present = thinned.feature("profile_uid")
    full, there = whole.feature("profile_uid")
    lost = thinned.train_sequences.lengths < whole.train_sequences.lengths
    lost = torch.from_numpy(lost)
    assert (lost & there).sum() > 3 and (~lost & there).sum() > 3
    assert torch.equal(present, there & ~lost)
    assert torch.equal(matrix[~lost], full[~lost]) and not matrix[lost].any()
    assert whole.feature("profile_uid")[1].sum() == there.sum()


def test_features_and_tags(settings):
    _, dataset = open_dataset(settings)
    matrix, present = dataset.feature("text_iid")
    assert matrix.shape == (dataset.item_num, 12)
    assert not present[0] and not present[dataset.token2id("item_id", "film14")]
    assert present.sum() == dataset.item_num - 2
    text = Path(dataset.dataset_path, "tiny.itemtext").read_text().splitlines()[5].split("\t")
    row = matrix[dataset.token2id("item_id", text[0])].numpy()
    assert np.array_equal(row, np.array(text[1].split(), dtype=np.float32))
    ids, weights = dataset.tags
    item = dataset.token2id("item_id", "book0")
    assert dataset.id2token("tags", ids[item].numpy()).tolist() == ["tag_0", "tag_1"]
    assert weights[item].tolist() == pytest.approx([0.7, 0.3])
    assert dataset.id2token("tag_id", ids[item].numpy()).tolist() == ["tag_0", "tag_1"]
    assert dataset.feature("image_iid") is None


def test_a_dataset_without_features(settings):
    _, dataset = open_dataset(settings, "bare")
    assert dataset.feature("text_iid") is None and dataset.domain_names == ["book", "film"]


# ---------------------------------------------------------------- bad input


@pytest.fixture
def broken(tmp_path, settings):
    """A dataset to damage: (folder, open)."""
    folder = make_dataset(tmp_path / "broken")
    keys = {**settings, "data_path": str(tmp_path / "broken")}
    return folder, lambda **more: open_dataset({**keys, **more})


def edit(path, change):
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")


def swap(line, old, new):
    """A change of line number ``line``: its first ``old`` becomes ``new``."""
    return lambda x: x[: line - 1] + [x[line - 1].replace(old, new, 1)] + x[line:]


def add(line, text):
    """A change that puts ``text`` in as line number ``line``."""
    return lambda x: x[: line - 1] + [text] + x[line - 1 :]


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("tiny.inter", None, "tiny.inter not found"),
        ("tiny.item", None, "tiny.item not found"),
        ("tiny.inter", lambda x: [], "tiny.inter"),
        ("tiny.inter", lambda x: x[:1], "no rows"),
        ("tiny.inter", swap(1, "timestamp", "time"), "'timestamp' is missing"),
        ("tiny.inter", swap(1, "p:float", "p:token"), "'timestamp' has type 'token'"),
        ("tiny.inter", swap(1, "float", "number"), "number"),
        ("tiny.inter", add(4, "u1\tbook1\tyesterday"), "line 4.*'yesterday'"),
        ("tiny.inter", add(4, "u1\tbook1\tinf"), "line 4.*inf"),
        ("tiny.inter", add(4, "u1\tbook1\t"), "line 4.*'timestamp' is empty"),
        ("tiny.inter", add(4, "u1\t\t5"), "line 4.*'item_id' is empty"),
        ("tiny.inter", add(4, "u1\tbook1\t5\t6\t7"), "tiny.inter"),
        ("tiny.inter", add(4, "u1\tbook99\t5"), "line 4: item 'book99' has no row"),
        (
            "tiny.inter",
            lambda x: x[:1] + [r for r in x if "book" in r],
            "events in one domain only",
        ),
        ("tiny.inter", add(4, "[PAD]\tbook1\t5"), r"line 4: user_id '\[PAD\]' cannot be a name"),
        ("tiny.item", lambda x: [r.replace("film\t", "fi/lm\t") for r in x], "domain 'fi/lm'"),
        ("tiny.item", lambda x: [r.replace("film\t", "fi lm\t") for r in x], "domain 'fi lm'"),
        (
            "tiny.itemllm",
            add(3, "book99\t" + " ".join(["0.5"] * 16)),
            "line 3.*'book99' is not in tiny.item",
        ),
        ("tiny.itemtext", swap(1, "clip_text", "text_emb"), "'clip_text:float_seq' is missing"),
        ("tiny.itemllm", swap(1, "llm_emb", "emb"), "'llm_emb:float_seq' is missing"),
        ("tiny.item", swap(1, "domain", "realm"), "'domain:token' is missing"),
        ("tiny.item", swap(3, "\tbook\t", "\t\t"), "line 3.*'domain' is empty"),
        ("tiny.item", lambda x: [r.replace("film\t", "book\t") for r in x], "one domain only"),
        ("tiny.item", lambda x: x + [x[1].replace("book\t", "film\t")], "line 32.*'book0' is in"),
        ("tiny.item", swap(3, "0.", "0.5 0."), "'book1' has 2 tags and 3 tag_weights"),
        ("tiny.item", swap(3, "0.7", "-0.7"), "'book1' has a negative weight"),
        ("tiny.itemtext", swap(3, " ", " nan "), "tiny.itemtext"),
        ("tiny.itemtext", swap(3, " ", " 0.5 "), "tiny.itemtext"),
        ("tiny.tag", lambda x: x[:2] + [x[2] + " 0.5"] + x[3:], "tiny.tag, line 3"),
    ],
)
def test_bad_files(broken, file, change, message):
    folder, load = broken
    if change is None:
        (folder / file).unlink()
    else:
        edit(folder / file, change)
    with pytest.raises(DataError, match=f"(?s){message}"):
        load()


def test_repeated_item_rows_are_counted(broken, caplog):
    folder, load = broken
    edit(folder / "tiny.item", lambda x: x + [x[1], x[2]])
    _, dataset = load()
    assert dataset.item_num == 31
    assert "2 repeated item rows" in caplog.text


def test_short_users_are_counted(broken, caplog):
    caplog.set_level("INFO")
    _, load = broken
    _, dataset = load()
    assert "2 users with fewer than 3 events" in caplog.text
    assert "1 users with 3 events" in caplog.text
    test_users = set(dataset.id2token("user_id", dataset.targets("test").users))
    assert not test_users & {"u0", "u1"} and "u2" in test_users


def test_other_splits_are_refused(broken):
    with pytest.raises(ConfigError, match=r"eval_args\.split"):
        broken[1](eval_args={"split": {"RS": [0.8, 0.1, 0.1]}})


def test_users_without_a_training_target_are_told(settings, tmp_path):
    folder = make_dataset(tmp_path / "short", features=())
    header = ["user_id:token", "item_id:token", "timestamp:float"]
    items = ["book0", "film0", "book1", "film1"]  # two of them to learn from, one of each domain
    rows = [(f"u{u}", item, time) for u in range(3) for time, item in enumerate(items)]
    write(folder / "tiny.inter", header, rows)
    keys = {**settings, "data_path": str(tmp_path / "short"), "overlap_ratio": 0.0}
    config, dataset = open_dataset(keys)
    loader = data_preparation(config, dataset, config.model_class).train_data
    with pytest.raises(DataError, match="two training events"):
        next(iter(loader))


def test_rows_are_counted_for_models_that_read_the_key(settings):
    keys = {**settings, "batch_unit": "rows", "train_rows": "prefix", "train_batch_size": 16}
    loaders = []
    for model in ("TEMA", "LLM4CDSR"):
        config, dataset = open_dataset(keys, model=model)
        loaders.append(data_preparation(config, dataset, config.model_class).train_data)
    assert [loader.counts_rows for loader in loaders] == [False, True]
    assert len(loaders[1]) == sum(1 for _ in loaders[1])
