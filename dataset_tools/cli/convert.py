"""`convert SOURCE NAME ...`: raw data become a dataset of atomic files."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from dataset_tools.cli.conversion import source
from dataset_tools.cli.options import Parsed, options_of
from dataset_tools.convert.layout import Tables
from recbole_tema.errors import ConfigError

Files = tuple[tuple[str | None, Path], ...]  # with the domain, where it was named
Domains = tuple[tuple[str, Path], ...]


def domain_and_path(text: str, needed: bool = False) -> tuple[str | None, Path]:
    """(domain or None, path) of `DOMAIN=PATH`, or of a path alone where no domain is `needed`."""
    domain, equals, path = text.partition("=")
    if not equals or "/" in domain:  # a path may hold the sign too
        if needed:
            raise ValueError(f"{text!r} names no domain; write DOMAIN=PATH")
        return None, Path(text)
    if not domain or domain.split() != [domain] or not path:
        raise ValueError(f"{text!r} is not of the form DOMAIN=PATH")
    return domain, Path(path)


def characters(words: dict[str, str], most: int, text: str) -> str:
    """One character or a few, or what a word stands for."""
    if text in words:
        return words[text]
    if not 1 <= len(text) <= most or set(text) & set("\r\n"):
        length = "one character" if most == 1 else f"1 to {most} characters"
        raise ValueError(f"{text!r} is not {length}, nor {' or '.join(words)}")
    return text


def names_of(text: str) -> tuple[str, ...]:
    """The names in `a,b,c`."""
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise ValueError(f"{text!r} is not of the form NAME,NAME,...")
    return names


FILE = Parsed("[domain=]path", domain_and_path)
OF_DOMAIN = Parsed("[domain=]path", partial(domain_and_path, needed=True))
NAMES = Parsed("name,name,...", names_of)


def files(flag: str, text: str) -> Callable:
    """An option that names files, and may be repeated."""
    return click.option(flag, type=FILE, multiple=True, help=text)


@click.group()
def convert() -> None:
    """Make a cross-domain dataset of atomic files from raw data.

    \b
    csv        tables of interactions and items (CSV, TSV, JSON, Parquet; gzip, zstd), sequences
    amazon     reviews and metadata of the 2014, 2018 and 2023 releases
    douban     book, movie and music reviews
    movielens  a release's folder or zip, as two domains of genres
    recbole    atomic datasets of one domain each, users matched by token
    """


@source(
    "csv",
    """\b
Examples:
  python -m dataset_tools convert csv food-kitchen --interactions interactions.csv.gz \\
      --items items.csv.gz --user_core 5 --item_core 5
  python -m dataset_tools convert csv shops --interactions book=b.tsv \\
      --interactions film=f.parquet --items book=books.jsonl --items film=films.jsonl \\
      --column user_id=customer
  python -m dataset_tools convert csv ml-dat --interactions ratings.dat --items movies.dat \\
      --delimiter :: --columns user_id,item_id,rating,timestamp --item_columns item_id,title,domain
  python -m dataset_tools convert csv sequences --train train.txt --valid valid.txt \\
      --test test.txt --items items.csv --user_ids own""",
    files(
        "--interactions",
        "Table of user_id, item_id, timestamp and maybe rating, domain and split; or a line a "
        "user: user, then its items, or item|time. May be repeated.",
    ),
    files(
        "--train",
        "As --interactions, of a given split, which becomes a column `split`. May be repeated.",
    ),
    files("--valid", "The same, of validation."),
    files("--test", "The same, of test."),
    files(
        "--items",
        "Table of item_id, domain and maybe title, category, brand, price, ... May be repeated.",
    ),
    click.option(
        "--column",
        "columns",
        multiple=True,
        metavar="OURS=THEIRS",
        help="Name of a column where it is none of the usual ones. May be repeated.",
    ),
    click.option(
        "--columns",
        "header",
        type=NAMES,
        help="Columns of interactions without a header, in their order, e.g. "
        "user_id,item_id,rating,timestamp; _ for one of no use.",
    ),
    click.option(
        "--item_columns", "item_header", type=NAMES, help="The same, of items without a header."
    ),
    *options_of(
        Tables,
        delimiter=Parsed("character", partial(characters, {"tab": "\t", "space": " "}, 4)),
        quote=Parsed("character", partial(characters, {"none": ""}, 1)),
    ),
    click.option(
        "--user_ids",
        type=click.Choice(["shared", "own"]),
        help="Whether one id in two files of interactions is one user, or each file counts its "
        "own: then its name goes before them.  [default: shared, but an error where that is in "
        "doubt]",
    ),
)
def convert_csv(
    how: dict,
    interactions: Files,
    items: Files,
    columns: tuple[str, ...],
    header: tuple[str, ...] | None,
    item_header: tuple[str, ...] | None,
    user_ids: str | None,
    train: Files,
    valid: Files,
    test: Files,
    **options: Any,
) -> tuple[Callable, str]:
    """Dataset NAME from plain tables."""
    from dataset_tools.convert.sources.tables import read

    given = {}
    for text in columns:
        ours, equals, theirs = text.partition("=")
        if not (equals and theirs):
            raise ConfigError(f"--column {text}: not of the form OURS=THEIRS")
        given[ours] = theirs
    headers = {"interactions": header, "items": item_header}
    tables = Tables(
        interactions,
        items,
        {"train": train, "valid": valid, "test": test},
        given,
        {role: names for role, names in headers.items() if names},
        own_users=None if user_ids is None else user_ids == "own",
        **options,
    )
    names = [path.name for _, path in [*interactions, *train, *valid, *test, *items]]
    return partial(read, tables=tables), "tables " + ", ".join(names)


@source(
    "amazon",
    """\b
