"""`merge NAME`: the answers that parts of a run have stored, into one file."""

from pathlib import Path

import click

from dataset_tools.cli.options import data_path_option, one_line_errors, open_dataset
from dataset_tools.options import STORE


@click.command(
    epilog="""\b
Examples:
  python -m dataset_tools merge shop
  python -m dataset_tools merge shop other-machine/part-2-of-4.sqlite"""
)
@click.argument("name")
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@data_path_option
@click.option(
    "--answers",
    type=click.Path(file_okay=False, path_type=Path),
    help=f"Folder where answers are kept.  [default: {STORE} in the dataset's folder]",
)
@one_line_errors
def merge(name: str, files: tuple[Path, ...], data_path: Path | None, answers: Path | None) -> None:
    """Take the answers of FILES into those of dataset NAME.

    FILES are what `--part` made, or any other files of answers, damaged ones too; without FILES,
    those of the parts in the folder of answers. The first answer to a question stays. It may be
    done again: nothing comes twice.
    """
    from dataset_tools.llm.answers import PARTS, AnswerStore
    from recbole_tema.errors import DataError

    folder = answers or open_dataset(name, data_path).folder / STORE
    found = files or sorted(folder.glob(PARTS))
    if not found:
        raise DataError(f"{folder}: holds no files of parts (part-1-of-2.sqlite); name them")
    with AnswerStore(folder, join=False) as store:
        for path in found:
            click.echo(f"{path}: {store.merge(path)}")
        click.echo(f"{store.path}: {store.n_answers:,} answers")
