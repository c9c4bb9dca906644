"""Build Amazon Food-Kitchen, whole or as the reference subset, as a dataset of atomic files.

    python benchmarks/food_kitchen.py --csv FOLDER [--data_path FOLDER]            # food-kitchen
    python benchmarks/food_kitchen.py --csv FOLDER [--data_path FOLDER] --subset   # ...-subset

FOLDER holds ``interactions.csv.gz`` (user_id, item_id, timestamp) and ``items.csv.gz`` (item_id,
domain, title), the data published with LLMCDSR (TOIS 2025). The filter: 5-core users and items to
the fixpoint; for the subset of the overlapping users and the first 1,500 single-domain users of
each domain in file order. Item vectors are MiniLM's of "domain: title"; a user's profile is the
mean over the user's training events.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from dataset_tools.builtin.movielens import mean_profiles
from dataset_tools.dataset.writer import write_dataset
from dataset_tools.encoders.loading import load_encoder
from recbole_tema.paths import default_data_path

NAME = "food-kitchen"
SUBSET = "food-kitchen-subset"
SINGLE_DOMAIN_USERS = 1500
CORE = 5


def first_users(events: pd.DataFrame, domain_of: pd.Series) -> pd.DataFrame:
    """Events of all overlapping users and of the first single-domain users of each domain."""
    domains = events["item_id"].map(domain_of)
    spans = domains.groupby(events["user_id"], sort=False).agg(["nunique", "first"])
    kept = [spans.index[spans["nunique"] > 1]]
    for domain in sorted(domain_of.unique()):
        single = spans.index[(spans["nunique"] == 1) & (spans["first"] == domain)]
        kept.append(single[:SINGLE_DOMAIN_USERS])
    return events[events["user_id"].isin(np.concatenate(kept))]


def core(events: pd.DataFrame) -> pd.DataFrame:
    """Events of users and items with ``CORE`` or more of what is left; their order stays."""
    while True:
        per_user = events["user_id"].map(events["user_id"].value_counts())
        per_item = events["item_id"].map(events["item_id"].value_counts())
        dense = (per_user >= CORE) & (per_item >= CORE)
        if dense.all():
            return events
        events = events[dense]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--csv", required=True, type=Path, help="folder of the two CSV files")
    parser.add_argument("--data_path", type=Path, default=Path(default_data_path()))
    parser.add_argument("--subset", action="store_true", help="the reference subset, not the whole")
    parser.add_argument("--force", action="store_true", help="replace an existing dataset")
    args = parser.parse_args()
    events = pd.read_csv(args.csv / "interactions.csv.gz", dtype={"user_id": str, "item_id": str})
    items = pd.read_csv(args.csv / "items.csv.gz", dtype=str, keep_default_na=False)
    name, filters = NAME, f"{CORE}-core users and items to the fixpoint"
    if args.subset:
        name = SUBSET
        filters = (
            f"overlapping users, first {SINGLE_DOMAIN_USERS} single-domain users of each domain, "
            + filters
        )
        events = first_users(events, items.set_index("item_id")["domain"])
    events = core(events)
    items = items[items["item_id"].isin(events["item_id"])].reset_index(drop=True)
    texts = (items["domain"] + ": " + items["title"]).tolist()
    vectors = load_encoder("minilm", "cpu").texts(texts)
    tokens = items["item_id"].tolist()
    write_dataset(
        args.data_path / name,
        name,
        events[["user_id", "item_id", "timestamp"]],
        items,
        item_text=(tokens, vectors),
        item_llm=(tokens, vectors),
        user_llm=mean_profiles(events, tokens, vectors),
        card={
            "source": "Amazon Food-Kitchen as published with LLMCDSR (TOIS 2025)",
            "filters": filters,
            "generated": {
                "clip_text": "all-MiniLM-L6-v2 of 'domain: title'",
                "llm_emb": "all-MiniLM-L6-v2 of 'domain: title'",
                "profile_emb": "mean of llm_emb over the user's training events",
            },
        },
        force=args.force,
    )
    counts = items["domain"].value_counts()
    print(
        f"{args.data_path / name}: {events['user_id'].nunique()} users, {len(events)} events, "
        + ", ".join(f"{counts[d]} {d} items" for d in sorted(counts.index))
    )


if __name__ == "__main__":
    main()
