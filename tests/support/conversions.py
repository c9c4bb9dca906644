"""`python -m dataset_tools convert` in this process, and what it wrote."""

import yaml
from click.testing import CliRunner

from dataset_tools.cli import main
from recbole_tema.data.atomic import read_table


def run(folder, source, *words, name="shop"):
    """Run a conversion to FOLDER/out/NAME; click's result, whose exception is no fault of ours."""
    words = ("convert", source, name, *words, "--data_path", folder / "out", "--threads", 1)
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def written(folder, suffix, name="shop"):
    """What the last conversion wrote: a table, or the card as a dict."""
    path = folder / "out" / name / f"{name}.{suffix}"
    return yaml.safe_load(path.read_text()) if suffix == "yaml" else read_table(path)
