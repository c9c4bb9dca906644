"""`convert SOURCE NAME ...`: raw data become a dataset of atomic files."""

import difflib
import math
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import click

from dataset_tools.cli.options import (
    data_path_option,
    gathered,
    one_line_errors,
    option_names,
)
from recbole_tema.config_files import PRESET_KEY, load_yaml, properties_dir
from recbole_tema.errors import ConfigError
from recbole_tema.paths import default_data_path


class Time(click.ParamType):
    """A date, `2018-01-31`, with a time if need be, in UTC; or seconds."""

    name = "date"

    def convert(self, value, param, ctx) -> float:
        """Seconds since 1970."""
        if isinstance(value, int | float):
            return float(value)
        try:
            return float(value)
        except ValueError:
            pass
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is no date such as 2018-01-31, and no seconds", param, ctx)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=timezone.utc)
        return moment.timestamp()


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


class SingleDomain(click.ParamType):
    """`keep`, `drop` or a number."""

    name = "keep|drop|n"

    def convert(self, value, param, ctx) -> str | int:
        """As `Filters.single_domain`."""
        if isinstance(value, int) or value in ("keep", "drop"):
            return value
        if value.isdecimal():
            return int(value)
        self.fail(f"{value!r} is neither keep nor drop nor a number of users", param, ctx)


class Gap(click.ParamType):
    """Seconds, or `all`."""

    name = "seconds|all"

    def convert(self, value, param, ctx) -> float:
        """As `Filters.dedupe`."""
        if value == "all":
            return math.inf
        try:
            seconds = float(value)
        except ValueError:
            seconds = -1.0
        if not seconds >= 0:
            self.fail(f"{value!r} is neither all nor a number of seconds", param, ctx)
        return seconds


def numbers(name: str, text: str) -> Callable:
    """An option that is a whole number from 1."""
    return click.option(name, type=click.IntRange(1), default=1, show_default=True, help=text)


def use_preset(ctx: click.Context, _param, value: str | None) -> None:
    """Make the filters of a preset the defaults of the command; its options still count more.

    Raises:
        ConfigError: there is no such preset, or it sets what is no filter.
    """
    if value is None:
        return
    known = presets()
    path = known.get(value) or Path(value)
    if not path.is_file():
        raise click.BadParameter(f"no preset and no file '{value}'; presets: {', '.join(known)}")
    found = load_yaml(path).get(PRESET_KEY)
    if not isinstance(found, dict):
        raise click.BadParameter(f"{path}: no key '{PRESET_KEY}' with filters in it")
    names = option_names(FILTER_OPTIONS)
    for name in found:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0)[0]
            raise click.BadParameter(f"{path}: '{name}' is no filter; nearest: '{near}'")
    ctx.default_map = {**(ctx.default_map or {}), **found}


def presets() -> dict[str, Path]:
    """name -> file of properties/dataset that has filters of `convert`."""
    files = sorted((properties_dir() / "dataset").glob("*.yaml"))
    return {path.stem: path for path in files if PRESET_KEY in load_yaml(path)}


PRESET_OPTION = click.option(
    "--preset",
    is_eager=True,
    expose_value=False,
    callback=use_preset,
    metavar="NAME|FILE",
    help="Filters of properties/dataset/NAME.yaml, or of a file of yours with a key `convert`: "
    + ", ".join(presets()),
)
FILTER_OPTIONS = [
    click.option("--min_rating", type=float, help="Only events of this rating or more."),
    click.option("--after", type=Time(), help="Only events at this time or later (UTC)."),
    click.option("--before", type=Time(), help="Only events earlier than this time (UTC)."),
    click.option(
        "--dedupe",
        type=Gap(),
        help="Of a user's events with one item, drop those so soon after the one before.",
    ),
    click.option(
        "--single_domain",
        type=SingleDomain(),
        default="keep",
        show_default=True,
        help="Users of one domain: keep, drop, or at most so many of each domain.",
    ),
    click.option(
        "--overlap_ratio",
        type=click.FloatRange(0, 1),
        default=1.0,
        show_default=True,
        help="Share of the users of several domains that keep them all; others keep their largest.",
    ),
    click.option("--max_users", type=click.IntRange(1), help="At most so many users, by a sample."),
    numbers("--user_core", "Least events of a user, to the fixpoint with the other cores."),
    numbers("--domain_core", "Least events of a user in a domain."),
    numbers("--item_core", "Least events of an item."),
    click.option("--seed", type=int, default=2020, show_default=True, help="Of the samples."),
]
OUTPUT_OPTIONS = [
    data_path_option,
    click.option("--force", is_flag=True, help="Replace a dataset of this name."),
    click.option("--strict", is_flag=True, help="Stop at a broken line instead of leaving it out."),
    click.option(
        "--item_prefix",
        type=click.Choice(["auto", "always", "never"]),
        default="auto",
        show_default=True,
        help="Put the domain before item ids; auto: if an id stands in two domains.",
    ),
    click.option(
        "--recbole_cdr",
        is_flag=True,
        help="Also write each domain by itself, NAME-DOMAIN, and a configuration for RecBole-CDR.",
    ),
    click.option(
        "--memory", default="4GB", show_default=True, help="Limit; beyond it the disk is used."
    ),
    click.option("--threads", type=click.IntRange(1), help="Of the work.  [default: all cores]"),
]


