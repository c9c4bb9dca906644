"""What a command leaves alone without --force, and what it makes anew by itself."""

import shutil

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from sklearn.preprocessing import StandardScaler, normalize

from dataset_tools.dataset.dataset import read_dataset, update_dataset
from dataset_tools.dataset.provenance import digest, say_replaced
from dataset_tools.enrich.embeddings import centred, embed_dataset
from dataset_tools.enrich.profiles import profile_dataset
from dataset_tools.enrich.tags import tag_dataset
from dataset_tools.llm.answers import AnswerStore
from dataset_tools.llm.session import Session
from dataset_tools.options import ClipOptions, ProfileOptions, TagOptions
from recbole_tema.config.registry import OUR_MODELS, READERS
from recbole_tema.data.feature_file import read_feature
from recbole_tema.data.schema import FEATURE_FILES
from recbole_tema.errors import DataError
from tests.support.encoder import needs_encoder
from tests.support.tiny_dataset import make_dataset, write
from tests.support.word_backend import NAME, WordBackend, shop_items, word_vectors, write_shop

pytestmark = pytest.mark.long

TAGS = TagOptions(max_share=0.6)


def embed(dataset, backend, force=False):
    with AnswerStore(dataset.folder / "llm-answers") as store:
        session = Session(backend, store, progress=False)
        # Raw: a changed title moves the mean, and with it the centred vectors of all items.
        return embed_dataset(dataset, session, None, force, raw=True)


def tag(dataset, backend, options=TAGS, force=False):
    with AnswerStore(dataset.folder / "llm-answers") as store:
        session = Session(backend, store, progress=False)
        return tag_dataset(dataset, session, "minilm", options, force)


def profile(dataset, backend, limit=None):
    with AnswerStore(dataset.folder / "llm-answers") as store:
        session = Session(backend, store, progress=False)
        options = ProfileOptions(clusters=4, limit=limit)
        return profile_dataset(dataset, session, "llm", options, force=False)


def with_titles(dataset, change):
    """The dataset read again after its titles changed on the disk."""
    path = dataset.path("item")
    path.write_text(change(path.read_text()))
    return read_dataset(dataset.folder, NAME)


def own_field(dataset, field, **parts):
    """Write files that the card names no maker of, as a user's own are."""
    update_dataset(dataset, **parts, generated={field: "nobody"})
    card = yaml.safe_load(dataset.path("yaml").read_text())
    del card["generated"][field]
    dataset.path("yaml").write_text(yaml.safe_dump(card, sort_keys=False))
    return read_dataset(dataset.folder, NAME)


def test_vectors_of_changed_titles_are_made_anew_and_of_the_others_not(tmp_path):
    dataset, backend = write_shop(tmp_path), WordBackend(False)
    embed(dataset, backend)
    before = read_feature(dataset.path("itemllm")).values
    n = len(backend.asked)
    assert "has item vectors" in embed(dataset, backend) and len(backend.asked) == n
    dataset = with_titles(dataset, lambda text: text.replace("Fine oven", "Old history"))
    assert "has item vectors" not in embed(dataset, backend)
    changed = [item.startswith("Old") for item in dataset.column("title")]
    assert 0 < sum(changed) <= len(backend.asked) - n < len(changed)
    after = read_feature(dataset.path("itemllm")).values
    assert ((after != before).any(1) == changed).all()


def test_centred_vectors_by_scikit_learn(tmp_path):
    rng = np.random.default_rng(0)
    raw = (rng.normal(size=(50, 8)) * rng.uniform(0.1, 9, 8) + 30).astype(np.float32)
    expected = normalize(StandardScaler(with_std=False).fit_transform(raw.astype(np.float64)))
    assert np.allclose(centred(raw), expected, atol=1e-6)
    assert np.isfinite(centred(np.ones((3, 4), np.float32))).all()
    dataset = write_shop(tmp_path)
    with AnswerStore(dataset.folder / "llm-answers") as store:
        embed_dataset(dataset, Session(WordBackend(False), store, progress=False), None, False)
    whole = read_feature(dataset.path("itemllm")).values
    embed(dataset, WordBackend(False), force=True)
    assert np.allclose(centred(read_feature(dataset.path("itemllm")).values), whole, atol=1e-6)


