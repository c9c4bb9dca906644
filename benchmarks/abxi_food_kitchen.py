"""Build Amazon Food-Kitchen as published with ABXI (WWW 2025) as a dataset of atomic files.

    python benchmarks/abxi_food_kitchen.py --abxi FOLDER [--titles FOLDER] [--data_path FOLDER]

The first FOLDER holds ``afk_50_preprocessed.txt.gz`` and ``map_item_50.txt.gz`` of ABXI's
repository. Nothing is filtered: users, items and the order of events are the published ones. With
``--titles``, the folder of `food_kitchen.py`, items get the titles whose ASIN is found there, and
MiniLM's vectors of "domain: title"; an item without a title has no vector.
"""

import argparse
import gzip
import json
from pathlib import Path

import pandas as pd

from dataset_tools.dataset.writer import write_dataset
from dataset_tools.encoders.loading import load_encoder
from recbole_tema.paths import default_data_path

NAME = "abxi-food-kitchen"
DOMAINS = ("food", "kitchen")


def read_events(path: Path) -> pd.DataFrame:
    """Lines ``user item|time item|time ...``, as they stand."""
    rows = []
    with gzip.open(path, "rt") as lines:
        for line in lines:
            user, *events = line.split()
            rows += [(user, *event.split("|")) for event in events]
    events = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    return events.astype({"timestamp": "int64"})


def read_items(path: Path, titles: Path | None) -> pd.DataFrame:
    """A row an item: its number, domain and ASIN, and its title or an empty text."""
    with gzip.open(path, "rt") as file:
        table = json.load(file)
    rows = [(str(number), DOMAINS[domain], asin) for asin, (number, domain) in table.items()]
    items = pd.DataFrame(rows, columns=["item_id", "domain", "asin"])
    items["title"] = ""
    if titles:
        known = pd.read_csv(titles / "items.csv.gz", dtype=str, keep_default_na=False)
        # Their item ids are the ASIN behind a letter for the domain.
        asins = known["item_id"].str.replace(r"^[A-Z]_", "", regex=True)
        items["title"] = items["asin"].map(dict(zip(asins, known["title"], strict=True))).fillna("")
    return items


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--abxi", required=True, type=Path, help="folder of ABXI's files")
    parser.add_argument("--titles", type=Path, help="folder of the CSV files of food_kitchen.py")
    parser.add_argument("--data_path", type=Path, default=Path(default_data_path()))
    parser.add_argument("--force", action="store_true", help="replace an existing dataset")
    args = parser.parse_args()
    events = read_events(args.abxi / "afk_50_preprocessed.txt.gz")
    items = read_items(args.abxi / "map_item_50.txt.gz", args.titles)
    titled = items[items["title"] != ""]
    features = {}
    generated = {}
    if len(titled):
        texts = (titled["domain"] + ": " + titled["title"]).tolist()
        vectors = load_encoder("minilm", "cpu").texts(texts)
        features = {"item_text": (titled["item_id"].tolist(), vectors)}
        generated = {"clip_text": "all-MiniLM-L6-v2 of 'domain: title'"}
    write_dataset(
        args.data_path / NAME,
        NAME,
        events,
        items.drop(columns="asin"),
        card={
            "source": "Amazon Food-Kitchen as published with ABXI (WWW 2025)",
            "filters": "none beside the published ones",
            "generated": generated,
        },
        force=args.force,
        **features,
    )
    shares = titled["domain"].value_counts() / items["domain"].value_counts()
    print(
        f"{args.data_path / NAME}: {events['user_id'].nunique()} users, {len(items)} items, "
        f"{len(events)} events; titles: "
        + ", ".join(f"{d} {shares.get(d, 0):.0%}" for d in DOMAINS)
    )


if __name__ == "__main__":
    main()
