"""What a file of answers says besides the answers: faults, and what its writer is about to ask.

Table `session` names the writer's latest beginning to ask, `faults` the requests that got no usable
answer since then. `lasting` holds the faults that would come again, until they are forgotten.
`asked` holds a digest of each list of questions of the process that writes the file, by which
shards see that they do not ask the same.
"""

import sqlite3
from collections.abc import Iterable

from dataset_tools.llm.answer_file import CHUNK, as_text, has_table


def begin_session(connection: sqlite3.Connection, name: str) -> None:
    """Begin to ask: the faults of the last time are no longer those of this one."""
    connection.execute("DELETE FROM session")
    connection.execute("DELETE FROM faults")
    connection.execute("INSERT INTO session VALUES (?)", (name,))


def begin_process(connection: sqlite3.Connection, retry_failed: bool) -> None:
    """A process has opened the file to write it: nothing is asked yet."""
    for table in ("asked", "lasting") if retry_failed else ("asked",):
        # Not where there is nothing to remove: a full disk can be read from, and not written.
        if connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]:
            connection.execute(f"DELETE FROM {table}")


def session_and_faults(connection: sqlite3.Connection) -> tuple[str | None, dict[str, str]]:
    """The latest session, and the reasons of all faults by key, the lasting ones too."""
    # One query sees one moment; max() gives a row also where there is no session yet.
    query = "SELECT id, key, reason FROM (SELECT max(id) AS id FROM session) LEFT JOIN faults"
    rows = connection.execute(query).fetchall()
    session = rows[0][0]
    if has_table(connection, "lasting"):
        rows += connection.execute("SELECT NULL, key, reason FROM lasting")
    faults = {as_text(key): as_text(reason) for _, key, reason in rows if key is not None}
    return (None if session is None else as_text(session)), faults


def select_lasting(connection: sqlite3.Connection, keys: Iterable[str]) -> dict[str, str]:
    """Reasons of those of `keys` that have a lasting fault."""
    keys, found = list(keys), {}
    for start in range(0, len(keys) if has_table(connection, "lasting") else 0, CHUNK):
        chunk = keys[start : start + CHUNK]
        marks = ",".join("?" * len(chunk))
        query = f"SELECT key, reason FROM lasting WHERE key IN ({marks})"
        found |= {as_text(key): as_text(why) for key, why in connection.execute(query, chunk)}
    return found


def write_asked(connection: sqlite3.Connection, place: str, digest: str) -> None:
    """Say that the questions of `digest` are asked at `place`."""
    connection.execute("INSERT OR REPLACE INTO asked VALUES (?,?)", (place, digest))


def read_asked(connection: sqlite3.Connection) -> dict[str, str]:
    """Digest by place; empty for a file of an older version."""
    if not has_table(connection, "asked"):
        return {}
    rows = connection.execute("SELECT place, digest FROM asked")
    return {as_text(place): as_text(digest) for place, digest in rows}
