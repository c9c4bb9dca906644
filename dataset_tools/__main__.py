"""`python -m dataset_tools`: build datasets of RecBole atomic files from the command line."""

import logging
import sys
from pathlib import Path

import click

from recbole_tema.errors import TemaError
from recbole_tema.paths import DATA_VARIABLE, default_data_path


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Make datasets of RecBole atomic files, with the features that TEMA and LLM4CDSR use."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)


@main.command(
    epilog="""\b
Examples:
  python -m dataset_tools build ml-100k-genre
  python -m dataset_tools build ml-100k-genre --data_path ./dataset --force"""
)
@click.argument("name")
@click.option(
    "--data_path",
    type=click.Path(file_okay=False, path_type=Path),
    help=f"Folder of all datasets.  [default: ${DATA_VARIABLE}, else the user's cache folder]",
)
@click.option("--force", is_flag=True, help="Build again even if it is there and current.")
def build(name: str, data_path: Path | None, force: bool) -> None:
    """Build the built-in dataset NAME (ml-100k-genre) into DATA_PATH/NAME."""
    from dataset_tools.builtin import ensure_builtin

    try:
        folder = ensure_builtin(name, data_path or default_data_path(), force)
    except TemaError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    click.echo(folder)


if __name__ == "__main__":
    main(prog_name="python -m dataset_tools")
