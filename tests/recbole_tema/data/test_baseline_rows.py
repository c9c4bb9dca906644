"""RecBole's own models on every split: RecBole's rows, and the targets of all other models."""

from collections import Counter

import numpy as np
import pytest
import torch
from recbole.data.dataset import SequentialDataset

from recbole_tema.config.tema_config import TemaConfig
from recbole_tema.data.preparation import create_dataset, data_preparation
from recbole_tema.errors import CheckpointError, ConfigError, DataError
from recbole_tema.trainer.checkpoint import check_belongs, dataset_fingerprint
from tests.support.tiny_dataset import make_dataset

NAME = "tiny"
TIMES = {"TO": [0.7, 0.15, 0.15]}
RULES = [{"LS": "valid_and_test"}, {"LS": "per_domain"}, TIMES, {"given": "split"}]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """``tiny`` with a given split: of each user, and some users as a whole."""
    root = tmp_path_factory.mktemp("split")
    path = make_dataset(root, features=()) / f"{NAME}.inter"
    head, *rows = path.read_text().splitlines()
    users = [row.split("\t")[0] for row in rows]
    left = {user: users.count(user) for user in users}
    marked = []
    for user, row in zip(users, rows, strict=True):
        left[user] -= 1
        mark = {0: "test", 1: "valid"}.get(left[user], "train")
        mark = {"u5": "valid", "u6": "test"}.get(user, mark)
        marked.append(f"{row}\t{mark}")
    path.write_text("\n".join([f"{head}\tsplit:token", *marked]) + "\n")
    return root


def opened(root, model, value, **keys):
    keys |= {"data_path": str(root), "eval_args": {"split": value}, "eval_batch_size": 7}
    keys |= {"MAX_ITEM_LIST_LENGTH": 5, "exclude_history": False}
    config = TemaConfig(model, NAME, config_dict=keys)
    return config, create_dataset(config, config.model_class)


def test_rows_are_recboles_one_by_one(root):
    """RecBole's own class, its augmentation and its leave-one-out."""
    config, ours = opened(root, "SASRec", RULES[0])
    theirs = SequentialDataset(config)
    assert list(theirs.field2id_token["item_id"]) == list(ours.field2id_token["item_id"])
    for mine, part in zip(ours.build(), theirs.build(), strict=True):
        mine, part = mine.inter_feat, part.inter_feat
        assert set(mine.columns) == set(part.columns) and len(mine) == len(part)
        # Of a phase RecBole orders the rows by time, and this package by user.
        order = [np.argsort(rows["user_id"].numpy(), kind="stable") for rows in (mine, part)]
        if len(set(part["user_id"].tolist())) < len(part):
            order = [np.arange(len(part))] * 2  # of training in RecBole's order: batches follow it
        for name in part.columns:
            a, b = (
                rows[name][torch.from_numpy(o)] for rows, o in zip((mine, part), order, strict=True)
            )
            assert a.dtype == b.dtype and torch.equal(a, b), name


@pytest.mark.parametrize("value", RULES, ids=["merged", "per domain", "time", "given"])
def test_all_models_meet_the_same_targets_and_histories(root, value):
    seen = {}
    for model in ("TEMA", "SASRec", "BPR"):
        config, dataset = opened(root, model, value)
        prepared = data_preparation(config, dataset, config.model_class)
        assert "split" not in dataset.field2type
        train = prepared.train_dataset.inter_feat
        pairs = list(zip(train["user_id"].tolist(), train["item_id"].tolist(), strict=True))
        seen[model] = {"train": pairs}
        for phase, plan in prepared.plans.items():
            rows = {}
            for numbers, batch in prepared.eval_data[phase]:
                for place, row in enumerate(numbers):
                    user = int(batch["user_id"][place])
                    assert user == plan.users[row]
                    history = None
                    if "item_length" in batch:
                        length = int(batch["item_length"][place])
                        history = batch["item_id_list"][place][:length].tolist()
                    rows[int(row)] = (user, int(plan.targets[row]), history)
            assert sorted(rows) == list(range(len(plan))) and rows
            seen[model][phase] = rows
    for phase in ("valid", "test"):
        assert seen["TEMA"][phase] == seen["SASRec"][phase]
        assert [r[:2] for _, r in sorted(seen["BPR"][phase].items())] == [
            r[:2] for _, r in sorted(seen["TEMA"][phase].items())
        ]
    assert sorted(seen["TEMA"]["train"]) == sorted(seen["BPR"]["train"])
    # RecBole's rows aim at every training event but a user's first.
    first = {}
    for user, item in seen["TEMA"]["train"]:
        first.setdefault(user, item)
    assert sorted([*seen["SASRec"]["train"], *first.items()]) == sorted(seen["TEMA"]["train"])


