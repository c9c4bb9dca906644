"""Tags that the project keeps for a built-in dataset, so that building it needs no language model.

They are plain text files in `dataset_tools/shipped/NAME/`: `tags.tsv` (item_id, tags, tag_weights)
and `card.yaml` (model, prompts, options, date, what the list went through).

    python -m dataset_tools.cli.shipped_tags NAME [--data_path FOLDER]

writes them from a dataset that `tag` or `enrich` has just tagged.
"""

import logging
from datetime import date
from importlib.resources import files
from pathlib import Path

import pandas as pd
import yaml

from dataset_tools.dataset.dataset import Dataset
from dataset_tools.enrich.tags import has_llm_tags
from recbole_tema.data.atomic import replace_file
from recbole_tema.errors import DataError

log = logging.getLogger(__name__)

COLUMNS = ("item_id", "tags", "tag_weights")


def shipped(name: str) -> tuple[pd.DataFrame, dict]:
    """The kept tags (columns item_id, tags, tag_weights as texts) and their card.

    Raises:
        DataError: the project keeps none for `name`, or its files are damaged.
    """
    folder = files("dataset_tools") / "shipped" / name
    try:
        card = yaml.safe_load((folder / "card.yaml").read_text("utf-8"))
        with (folder / "tags.tsv").open("rb") as file:
            table = pd.read_csv(file, sep="\t", dtype=str, keep_default_na=False, quoting=3)
    except (OSError, yaml.YAMLError, ValueError) as error:
        raise DataError(f"{folder}: no tags are kept for '{name}' ({error})") from None
    if tuple(table.columns) != COLUMNS or not isinstance(card, dict):
        raise DataError(f"{folder}: not as this version wrote it; install the package again")
    return table, card


def keep(dataset: Dataset, folder: Path) -> None:
    """Write the tags of `dataset` and what made them into `folder`.

    Raises:
        DataError: the tags are no language model's.
    """
    if not has_llm_tags(dataset):
        raise DataError(f"{dataset.path('item')}: no tags by a language model; run 'tag' first")
    generated = dataset.card["generated"]
    card = {
        "dataset": dataset.name,
        "date": date.today().isoformat(),
        "tags": generated["tags"],
        "tag_weights": generated["tag_weights"],
        "tagging": dataset.card["tagging"],
        "again": f"python -m dataset_tools tag {dataset.name} --force",
    }
    folder.mkdir(parents=True, exist_ok=True)
    rows = dataset.items[list(COLUMNS)]
    lines = ["\t".join(COLUMNS), *("\t".join(row) for row in rows.itertuples(index=False))]
    with replace_file(folder / "tags.tsv") as file:
        file.write(("\n".join(lines) + "\n").encode())
    with replace_file(folder / "card.yaml") as file:
        text = yaml.safe_dump(card, sort_keys=False, allow_unicode=True, width=100)
        file.write(text.encode())
