"""The database that a conversion runs in: DuckDB, within a limit of memory, spilling to the disk.

Everything between reading a raw file and writing an atomic file is SQL over its tables, so that no
loop of Python ever sees an event.
"""

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dataset_tools.convert.broken import Broken
from dataset_tools.convert.feed import HOW_TO_GET, Tally, fed
from recbole_tema.errors import DataError
from recbole_tema.library_errors import duckdb_interrupts

if TYPE_CHECKING:
    import duckdb

log = logging.getLogger(__name__)

MEMORY = re.compile(r"(?i)\s*([0-9]+(?:\.[0-9]+)?)\s*(K|M|G|T)i?B?\s*")
LEAST_MEMORY, MOST_MEMORY = 256 << 20, 1 << 50


def memory_bytes(text: str) -> int:
    """Bytes of a size such as `4GB`, `512MB` or `1.5GiB` (powers of 1024 all).

    Raises:
        DataError: `text` is no size, or less than DuckDB can work in.
    """
    found = MEMORY.fullmatch(text)
    if not found:
        raise DataError(f"memory '{text}' is no size; give one such as 4GB or 512MB")
    size = int(float(found[1]) * 1024 ** ("KMGT".index(found[2].upper()) + 1))
    if size < LEAST_MEMORY:
        raise DataError(f"memory '{text}' is too little to work in; give 256MB or more")
    if size > MOST_MEMORY:
        raise DataError(f"memory '{text}' is more than any machine has; give 1024TB or less")
    return size


def quoted(text: str | Path) -> str:
    """`text` as a literal of SQL."""
    return "'" + str(text).replace("'", "''") + "'"


def identifier(name: str) -> str:
    """A name as an identifier of SQL."""
    return '"' + name.replace('"', '""') + '"'


class Text(NamedTuple):
    """A text that DuckDB can read once.

    Attributes:
        sql: A literal of SQL for it.
        tally: Counts of its lines, when it has been read.
    """

    sql: str
    tally: Tally


class Engine:
    """A DuckDB connection and the folder of its temporary files.

    Attributes:
        folder: Temporary; what the database spills, and links and pipes of the raw files.
        broken: What is left out of the files that are read.
        sql: The connection.
    """

    def __init__(
        self, folder: Path, memory: int, threads: int | None = None, broken: Broken | None = None
    ) -> None:
        try:
            import duckdb
        except ImportError:
            raise DataError(f"duckdb is not installed: {HOW_TO_GET}") from None
        self.folder, self.broken = folder, broken or Broken()
        # In memory: tables that outgrow the limit are spilled, and the others cost no disk.
        self.sql = duckdb.connect(":memory:")
        # The limit covers DuckDB's own buffers; what it allocates beside them is some hundred MB.
        limit = max(LEAST_MEMORY // 2, int(memory * 0.8))
        settings = {
            "memory_limit": quoted(f"{limit >> 10}KiB"),
            "temp_directory": quoted(folder / "spill"),
            "threads": str(threads or os.cpu_count() or 1),
            "preserve_insertion_order": "true",  # the rows of a table have the order of the file
            "autoinstall_known_extensions": "false",  # nothing is fetched
            "enable_progress_bar": "false",
            "TimeZone": "'UTC'",  # of times without a zone, whatever the machine's is
        }
        for name, value in settings.items():
            self.sql.execute(f"SET {name} = {value}")
        self._places = 0

    def link(self, path: Path) -> str:
        """A literal of SQL for `path`, by a link whose name holds no wildcard.

        Raises:
            DataError: there is no such file.
        """
        place = self._place(path)
        place.symlink_to(path.resolve())
        return quoted(place)

    @contextmanager
    def reading(self, path: Path) -> Iterator[Text]:
        """The text of `path`, unpacked; to be read once, in the context.

        Raises:
            DataError: there is no such file, or it is cut short, damaged or UTF-16; at the end.
        """
        place = self._place(path)
        with fed(path, place) as tally, naming_file(path):
            yield Text(quoted(place), tally)

    def _place(self, path: Path) -> Path:
        if not path.is_file():
            what = "is no regular file" if path.exists() else "no such file"
            raise DataError(f"{path}: {what}")
        self._places += 1
        return self.folder / f"file{self._places}"

    def rows(self, query: str) -> list[tuple]:
        """All rows of a query whose result is small."""
        cursor = self.run(query)
        with duckdb_interrupts(self.sql):
            return cursor.fetchall()

    def value(self, query: str) -> Any:
        """The one value of a query."""
        return self.rows(query)[0][0]

    def do(self, query: str) -> None:
        """Run a statement."""
        self.run(query)

    def run(self, query: str) -> "duckdb.DuckDBPyConnection":
        """Run a statement; DuckDB's cursor of its result."""
        with duckdb_interrupts(self.sql):
            return self.sql.execute(query)

    def number(self, table: str, query: str, condition: str = "true") -> None:
        """Make `table` of the rows of a query under a condition, with `_number`, from 1, their
        places in the query before the condition.

        A window function would count them too, but in one thread and three times as long.
        """
        self.drop(table)
        self.do(
            f"CREATE TABLE {table}_rows AS {query};"
            f"CREATE VIEW {table} AS SELECT rowid + 1 AS _number, * FROM {table}_rows "
            f"WHERE {condition}"
        )

    def see(self, table: str, columns: Mapping[str, str]) -> None:
        """Have a numbered table with `_good` show but these columns (new name -> old one)."""
        shown = ["rowid + 1 AS _number", "_good"]
        shown += [f"{old} AS {identifier(new)}" for new, old in columns.items()]
        self.do(
            f"CREATE OR REPLACE VIEW {table} AS SELECT {', '.join(shown)} FROM {table}_rows "
            "WHERE _good IS NOT NULL"
        )

    def drop(self, *names: str) -> None:
        """Drop tables, numbered or not, that are there."""
        for name in names:
            for (kind,) in self.rows(
                f"SELECT table_type FROM information_schema.tables WHERE table_name = '{name}'"
            ):
                self.do(f"DROP {'VIEW' if kind == 'VIEW' else 'TABLE'} {name}")
            self.do(f"DROP TABLE IF EXISTS {name}_rows")


@contextmanager
def engine(
    folder: Path, memory: str = "4GB", threads: int | None = None, broken: Broken | None = None
) -> Iterator[Engine]:
    """An engine whose database is in `folder`, an existing empty one; closed at the end.

    Raises:
        DataError: DuckDB is missing, the memory is no size, or too little for what is asked.
    """
    made = Engine(folder, memory_bytes(memory), threads, broken)
    import duckdb

    try:
        yield made
    except duckdb.OutOfMemoryException as error:
        first = str(error).splitlines()[0]
        raise DataError(
            f"--memory {memory} is too little for this data, or the disk of {folder} has no room "
            f"for what goes beyond it: {first}"
        ) from error
    except duckdb.IOException as error:
        first = str(error).splitlines()[0]
        raise DataError(f"{first}; check rights and space") from error
    finally:
        made.sql.close()


@contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """Say in one line, with the file's name, what DuckDB could not read there."""
    import duckdb

    try:
        yield
    except duckdb.OutOfMemoryException:
        raise
    except duckdb.Error as error:
        text = re.sub(r"\S*/file[0-9]+", path.name, str(error).strip().splitlines()[0])
        raise DataError(f"{path}: {text}; check the file") from None
