"""ml-100k-genre: MovieLens 100K, as RecBole's wheel carries it, as two domains by genre.

The domains are those of `convert movielens`; this builder needs none of its packages.
"""

import logging
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd

from dataset_tools.builtin.shipped_tags import shipped
from dataset_tools.convert.sources.movielens import THRILL_GENRES, film_domain
from dataset_tools.dataset.dataset import training_events
from dataset_tools.dataset.writer import write_dataset
from dataset_tools.encoders.loading import load_encoder
from dataset_tools.encoders.text_encoder import (
    HOW_TO_GET,
    MODEL_NAME,
    encoder_available,
    missing_packages,
)
from dataset_tools.enrich.tags import tag_table
from recbole_tema.data.atomic import read_table
from recbole_tema.data.cells import tag_text
from recbole_tema.data.schema import types_of
from recbole_tema.paths import recbole_dir

log = logging.getLogger(__name__)

NAME = "ml-100k-genre"
BUILDER_VERSION = 2
FORMER_NOTES = (  # of fields, by older versions
    "genres and decade",
    "1 / number of tags",
    "mean of llm_emb over the user's events without the last 2",
)
CLIP_TEXT_NOTE = f"{MODEL_NAME} of 'domain: title (year), genres'"
PROFILE_NOTE = "mean of llm_emb over the user's training events"
TAG_NOTE = f"{MODEL_NAME} of the tag"


def build_ml_100k_genre(folder: str | Path, force: bool = False) -> Path:
    """Build ml-100k-genre into `folder`; returns the card's path.

    All ratings stay, as implicit feedback with their value. Tags and weights are those that the
    project keeps, made by `python -m dataset_tools tag` (see `shipped_tags`). Where the `features`
    extra is installed, all-MiniLM-L6-v2 gives the text vectors of films and tags; else those files
    are absent and the card says so.

    Raises:
        DataError: RecBole's copy is not there, the dataset exists and `force` is not set, or the
            folder cannot be written.
    """
    events = _read_raw("inter", types_of("user_id", "item_id", "timestamp"))
    items = film_table(_read_raw("item", {"item_id": "token", "class": "token_seq"}))
    kept, kept_card = shipped(NAME)
    items = with_kept_tags(items, kept)
    features, generated = {}, {key: kept_card[key] for key in ("tags", "tag_weights")}
    if encoder_available():
        features = _text_features(events, items)
        generated |= {
            "clip_text": CLIP_TEXT_NOTE,
            "llm_emb": CLIP_TEXT_NOTE,
            "profile_emb": PROFILE_NOTE,
            "tag_emb": TAG_NOTE,
        }
    else:
        missing = ", ".join(missing_packages())
        log.warning("%s without text vectors (no %s); to get them: %s", NAME, missing, HOW_TO_GET)
    card = {
        "source": f"MovieLens 100K, copy in the package recbole {version('recbole')}",
        "licence": "GroupLens: research use; https://grouplens.org/datasets/movielens/100k/",
        "filters": "none: every rating is an interaction",
        "domains": {
            "thrill": "most genres are of " + ", ".join(sorted(THRILL_GENRES)),
            "heart": "all other films; on a tie the genre listed first decides",
        },
        # The name that cards of this builder have always had.
        "builder": {"name": "dataset_tools.movielens", "version": BUILDER_VERSION},
        "text_vectors": bool(features),
        "generated": generated,
        "tagging": kept_card["tagging"],
    }
    return write_dataset(folder, NAME, events, items, **features, card=card, force=force)


def builder_notes() -> set[str]:
    """What the card may say of fields that this builder made, whatever its version."""
    kept = shipped(NAME)[1]
    return {
        CLIP_TEXT_NOTE,
        PROFILE_NOTE,
        TAG_NOTE,
        kept["tags"],
        kept["tag_weights"],
        *FORMER_NOTES,
    }


def film_table(raw: pd.DataFrame) -> pd.DataFrame:
    """Item columns from the raw item_id, movie_title, release_year, class (genres).

    The one film without title and year, and the genre "unknown", leave their cells empty.
    """
    genres = [[g for g in text.split() if g != "unknown"] for text in raw["class"]]
    return pd.DataFrame(
        {
            "item_id": raw["item_id"],
            "domain": [film_domain(gs) for gs in genres],
            "title": raw["movie_title"].replace("unkonwn", ""),  # the raw file's own spelling
            "year": [year if year.isdigit() else "" for year in raw["release_year"]],
            "category": genres,
        }
    )


def with_kept_tags(items: pd.DataFrame, kept: pd.DataFrame) -> pd.DataFrame:
    """`items` with the columns tags and tag_weights of `kept`, by item; others have none."""
    rows = kept.set_index("item_id").reindex(items["item_id"]).fillna("")
    return items.assign(
        tags=[text.split() for text in rows["tags"]],
        tag_weights=[[float(part) for part in text.split()] for text in rows["tag_weights"]],
    )


def _read_raw(suffix: str, required: dict[str, str]) -> pd.DataFrame:
    """A raw table of RecBole's wheel."""
    return read_table(recbole_dir() / "dataset_example" / "ml-100k" / f"ml-100k.{suffix}", required)


def film_text(domain: str, title: str, year: str, genres: Sequence[str]) -> str:
    """What the text encoder reads of a film.

    >>> film_text("thrill", "GoldenEye", "1995", ["Action", "Thriller"])
    'thrill: GoldenEye (1995), Action, Thriller'
    """
    name = f"{title} ({year})" if year else title
    return f"{domain}: " + ", ".join(part for part in [name, *genres] if part)


def _text_features(events: pd.DataFrame, items: pd.DataFrame) -> dict:
    """The feature arguments of `write_dataset` that need the encoder."""
    columns = (items[c] for c in ("domain", "title", "year", "category"))
    texts = [film_text(*row) for row in zip(*columns, strict=True)]
    tags = sorted({tag for row in items["tags"] for tag in row})
    vectors = load_encoder("minilm", "cpu").texts(texts + [tag_text(tag) for tag in tags])
    films, tag_vectors = vectors[: len(texts)], vectors[len(texts) :]
    ids = items["item_id"].tolist()
    return {
        "tags": tag_table(items["domain"], items["tags"], tags, tag_vectors),
        "item_text": (ids, films),
        "item_llm": (ids, films),
        "user_llm": mean_profiles(events, ids, films),
    }


def mean_profiles(
    events: pd.DataFrame, items: Sequence[str], vectors: np.ndarray
) -> tuple[list[str], np.ndarray]:
    """Users and the mean vector (n, d) of the items of each one's training events.

    Validation and test targets must not leak into a profile.
    """
    past = training_events(events)
    codes, users = pd.factorize(past["user_id"], sort=True)
    row = pd.Index(items).get_indexer(past["item_id"])
    sums = np.zeros((len(users), vectors.shape[1]))
    np.add.at(sums, codes, vectors[row].astype(np.float64))
    return list(users), (sums / np.bincount(codes)[:, None]).astype(np.float32)