def test_another_models_vectors_stay_until_forced(tmp_path):
    dataset, other = write_shop(tmp_path), WordBackend(False, identity="other words")
    embed(dataset, WordBackend(False))
    before = dataset.path("itemllm").read_bytes()
    assert "--force" in embed(dataset, other) and not other.asked
    dataset = with_titles(dataset, lambda text: text.replace("Fine oven", "Old history"))
    said = embed(dataset, other)
    assert "other texts than there are now" in said and not other.asked
    assert dataset.path("itemllm").read_bytes() == before
    embed(dataset, other, force=True)
    assert other.asked and dataset.generated("llm_emb").startswith("language model other words,")


def test_vectors_of_ones_own_stay_and_stand_ins_go(tmp_path):
    ids = shop_items()["item_id"].tolist()
    vectors = word_vectors(ids)
    dataset = write_shop(tmp_path / "a")
    dataset = own_field(dataset, "llm_emb", features={"itemllm": (ids, vectors)})
    before, backend = dataset.path("itemllm").read_bytes(), WordBackend(False)
    assert "of its own" in embed(dataset, backend) and not backend.asked
    assert dataset.path("itemllm").read_bytes() == before
    dataset = write_shop(tmp_path / "b")
    stand_in = {"llm_emb": "all-MiniLM-L6-v2 of the title"}
    update_dataset(dataset, features={"itemllm": (ids, vectors)}, generated=stand_in)
    embed(dataset, backend)
    assert backend.asked and dataset.path("itemllm").read_bytes() != before


@needs_encoder
def test_tags_of_ones_own_stay_and_get_vectors(tmp_path):
    items = shop_items()
    items["tags"] = [["my_tag"] if i % 2 else ["my_tag", "other"] for i in range(len(items))]
    items["tag_weights"] = [[1.0] if i % 2 else [0.5, 0.5] for i in range(len(items))]
    dataset = own_field(write_shop(tmp_path), "tags", items=items)
    assert not dataset.path("tag").is_file()
    before, backend = dataset.path("item").read_bytes(), WordBackend(False)
    said = tag(dataset, backend)
    assert "of its own" in said and "vectors of these 2 tags" in said and not backend.asked
    table = pd.read_csv(dataset.path("tag"), sep="\t", dtype=str)
    assert table["tag_id:token"].tolist() == ["my_tag", "other"]
    assert dataset.path("item").read_bytes() == before
    assert "vectors of these" not in tag(dataset, backend)
    tag(dataset, backend, force=True)
    assert backend.asked and "my_tag" not in dataset.path("item").read_text()


@needs_encoder
def test_limit_leaves_whole_fields_alone(tmp_path):
    dataset, backend = write_shop(tmp_path / "tags"), WordBackend(False)
    update_dataset(
        dataset,
        items=shop_items().assign(
            tags=[["old"]] * len(dataset.items), tag_weights=[[1.0]] * len(dataset.items)
        ),
        tags=pd.DataFrame({"tag_id": ["old"], "tag_domain": [["food"]], "tag_emb": [[1.0]]}),
        generated={"tags": "genres"},
    )
    few = TagOptions(max_share=1.0, limit=5)
    assert "--limit leaves alone" in tag(dataset, backend, few) and not backend.asked
    assert dataset.column("tags") == ["old"] * len(dataset.items)
    tag(dataset, backend)
    assert "old" not in dataset.column("tags")
    whole = dataset.path("item").read_bytes()
    assert "--force" in tag(dataset, backend, few) and dataset.path("item").read_bytes() == whole


def test_profiles_are_made_anew_when_the_vectors_that_part_them_are(tmp_path):
    dataset, backend = write_shop(tmp_path), WordBackend(False)
    embed(dataset, backend)
    profile(dataset, backend)
    assert "has profiles" in profile(dataset, backend)
    assert "--force" in profile(dataset, backend, limit=3)
    dataset = with_titles(dataset, lambda text: text.replace("Fine oven", "Old history"))
    embed(dataset, backend)
    n = len(backend.asked)
    assert "has profiles" not in profile(dataset, backend) and len(backend.asked) > n
    assert "has profiles" in profile(dataset, backend)


texts = st.lists(st.text(max_size=4), max_size=4)


@given(st.lists(texts, max_size=3), st.lists(texts, max_size=3))
def test_digests_differ_where_the_texts_do(a, b):
    assert (digest(*a) == digest(*b)) == (a == b)


# ---- checkpoints


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """A current folder with checkpoints, and what is logged there."""
    here = tmp_path / "here"
    (here / "saved").mkdir(parents=True)
    for name in (f"TEMA-{NAME}-seed1-aa", f"LLM4CDSR-{NAME}-seed1-bb", f"SASRec-{NAME}-seed1-cc",
                 f"TEMA-{NAME}2-seed1-dd"):  # fmt: skip
        (here / "saved" / f"{name}.pth").touch()
    monkeypatch.chdir(here)