Examples:
  python -m dataset_tools convert amazon food-kitchen \\
      food=reviews_Grocery_and_Gourmet_Food.json.gz kitchen=reviews_Home_and_Kitchen.json.gz \\
      --metadata food=meta_Grocery_and_Gourmet_Food.json.gz \\
      --metadata kitchen=meta_Home_and_Kitchen.json.gz --user_core 5 --item_core 5
  python -m dataset_tools convert amazon elec-phone elec=Electronics.jsonl.gz \\
      phone=Cell_Phones_and_Accessories.jsonl.gz --after 2018-01-01 --before 2020-01-01""",
    click.argument("reviews", nargs=-1, required=True, type=OF_DOMAIN),
    click.option(
        "--metadata",
        multiple=True,
        type=OF_DOMAIN,
        help="Metadata of a domain's items: DOMAIN=FILE. May be repeated.",
    ),
)
def convert_amazon(how: dict, reviews: Domains, metadata: Domains) -> tuple[Callable, str]:
    """Dataset NAME from Amazon reviews, DOMAIN=FILE for each of two or more categories."""
    from dataset_tools.convert.sources.amazon import read

    catalogue = how["items_without_events"] == "keep" and how["item_core"] <= 1
    reader = partial(read, reviews=reviews, metadata=metadata, catalogue=catalogue)
    return reader, "Amazon reviews " + ", ".join(path.name for _, path in reviews)


@source(
    "douban",
    """\b
Examples:
  python -m dataset_tools convert douban book-movie ./douban --domain book --domain movie""",
    click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path)),
    click.option(
        "--domain",
        "domains",
        multiple=True,
        type=click.Choice(["book", "movie", "music"]),
        help="Two or three of them.  [default: all]",
    ),
)
def convert_douban(how: dict, folder: Path, domains: tuple[str, ...]) -> tuple[Callable, str]:
    """Dataset NAME from FOLDER with bookreviews_cleaned.txt and the like."""
    from dataset_tools.convert.sources.douban import KINDS, read

    chosen = tuple(dict.fromkeys(domains)) or tuple(KINDS)
    return partial(read, folder=folder, domains=chosen), f"Douban reviews of {', '.join(chosen)}"


@source(
    "movielens",
    """\b
Examples:
  python -m dataset_tools convert movielens ml-1m-genre ml-1m.zip
  python -m dataset_tools convert movielens ml-32m-genre ./ml-32m --min_rating 4 --user_core 5""",
    click.argument("place", type=click.Path(exists=True, path_type=Path)),
)
def convert_movielens(how: dict, place: Path) -> tuple[Callable, str]:
    """Dataset NAME from PLACE, the folder or zip of a MovieLens release.

    Domains are thrill and heart, by the majority of a film's genres.
    """
    from dataset_tools.convert.sources.movielens import read

    return partial(read, place=place), f"MovieLens, {place.resolve().name}"


@source(
    "recbole",
    """\b
Examples:
  python -m dataset_tools convert recbole book-film book=./dataset/books film=./dataset/films""",
    click.argument("folders", nargs=-1, required=True, type=OF_DOMAIN),
)
def convert_recbole(how: dict, folders: Domains) -> tuple[Callable, str]:
    """Dataset NAME from DOMAIN=FOLDER of two or more atomic datasets, FOLDER/FOLDER.inter."""
    from dataset_tools.convert.sources.recbole import read

    source = "atomic datasets " + ", ".join(path.name for _, path in folders)
    return partial(read, folders=folders), source


for one in (convert_csv, convert_amazon, convert_douban, convert_movielens, convert_recbole):
    convert.add_command(one)
