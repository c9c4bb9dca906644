"""`build NAME`: a built-in dataset."""

from pathlib import Path

import click

from dataset_tools.cli.options import data_path_option, one_line_errors
from recbole_tema.paths import default_data_path


@click.command(
    epilog="""\b
Examples:
  python -m dataset_tools build ml-100k-genre
  python -m dataset_tools build ml-100k-genre --data_path ./dataset --force"""
)
@click.argument("name")
@data_path_option
@click.option("--force", is_flag=True, help="Build again even if it is there and current.")
@one_line_errors
def build(name: str, data_path: Path | None, force: bool) -> None:
    """Build the built-in dataset NAME (ml-100k-genre) into DATA_PATH/NAME."""
    from dataset_tools.builtin.datasets import ensure_builtin

    click.echo(ensure_builtin(name, data_path or default_data_path(), force))