def test_whose_checkpoints_new_vectors_refuse_is_said_before_the_work(tmp_path, saved, caplog):
    dataset = write_shop(tmp_path)

    class Asked(WordBackend):
        def answer(self, units):
            assert "refused" in caplog.text
            return super().answer(units)

    embed(dataset, Asked(False))
    told = [r.getMessage() for r in caplog.records if "refused" in r.getMessage()]
    assert told == [
        f"{dataset.folder}: llm_emb will be added; checkpoints of LLM4CDSR, and of models whose "
        "selected_features name one of these, that were trained before will be refused: "
        f"saved/LLM4CDSR-{NAME}-seed1-bb.pth"
    ]
    caplog.clear()
    embed(dataset, Asked(False))  # nothing to do, nothing to say
    assert "refused" not in caplog.text
    embed(dataset, WordBackend(False), force=True)
    assert "llm_emb will be replaced; checkpoints of LLM4CDSR" in caplog.text
    caplog.clear()
    profile(dataset, WordBackend(False))
    assert "profile_emb will be added; checkpoints of LLM4CDSR" in caplog.text


@needs_encoder
def test_whose_checkpoints_new_tags_refuse(tmp_path, saved, caplog):
    from dataset_tools.enrich.features import clip_dataset

    dataset = write_shop(tmp_path)
    with AnswerStore(dataset.folder / "llm-answers") as store:
        session = Session(WordBackend(False), store, progress=False, dry=True)
        tag_dataset(dataset, session, "minilm", TAGS, False)
    assert "refused" not in caplog.text  # a dry run writes nothing
    tag(dataset, WordBackend(False))
    assert "tags, tag_weights, tag_emb will be added; checkpoints of TEMA, and" in caplog.text
    assert f"saved/TEMA-{NAME}-seed1-aa.pth" in caplog.text and "-dd.pth" not in caplog.text
    caplog.clear()
    clip_dataset(dataset, "minilm", ClipOptions(), False)
    assert "clip_text will be added; checkpoints of TEMA, and" in caplog.text


def test_a_dataset_that_is_replaced_refuses_all_its_checkpoints(tmp_path, saved, caplog):
    say_replaced(tmp_path / NAME, NAME)
    assert not caplog.text
    dataset = write_shop(tmp_path)
    say_replaced(dataset.folder, NAME)
    assert caplog.text.count(".pth") == 3 and "-dd.pth" not in caplog.text


@pytest.mark.parametrize("field", READERS)
def test_readers_of_a_field_are_the_models_that_change_with_it(tmp_path, field):
    """By the models' own state: without the file of a field, a reader becomes another model."""
    folder = make_dataset(tmp_path)
    rows = [(f"book{i}", f"{i} 0.5 {-i}") for i in range(9)]
    write(folder / "tiny.itemimage", ["image_iid:token", "clip_image:float_seq"], rows)
    without = tmp_path / "without" / "tiny"
    shutil.copytree(folder, without)
    item = folder / "tiny.item"
    if field in ("tags", "tag_weights"):
        frame = pd.read_csv(item, sep="\t", dtype=str, keep_default_na=False)
        (column,) = [c for c in frame if c.startswith(f"{field}:")]
        frame.drop(columns=column).to_csv(without / "tiny.item", sep="\t", index=False)
    else:
        (suffix,) = [s for s, (_, value, _) in FEATURE_FILES.items() if value == field]
        for path in without.glob(f"tiny.{suffix}*"):
            path.unlink()
    found = set()
    for model in OUR_MODELS:
        states = [state_of(model, where.parent) for where in (folder, without)]
        if states[0] != states[1]:
            found.add(model)
    assert found == set(READERS[field])


def state_of(model, data_path):
    """Names, shapes and values of a new model's parameters and buffers; None: it is refused."""
    import torch

    from recbole_tema.config.tema_config import TemaConfig
    from recbole_tema.data.preparation import create_dataset

    config = TemaConfig(model, "tiny", config_dict={"data_path": str(data_path)})
    try:
        train = create_dataset(config, config.model_class).build()[0]
        torch.manual_seed(0)
        made = config.model_class(config, train)
    except DataError:
        return None
    return {
        name: value.detach().numpy().tobytes()
        for name, value in [*made.named_parameters(), *made.named_buffers()]
    }
