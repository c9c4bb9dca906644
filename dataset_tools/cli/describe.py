"""`describe NAME`: what a dataset holds, and what is odd about it."""

import json
import tempfile
from pathlib import Path

import click

from dataset_tools.cli.options import data_path_option, dataset_folder, one_line_errors


@click.command(
    epilog="""\b
Examples:
  python -m dataset_tools describe ml-100k-genre
  python -m dataset_tools describe ml-100k-genre --split "{TO: [0.8, 0.1, 0.1]}"
  python -m dataset_tools describe food-kitchen --html food-kitchen.html --png food-kitchen.png"""
)
@click.argument("name")
@data_path_option
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write all numbers to this file; - prints them in place of the table.",
)
@click.option("--png", "png_file", type=click.Path(dir_okay=False, path_type=Path), help="Figure.")
@click.option(
    "--html",
    "html_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Page with tables, figure and checks, in one file.",
)
@click.option(
    "--split",
    help="How to split, as a run's eval_args.split: '{LS: per_domain}', '{TO: [0.8, 0.1, 0.1]}', "
    "'{given: split}'.  [default: {LS: valid_and_test}]",
)
@click.option("--memory", default="4GB", show_default=True, help="Limit of the work.")
@one_line_errors
def describe(
    name: str,
    data_path: Path | None,
    json_file: Path | None,
    png_file: Path | None,
    html_file: Path | None,
    split: str | None,
    memory: str,
) -> None:
    """Print users, items, events, overlap, split, coverage of dataset NAME, and check it.

    Exit code 1 if a check finds an error.
    """
    from dataset_tools.convert.engine import engine
    from dataset_tools.describe.checks import ERROR, findings
    from dataset_tools.describe.figure import png
    from dataset_tools.describe.measures import describe as measured
    from dataset_tools.describe.text import page, text
    from dataset_tools.options import split_rule
    from recbole_tema.data.atomic import replace_file
    from recbole_tema.errors import DataError

    folder = dataset_folder(name, data_path)
    if not folder.is_dir():
        root = folder.parent
        there = sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
        raise DataError(f"{folder}: no such dataset (there are: {', '.join(there) or 'none'})")
    with (
        tempfile.TemporaryDirectory(prefix="describe-") as work,
        engine(Path(work), memory) as database,
    ):
        rule = split_rule(split)
        found = measured(database, folder, name, rule)
        found.checks = findings(database, rule)
    plain = json.dumps(found.plain(), indent=1, ensure_ascii=False)
    printed = json_file is not None and str(json_file) == "-"
    click.echo(plain if printed else text(found))
    try:
        for path, content in ((None if printed else json_file, plain), (html_file, None)):
            if path is not None:
                with replace_file(path) as file:
                    file.write((content or page(found)).encode())
        if png_file is not None:
            png(found, png_file)
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be written: {error.strerror}") from None
    if any(finding["level"] == ERROR for finding in found.checks):
        raise SystemExit(1)