def test_training_skips_what_is_held_out_between(root):
    """A user's training sequence is what is left of it: no target is a history in training."""
    _, dataset = opened(root, "SASRec", {"LS": "per_domain"})
    train, *held_out = dataset.build()
    columns = ("user_id", "item_id", "timestamp")
    held = {
        (int(u), int(i), float(t))
        for part in held_out
        for u, i, t in zip(*(part.inter_feat[name] for name in columns), strict=True)
    }
    feat = train.inter_feat
    assert held and len(feat)
    for row in range(len(feat)):
        n = int(feat["item_length"][row])
        user = int(feat["user_id"][row])
        items = [*feat["item_id_list"][row][:n].tolist(), int(feat["item_id"][row])]
        times = [*feat["timestamp_list"][row][:n].tolist(), float(feat["timestamp"][row])]
        events = {(user, item, time) for item, time in zip(items, times, strict=True)}
        again = [e for e in events & held if dataset.sequences.of(user).tolist().count(e[1]) < 2]
        assert not again
        assert times == sorted(times)


def test_one_domain_alone_on_every_split(root):
    for value in RULES:
        keys = {"train_on": "target", "target_domain": "film"}
        config, dataset = opened(root, "SASRec", value, **keys)
        prepared = data_preparation(config, dataset, config.model_class)
        film = dataset.domain_names.index("film") + 1
        for phase, plan in prepared.plans.items():
            assert set(plan.target_domain) == {film}
            for rows, batch in prepared.eval_data[phase]:
                assert np.array_equal(batch["item_id"].numpy(), plan.targets[rows])
                items = batch["item_id_list"].numpy()
                assert set(dataset.item_domain[items[items > 0]]) <= {film}


def test_a_user_between_two_parts_is_named(root, tmp_path):
    folder = tmp_path / NAME
    folder.mkdir()
    for suffix in ("inter", "item"):
        (folder / f"{NAME}.{suffix}").write_text((root / NAME / f"{NAME}.{suffix}").read_text())
    path = folder / f"{NAME}.inter"
    head, *rows = path.read_text().splitlines()
    mine = [place for place, row in enumerate(rows) if row.startswith("u9\t")]
    rows[mine[0]] = rows[mine[0]].replace("\ttrain", "\ttest")
    path.write_text("\n".join([head, *rows]) + "\n")
    with pytest.raises(DataError, match="user 'u9' has a train event after a test event"):
        opened(tmp_path, "TEMA", {"given": "split"})
    rows[mine[0]] = rows[mine[0]].replace("\ttest", "\tdev")
    path.write_text("\n".join([head, *rows]) + "\n")
    with pytest.raises(DataError, match=rf"line {mine[0] + 2}: split is 'dev'; .*train, valid"):
        opened(tmp_path, "BPR", {"given": "split"})


