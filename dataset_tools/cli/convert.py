"""`convert SOURCE NAME ...`: raw data become a dataset of atomic files."""

from pathlib import Path

import click

from dataset_tools.cli.conversion import conversion_options, run
from dataset_tools.cli.options import one_line_errors
from recbole_tema.errors import ConfigError


class Domain(click.ParamType):
    """`DOMAIN=PATH`, or a path alone where the data tell the domain."""

    name = "[domain=]path"

    def __init__(self, needed: bool) -> None:
        self.needed = needed

    def convert(self, value, param, ctx) -> tuple[str | None, Path]:
        """(domain or None, path)."""
        if isinstance(value, tuple):
            return value
        domain, equals, path = value.partition("=")
        if not equals or "/" in domain:  # a path may hold the sign too
            if self.needed:
                self.fail(f"{value!r} names no domain; write DOMAIN=PATH", param, ctx)
            return None, Path(value)
        if not domain or domain.split() != [domain] or not path:
            self.fail(f"{value!r} is not of the form DOMAIN=PATH", param, ctx)
        return domain, Path(path)


class Character(click.ParamType):
    """One character or a few, or a word that stands for them."""

    name = "character"

    def __init__(self, words: dict[str, str], most: int = 1) -> None:
        self.words, self.most = words, most

    def convert(self, value, param, ctx) -> str:
        """The character."""
        if value in self.words:
            return self.words[value]
        if not 1 <= len(value) <= self.most or set(value) & set("\r\n"):
            length = "one character" if self.most == 1 else f"1 to {self.most} characters"
            self.fail(f"{value!r} is not {length}, nor {' or '.join(self.words)}", param, ctx)
        return value


class Names(click.ParamType):
    """`a,b,c`."""

    name = "name,name,..."

    def convert(self, value, param, ctx) -> tuple[str, ...]:
        """The names."""
        if isinstance(value, tuple):
            return value
        names = tuple(name.strip() for name in value.split(","))
        if not all(names):
            self.fail(f"{value!r} is not of the form NAME,NAME,...", param, ctx)
        return names


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


