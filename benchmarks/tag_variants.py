"""Copies of a tagged dataset that differ in their tags alone, for the ablation of TEMA's tags.

    python benchmarks/tag_variants.py NAME [--data_path FOLDER]

NAME is a dataset that `python -m dataset_tools tag` has tagged; its kept answers are read, no
question is asked. Beside it come NAME-raw-tags, the model's own tags of each item before the list
was made of them, all with the same weight, and, where the items have a category, NAME-genre-tags,
the parts of the category with the same weight. Everything else is the same, byte for byte.
"""

import argparse
import shutil
from pathlib import Path

from dataset_tools.cli.options import STORE
from dataset_tools.dataset.dataset import Dataset, read_dataset, update_dataset
from dataset_tools.encoders.loading import load_encoder
from dataset_tools.enrich.tags import tag_table, with_tags
from dataset_tools.llm.answers import AnswerStore
from dataset_tools.llm.local import LocalBackend
from dataset_tools.llm.session import Session
from dataset_tools.options import TagOptions
from dataset_tools.tags.generate import generate
from recbole_tema.data.cells import tag_text, tag_token
from recbole_tema.paths import default_data_path


def copy_of(dataset: Dataset, name: str) -> Dataset:
    """The dataset once more, under another name in the folder beside it."""
    folder = dataset.folder.parent / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for path in dataset.folder.glob(f"{dataset.name}.*"):
        if path.name != f"{dataset.name}.yaml":
            shutil.copy(path, folder / path.name.replace(dataset.name, name, 1))
    copied = read_dataset(folder, name)
    copied.card = {**dataset.card, "name": name}
    return copied


def write_variant(dataset: Dataset, name: str, rows: list[list[str]], what: str) -> None:
    """Write `rows`, tags of each item, as dataset `name`, every tag of an item weighted alike."""
    copied = copy_of(dataset, name)
    weights = [[float(f"{1 / max(1, len(row)):.6g}")] * len(row) for row in rows]
    used = sorted({tag for row in rows for tag in row})
    vectors = load_encoder("minilm").texts(used)
    update_dataset(
        copied,
        items=with_tags(copied, rows, weights),
        tags=tag_table(copied, rows, used, vectors),
        generated={"tags": what, "tag_weights": "1 / number of tags"},
    )
    print(f"{copied.folder}: {len(used)} tags, {sum(map(len, rows)) / len(rows):.2f} an item")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name")
    parser.add_argument("--data_path", type=Path, default=Path(default_data_path()))
    args = parser.parse_args()
    dataset = read_dataset(args.data_path / args.name, args.name)
    with AnswerStore(dataset.folder / STORE) as store:
        raw = generate(dataset, Session(LocalBackend(), store), TagOptions())
    write_variant(dataset, f"{args.name}-raw-tags", raw.tags, "raw tags of the language model")
    genres = [
        list(dict.fromkeys(tag_text(tag_token(part)) for part in text.split()))
        for text in dataset.column("category")
    ]
    if any(genres):
        years = dataset.column("year")
        decades = [[f"{year[:3]}0s"] if year else [] for year in years]
        rows = [mine + decade for mine, decade in zip(genres, decades, strict=True)]
        write_variant(dataset, f"{args.name}-genre-tags", rows, "genres and decade")


if __name__ == "__main__":
    main()
