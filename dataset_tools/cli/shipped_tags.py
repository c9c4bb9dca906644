"""`python -m dataset_tools.cli.shipped_tags`: keep the tags of a built-in dataset here."""

from pathlib import Path

import click

from dataset_tools.builtin.shipped_tags import keep
from dataset_tools.cli.options import data_path_option, one_line_errors, open_dataset


@click.command()
@click.argument("name")
@data_path_option
@one_line_errors
def main(name: str, data_path: Path | None) -> None:
    """Keep the tags of dataset NAME in this checkout."""
    folder = Path(__file__).parents[1] / "shipped" / name
    keep(open_dataset(name, data_path), folder)
    click.echo(folder)


if __name__ == "__main__":
    main(prog_name="python -m dataset_tools.cli.shipped_tags")