def conversion_options(command: Callable) -> Callable:
    """Add the options of filters and output; the command gets them as the dict `how`."""
    return PRESET_OPTION(gathered(command, FILTER_OPTIONS + OUTPUT_OPTIONS, "how"))


def run(name: str, how: dict, read: Callable, source: str) -> None:
    """Convert, and say what came of it."""
    from dataset_tools.convert.filters import Filters
    from dataset_tools.convert.run import Conversion, convert

    filters = Filters(**{name: how[name] for name in option_names(FILTER_OPTIONS)})
    folder = Path(how["data_path"] or default_data_path()).expanduser() / name
    conversion = Conversion(
        read,
        source,
        filters,
        strict=how["strict"],
        item_prefix=how["item_prefix"],
        memory=how["memory"],
        threads=how["threads"],
        recbole_cdr=how["recbole_cdr"],
    )
    done = convert(conversion, folder, name, how["force"])
    counts = done.counts
    for domain, found in counts["domains"].items():
        click.echo(
            f"{domain}: {found['users']:,} users, {found['items']:,} items, "
            f"{found['events']:,} events"
        )
    click.echo(
        f"{folder}: {counts['users']:,} users ({counts['overlapping_users']:,} in several "
        f"domains), {counts['items']:,} items, {counts['events']:,} events"
        + (f"; {done.broken.total():,} lines left out" if done.broken.files else "")
    )
    for part in done.parts:
        click.echo(f"for RecBole-CDR: {part}")


@click.group()
def convert() -> None:
    """Make a cross-domain dataset of atomic files from raw data.

    \b
    csv        tables of interactions and items (CSV, TSV, JSON lines, Parquet; gzip, zstd)
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
      --column user_id=customer""",
)
@click.argument("name")
@click.option(
    "--interactions",
    type=Domain(needed=False),
    multiple=True,
    required=True,
    help="Table of user_id, item_id, timestamp and maybe rating and domain. May be repeated.",
)
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
@conversion_options
@one_line_errors
def convert_csv(name: str, interactions, items, columns, how: dict) -> None:
    """Dataset NAME from plain tables."""
    from dataset_tools.convert.tables import Tables, read

    given = {}
    for text in columns:
        ours, equals, theirs = text.partition("=")
        if not (equals and theirs):
            raise ConfigError(f"--column {text}: not of the form OURS=THEIRS")
        given[ours] = theirs
    tables = Tables(interactions, items, given)
    files = [path.name for _, path in [*interactions, *items]]
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
    from dataset_tools.convert.amazon import read

    source = "Amazon reviews " + ", ".join(path.name for _, path in reviews)
    run(name, how, lambda engine, broken: read(engine, reviews, metadata, broken), source)


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
    from dataset_tools.convert.douban import KINDS, read

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
    from dataset_tools.convert.movielens import read

    run(name, how, lambda engine, broken: read(engine, place, broken), f"MovieLens, {place.name}")


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
    from dataset_tools.convert.recbole import read

    source = "atomic datasets " + ", ".join(path.name for _, path in folders)
    run(name, how, lambda engine, broken: read(engine, folders, broken), source)