@convert.command(
    "csv",
    epilog="""\b
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
)
@click.argument("name")
@click.option(
    "--interactions",
    type=Domain(needed=False),
    multiple=True,
    help="Table of user_id, item_id, timestamp and maybe rating, domain and split; or a line a "
    "user: user, then its items, or item|time. May be repeated.",
)
@click.option(
    "--train",
    type=Domain(needed=False),
    multiple=True,
    help="As --interactions, of a given split, which becomes a column `split`. May be repeated.",
)
@click.option("--valid", type=Domain(needed=False), multiple=True, help="The same, of validation.")
@click.option("--test", type=Domain(needed=False), multiple=True, help="The same, of test.")
@click.option(
    "--items",
    type=Domain(needed=False),
    multiple=True,
    help="Table of item_id, domain and maybe title, category, brand, price, ... May be repeated.",
)
@click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="OURS=THEIRS",
    help="Name of a column where it is none of the usual ones. May be repeated.",
)
@click.option(
    "--columns",
    "header",
    type=Names(),
    help="Columns of interactions without a header, in their order, e.g. "
    "user_id,item_id,rating,timestamp; _ for one of no use.",
)
@click.option(
    "--item_columns", "item_header", type=Names(), help="The same, of items without a header."
)
@click.option(
    "--delimiter",
    type=Character({"tab": "\t", "space": " "}, most=4),
    help="Between the cells of a text table: up to 4 characters, tab or space.  [default: a comma "
    "in .csv, a tab in .tsv, else as the first lines tell]",
)
@click.option(
    "--quote",
    type=Character({"none": ""}),
    help="Around a cell that holds the delimiter or a line break: a character, or none.  "
    "[default: a double quote; none, if the delimiter has several characters]",
)
@click.option(
    "--sequences/--no-sequences",
    default=None,
    help="Whether a line of interactions holds all items of a user.  [default: as they tell]",
)
@click.option(
    "--order",
    type=click.Choice(["time", "file"]),
    help="What orders a user's events.  [default: time; file, if no column can be of times]",
)
@click.option(
    "--time_format",
    help="Form of the times, as of strptime, e.g. '%d/%m/%Y %H:%M'.  [default: numbers, and dates "
    "that can be read in one way only]",
)
@click.option(
    "--user_ids",
    type=click.Choice(["shared", "own"]),
    help="Whether one id in two files of interactions is one user, or each file counts its own: "
    "then its name goes before them.  [default: shared, but an error where that is in doubt]",
)
@conversion_options
@one_line_errors
def convert_csv(
    name: str, interactions, items, columns, header, item_header, user_ids, how: dict, **options
) -> None:
    """Dataset NAME from plain tables."""
    from dataset_tools.convert.sources.tables import Tables, read

    given = {}
    for text in columns:
        ours, equals, theirs = text.partition("=")
        if not (equals and theirs):
            raise ConfigError(f"--column {text}: not of the form OURS=THEIRS")
        given[ours] = theirs
    splits = {split: options.pop(split) for split in ("train", "valid", "test")}
    headers = {"interactions": header, "items": item_header}
    tables = Tables(
        interactions,
        items,
        splits,
        given,
        {role: names for role, names in headers.items() if names},
        own_users=None if user_ids is None else user_ids == "own",
        **options,
    )
    parts = (file for files in splits.values() for file in files)
    files = [path.name for _, path in [*interactions, *parts, *items]]
    run(
        name, how, lambda engine, broken: read(engine, tables, broken), "tables " + ", ".join(files)
    )


@convert.command(
    "amazon",
    epilog="""\b
Examples:
  python -m dataset_tools convert amazon food-kitchen \\
      food=reviews_Grocery_and_Gourmet_Food.json.gz kitchen=reviews_Home_and_Kitchen.json.gz \\
      --metadata food=meta_Grocery_and_Gourmet_Food.json.gz \\
      --metadata kitchen=meta_Home_and_Kitchen.json.gz --user_core 5 --item_core 5
  python -m dataset_tools convert amazon elec-phone elec=Electronics.jsonl.gz \\
      phone=Cell_Phones_and_Accessories.jsonl.gz --after 2018-01-01 --before 2020-01-01""",
)
@click.argument("name")
@click.argument("reviews", nargs=-1, required=True, type=Domain(needed=True))
@click.option(
    "--metadata",
    multiple=True,
    type=Domain(needed=True),
    help="Metadata of a domain's items: DOMAIN=FILE. May be repeated.",
)
@conversion_options
@one_line_errors
def convert_amazon(name: str, reviews, metadata, how: dict) -> None:
    """Dataset NAME from Amazon reviews, DOMAIN=FILE for each of two or more categories."""
    from dataset_tools.convert.sources.amazon import read

    source = "Amazon reviews " + ", ".join(path.name for _, path in reviews)
    catalogue = how["items_without_events"] == "keep" and how["item_core"] <= 1
    run(
        name,
        how,
        lambda engine, broken: read(engine, reviews, metadata, broken, catalogue),
        source,
    )


@convert.command(
    "douban",
    epilog="""\b
Examples:
  python -m dataset_tools convert douban book-movie ./douban --domain book --domain movie""",
)
@click.argument("name")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--domain",
    "domains",
    multiple=True,
    type=click.Choice(["book", "movie", "music"]),
    help="Two or three of them.  [default: all]",
)
@conversion_options
@one_line_errors
def convert_douban(name: str, folder: Path, domains, how: dict) -> None:
    """Dataset NAME from FOLDER with bookreviews_cleaned.txt and the like."""
    from dataset_tools.convert.sources.douban import KINDS, read

    chosen = tuple(dict.fromkeys(domains)) or tuple(KINDS)
    source = f"Douban reviews of {', '.join(chosen)}"
    run(name, how, lambda engine, broken: read(engine, folder, chosen, broken), source)


@convert.command(
    "movielens",
    epilog="""\b
Examples:
  python -m dataset_tools convert movielens ml-1m-genre ml-1m.zip
  python -m dataset_tools convert movielens ml-32m-genre ./ml-32m --min_rating 4 --user_core 5""",
)
@click.argument("name")
@click.argument("place", type=click.Path(exists=True, path_type=Path))
@conversion_options
@one_line_errors
def convert_movielens(name: str, place: Path, how: dict) -> None:
    """Dataset NAME from PLACE, the folder or zip of a MovieLens release.

    Domains are thrill and heart, by the majority of a film's genres.
    """
    from dataset_tools.convert.sources.movielens import read

    run(
        name,
        how,
        lambda engine, broken: read(engine, place, broken),
        f"MovieLens, {place.resolve().name}",
    )


@convert.command(
    "recbole",
    epilog="""\b
Examples:
  python -m dataset_tools convert recbole book-film book=./dataset/books film=./dataset/films""",
)
@click.argument("name")
@click.argument("folders", nargs=-1, required=True, type=Domain(needed=True))
@conversion_options
@one_line_errors
def convert_recbole(name: str, folders, how: dict) -> None:
    """Dataset NAME from DOMAIN=FOLDER of two or more atomic datasets, FOLDER/FOLDER.inter."""
    from dataset_tools.convert.sources.recbole import read

    source = "atomic datasets " + ", ".join(path.name for _, path in folders)
    run(name, how, lambda engine, broken: read(engine, folders, broken), source)
