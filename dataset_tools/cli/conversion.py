"""What all sources of `convert` share: filters, presets, options of the output, and the run."""

import difflib
import functools
import math
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dataset_tools.cli.options import (
    Parsed,
    data_path_option,
    names_of,
    one_line_errors,
    options_of,
    with_options,
)
from dataset_tools.convert.filters import Filters
from dataset_tools.options import ConversionOptions
from recbole_tema.config.files import CONVERT_KEY, load_yaml, properties_dir
from recbole_tema.errors import ConfigError
from recbole_tema.paths import default_data_path

if TYPE_CHECKING:
    from dataset_tools.convert.run import Converted


def seconds(text: str) -> float:
    """Seconds since 1970 of a date, `2018-01-31`, with a time if need be, in UTC; or of seconds.

    Raises:
        ValueError: it is neither, or can be both.
    """
    if re.fullmatch(r"(19|20)\d\d(\d{4})?", text):
        raise ValueError(f"{text!r} can be a date or seconds; write 2018-01-31, or {text}.0")
    with suppress(ValueError):  # else no number, but a date
        if math.isfinite(number := float(text)):
            return number
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is no date such as 2018-01-31, and no seconds") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def single_domain(text: str) -> str | int:
    """As `Filters.single_domain`."""
    if text in ("keep", "drop"):
        return text
    if text.isdecimal():
        return int(text)
    raise ValueError(f"{text!r} is neither keep nor drop nor a number of users")


def gap(text: str) -> float:
    """As `Filters.dedupe`: seconds, or `all`."""
    try:
        found = math.inf if text == "all" else float(text)
    except ValueError:
        found = -1.0
    if not found >= 0:
        raise ValueError(f"{text!r} is neither all nor a number of seconds")
    return found


def use_preset(ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
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
        found = load_yaml(path).get(CONVERT_KEY)
    except ConfigError as error:
        raise click.BadParameter(str(error)) from None
    if not isinstance(found, dict):
        raise click.BadParameter(f"{path}: no key '{CONVERT_KEY}' with filters in it")
    names = [field.name for field in fields(Filters)]
    for name in found:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0)[0]
            raise click.BadParameter(f"{path}: '{name}' is no filter; nearest: '{near}'")
    ctx.default_map = {**(ctx.default_map or {}), **found}


def presets() -> dict[str, Path]:
    """name -> file of properties/dataset that has filters of `convert`."""
    files = sorted((properties_dir() / "dataset").glob("*.yaml"))
    return {path.stem: path for path in files if CONVERT_KEY in load_yaml(path)}


PRESET_OPTION = click.option(
    "--preset",
    is_eager=True,
    expose_value=False,
    callback=use_preset,
    metavar="NAME|FILE",
    help="Filters of properties/dataset/NAME.yaml, or of a file of yours with a key `convert`: "
    + ", ".join(presets()),
)
FILTER_OPTIONS = options_of(
    Filters,
    after=Parsed("date", seconds),
    before=Parsed("date", seconds),
    dedupe=Parsed("seconds|all", gap),
    single_domain=Parsed("keep|drop|n", single_domain),
)
FORCE_OPTION = click.option("--force", is_flag=True, help="Replace a dataset of this name.")
OPTIONS = [*FILTER_OPTIONS, data_path_option, FORCE_OPTION, *options_of(ConversionOptions)]


def source(name: str, epilog: str, *arguments: Callable) -> Callable:
    """Make the command `convert NAME` of a function of the `arguments`, and of the dict `how` of
    all other options, that gives the source's reader and the card's word on it."""

    def command_of(opened: Callable) -> click.Command:
        def command(name: str, **values: Any) -> None:
            how = {option: values.pop(option) for option in names_of(OPTIONS)}
            try:
                done = _converted(name, how, *opened(how, **values))
            except KeyboardInterrupt as stop:
                raise KeyboardInterrupt(str(stop) or "nothing was written") from None
            _tell(done)

        command = one_line_errors(functools.update_wrapper(command, opened))
        command = with_options(command, (click.argument("name"), *arguments, *OPTIONS))
        return click.command(name, epilog=epilog)(PRESET_OPTION(command))

    return command_of


def _converted(name: str, how: dict, read: Callable, source: str) -> "Converted":
    from dataset_tools.convert.run import Conversion, convert

    def chosen(kind: type) -> dict:
        return {field.name: how[field.name] for field in fields(kind)}

    folder = Path(how["data_path"] or default_data_path()).expanduser() / name
    conversion = Conversion(read, source, Filters(**chosen(Filters)), **chosen(ConversionOptions))
    return convert(conversion, folder, name, how["force"])


def _tell(done: "Converted") -> None:
    counts = done.counts
    for domain, found in counts["domains"].items():
        click.echo(
            f"{domain}: {found['users']:,} users, {_items(found)}, {found['events']:,} events"
        )
    prices = sum(found.get("price", 0) for found in done.broken.cells.values())
    click.echo(
        f"{done.folder}: {counts['users']:,} users ({counts['overlapping_users']:,} in several "
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