def test_what_was_made_for_another_split_is_refused(tmp_path):
    """Profiles and models of other training events may know the targets of this split."""
    folder = make_dataset(tmp_path, features=("userllm", "itemllm"))
    _, merged = opened(tmp_path, "LLM4CDSR", RULES[0])
    assert merged.feature("profile_uid") is not None
    _, each = opened(tmp_path, "LLM4CDSR", RULES[1])
    with pytest.raises(ConfigError, match=r"tiny.userllm was made .*profile tiny --force --split"):
        each.feature("profile_uid")
    card = "profiling: {options: {split: '{LS: per_domain}'}}\n"
    (folder / f"{NAME}.yaml").write_text(card)
    assert each.feature("profile_uid") is not None
    with pytest.raises(ConfigError, match="was made of the training events of another split"):
        merged.feature("profile_uid")
    assert each.feature("llm_iid") is not None and merged.feature("llm_iid") is not None

    former = {"model": "LLM4CDSR", "dataset": NAME}
    former["fingerprint"] = dataset_fingerprint(each, ["users", "split"])
    check_belongs(former, "x.pth", "LLM4CDSR", dataset_fingerprint(each, former["fingerprint"]))
    for value in (RULES[0], TIMES):
        _, other = opened(tmp_path, "LLM4CDSR", value)
        now = dataset_fingerprint(other, former["fingerprint"])
        with pytest.raises(CheckpointError, match="training events of another split"):
            check_belongs(former, "x.pth", "LLM4CDSR", now)


def test_profiles_are_refused_where_a_filter_moves_what_is_held_out(tmp_path):
    folder = make_dataset(tmp_path, features=("userllm",))
    rows = (folder / f"{NAME}.inter").read_text().splitlines()[1:]
    counts = Counter(row.split("\t")[1] for row in rows)
    fewest = min(counts.values()) + 1
    lost = {row.split("\t")[0] for row in rows if counts[row.split("\t")[1]] < fewest}
    items = {"item_inter_num_interval": f"[{fewest},inf)"}
    _, cut = opened(tmp_path, "LLM4CDSR", RULES[0], **items)
    with pytest.raises(
        ConfigError, match=rf"item_inter_num_interval drops .* {len(lost)} users keep"
    ):
        cut.feature("profile_uid")
    # Whole users may go: what is held out of the others stays.
    held = Counter(row.split("\t")[0] for row in rows)
    users = {"user_inter_num_interval": f"[{min(held.values()) + 1},inf)"}
    _, fewer = opened(tmp_path, "LLM4CDSR", RULES[0], **users)
    assert fewer.user_num <= len(held) and fewer.feature("profile_uid") is not None
    # Shares are of all events: where a user is gone, what is held out of the others moves.
    (folder / f"{NAME}.yaml").write_text(f'profiling: {{options: {{split: "{TIMES}"}}}}\n')
    assert opened(tmp_path, "LLM4CDSR", TIMES)[1].feature("profile_uid") is not None
    _, shares = opened(tmp_path, "LLM4CDSR", TIMES, **users)
    assert shares.user_num - 1 < len(held) and not shares.users_cut
    with pytest.raises(ConfigError, match=r"user_inter_num_interval drops \d+ events, of which 0 "):
        shares.feature("profile_uid")
    # Times hold out what they do, whatever else is dropped.
    times = sorted(float(row.split("\t")[-1]) for row in rows)
    value = {"TO": [times[len(times) * share // 10] for share in (7, 8)]}
    (folder / f"{NAME}.yaml").write_text(f'profiling: {{options: {{split: "{value}"}}}}\n')
    _, timed = opened(tmp_path, "LLM4CDSR", value, **items)
    assert timed.feature("profile_uid") is not None


def test_marks_are_part_of_what_a_model_was_trained_on(root, tmp_path):
    _, first = opened(root, "TEMA", {"given": "split"})
    folder = tmp_path / NAME
    folder.mkdir()
    for suffix in ("inter", "item"):
        text = (root / NAME / f"{NAME}.{suffix}").read_text()
        # The events stay the same, and one user is no test user any more.
        text = "\n".join(
            row.replace("\ttest", "\tvalid") if row.startswith("u9\t") else row
            for row in text.splitlines()
        )
        (folder / f"{NAME}.{suffix}").write_text(text + "\n")
    _, second = opened(tmp_path, "TEMA", {"given": "split"})
    marks = [dataset_fingerprint(dataset, ["split", "users"]) for dataset in (first, second)]
    assert marks[0]["users"] == marks[1]["users"] and marks[0]["split"] != marks[1]["split"]
