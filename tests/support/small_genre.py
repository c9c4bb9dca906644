"""The first users of ml-100k-genre as a dataset of their own, with small vectors made from genres.

Real sequences and domains at a size that every model trains on in a second; the vectors need no
text encoder.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd

from dataset_tools.builtin.movielens import film_table, mean_profiles
from dataset_tools.dataset.writer import write_dataset
from recbole_tema.data.cells import tag_token

NAME = "genre-small"
N_USERS = 40
SIZE = 12


def _raw(suffix):
    folder = Path(find_spec("recbole").origin).parent / "dataset_example" / "ml-100k"
    table = pd.read_csv(folder / f"ml-100k.{suffix}", sep="\t", dtype=str, keep_default_na=False)
    return table.rename(columns=lambda head: head.partition(":")[0])


def with_genre_tags(films):
    """The films with tags: genres and decade, with equal weights that sum to 1."""
    decades = [[f"{year[:3]}0s"] if year else [] for year in films["year"]]
    tags = [
        [tag_token(g) for g in genres] + decade
        for genres, decade in zip(films["category"], decades, strict=True)
    ]
    return films.assign(tags=tags, tag_weights=[[1 / len(row) for _ in row] for row in tags])


def write_small_genre(data_path, n_users=N_USERS, domains=None):
    """Write the dataset into ``data_path / NAME``.

    Args:
        domains: function from the item table to each item's domain; the genre domains without it.
    """
    events = _raw("inter")
    events = events[events["user_id"].astype(int) <= n_users]
    # The order and the ties of the real clock, in numbers that RecBole's float32 tells apart.
    order = events["timestamp"].astype(float).rank(method="dense")
    events = events.assign(timestamp=order)[["user_id", "item_id", "timestamp"]]
    items = with_genre_tags(film_table(_raw("item")))
    items = items[items["item_id"].isin(set(events["item_id"]))].reset_index(drop=True)
    if domains is not None:
        items["domain"] = domains(items)
    tags = sorted({tag for row in items["tags"] for tag in row})
    rng = np.random.default_rng(0)
    tag_vectors = rng.normal(size=(len(tags), SIZE)).astype(np.float32)
    place = {tag: row for row, tag in enumerate(tags)}
    vectors = np.stack(
        [tag_vectors[[place[tag] for tag in row]].sum(axis=0) for row in items["tags"]]
    )
    vectors += rng.normal(scale=0.1, size=vectors.shape)
    ids = items["item_id"].tolist()
    used = [sorted({d for d, row in zip(items["domain"], items["tags"], strict=True) if tag in row})
            for tag in tags]  # fmt: skip
    made_by = "random vectors of genres and decades"
    write_dataset(
        Path(data_path) / NAME,
        NAME,
        events,
        items,
        item_text=(ids, vectors),
        item_llm=(ids, vectors),
        user_llm=mean_profiles(events, ids, vectors),
        tags=pd.DataFrame({"tag_id": tags, "tag_domain": used, "tag_emb": list(tag_vectors)}),
        card={
            "source": "MovieLens 100K, copy in the package recbole",
            "licence": "GroupLens: research use",
            "filters": f"the first {n_users} users",
            "domains": dict.fromkeys(items["domain"].unique(), "by genre"),
            "builder": {"name": "tests", "version": 1},
            "generated": dict.fromkeys(["clip_text", "llm_emb", "profile_emb", "tag_emb"], made_by)
            | {"tags": "genres and decade", "tag_weights": "1 / number of tags"},
        },
    )
    return Path(data_path) / NAME
