"""Sequences: all items of a user in one line, or in the cells of one row."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path

from dataset_tools.convert.broken import SHOWN
from dataset_tools.convert.engine import Engine, identifier, quoted
from dataset_tools.convert.lines import REJECTS, note_rejects, text_lines
from recbole_tema.errors import DataError

log = logging.getLogger(__name__)

BETWEEN = r"\s,"  # what separates the items of a list
AROUND = r"""[\[\](){}'"]"""  # what stands around a list, or an item of one


def read_sequences(
    engine: Engine, path: Path, table: str, delimiter: str | None, marked: bool
) -> list[str]:
    """Make `table` (_number, _good, user_id, item_id, and timestamp if `marked`) of lines `user
    item item ...`, with blanks, tabs, commas or `delimiter` between; the names of its columns.

    Where items are `item|time`, a number between the user and the first item, the length, is left
    out; any other cell without a time is an item without a time. An event of one user, item and
    time that stands in several lines (in `item|time item|time`, a line for each target) counts
    once.
    """
    with engine.reading(path) as text:
        engine.number("texts", f"SELECT line FROM {text_lines(text.sql, REJECTS)}", "line NOT NULL")
    note_rejects(engine, path, "texts", text.tally.lines, text.tally.lines, False)
    between = f"[{BETWEEN}{re.escape(delimiter) if delimiter else ''}]+"
    cells = "cells[2:]"
    if marked:
        length = f"regexp_full_match({cells}[1], '[0-9]+')"
        cells = f"if({length}, {cells}[2:], {cells})"
        # Of a line without any time nothing tells what its cells are.
        cells = f"if(contains(array_to_string({cells}, ' '), '|'), {cells}, [])"
    engine.do(
        f"CREATE OR REPLACE TABLE cut AS SELECT _number, cells[1] AS user, {cells} AS cells "
        "FROM (SELECT _number, list_filter(regexp_split_to_array(line, "
        f"{quoted(between)}), lambda x: x != '') AS cells FROM texts)"
    )
    engine.drop("texts")
    count, first = engine.rows(
        f"SELECT count(*), min(_number, {SHOWN}) FROM cut WHERE coalesce(len(cells), 0) = 0"
    )[0]
    engine.broken.add(path, "no item", count, first)
    engine.broken.judge(path, engine.value("SELECT count(*) FROM cut") - count)
    engine.number(
        table,
        "SELECT true AS _good, _number AS line, user AS user_id, unnest(cells) AS cell FROM cut",
    )
    columns = {"user_id": "user_id", "item_id": "cell"}
    if marked:
        columns |= {
            "item_id": "split_part(cell, '|', 1)",
            "timestamp": "nullif(split_part(cell, '|', 2), '')",
        }
    _tell_repeats(engine, path, table, marked)
    engine.drop("cut")
    engine.see(table, columns)
    return list(columns)


def _tell_repeats(engine: Engine, path: Path, table: str, marked: bool) -> None:
    """Say so where a user has several lines, and count an event of one time in them once."""
    several = engine.value(
        "SELECT count(*) FROM (SELECT user FROM cut GROUP BY user HAVING count(*) > 1)"
    )
    if not several:
        return
    if not marked:
        log.warning(
            "%s: %s users have several lines: taken one after another, in the order of the file",
            *(path, f"{several:,}"),
        )
        return
    before = engine.value(f"SELECT count(*) FROM {table}")
    engine.do(
        "CREATE TABLE once AS SELECT _good, line, user_id, cell FROM (SELECT *, row_number() OVER "
        "(PARTITION BY line, user_id, cell ORDER BY _number) AS nth "
        f"FROM {table}) QUALIFY row_number() OVER (PARTITION BY user_id, cell, nth "
        "ORDER BY _number) = 1 ORDER BY _number"
    )
    engine.number(table, "FROM once")
    engine.drop("once")
    left = before - engine.value(f"SELECT count(*) FROM {table}")
    log.info(
        "%s: %s users have several lines; an event of one item and time counts once (%s left out)",
        *(path, f"{several:,}", f"{left:,}"),
    )


def expand(
    engine: Engine,
    path: Path,
    table: str,
    columns: Mapping[str, str | None],
    wanted: bool | None,
    plural: bool = False,
) -> dict[str, str] | None:
    """Give each item of a list in `columns["item_id"]` a row of its own, with its part of other
    lists of that length; SQL of the columns then. None where the cells are no lists.

    Args:
        columns: Column of ours -> SQL of a text; None where the file has none.
        wanted: Whether they are lists; None: if times or domains beside them are, as long.
        plural: Whether the column's name says so, of which a cell may yet be one item.

    Raises:
        DataError: ids with commas or blanks, which leave a doubt, or too many rows are broken.
    """
    if wanted is False:
        return None
    there = {ours: sql for ours, sql in columns.items() if sql}
    lists = {
        ours: "list_filter(regexp_split_to_array(regexp_replace("
        f"coalesce({sql}, ''), {quoted(AROUND)}, '', 'g'), '[{BETWEEN}]+'), lambda x: x != '')"
        for ours, sql in there.items()
        if ours != "user_id"
    }
    # A list of one item has its brackets still.
    parted = f"regexp_matches(trim({there['item_id']}), '[{BETWEEN}]{'|^[[]' if plural else ''}')"
    total, several, example = engine.rows(
        f"SELECT count(*), count(*) FILTER ({parted}), arg_min({there['item_id']}, _number) "
        f"FILTER ({parted}) FROM {table}"
    )[0]
    if not several and not wanted:
        return None
    fits = {
        ours: engine.value(
            f"SELECT count(*) FROM {table} WHERE len({cells}) = len({lists['item_id']}) "
            f"AND len({cells}) > 1"
        )
        for ours, cells in lists.items()
    }
    beside = [ours for ours in ("timestamp", "domain", "rating") if 2 * fits.get(ours, 0) > several]
    if not wanted and not beside and not plural:
        if 2 * several < total:
            log.warning(
                "%s: %s of %s item ids have commas or blanks, such as %r: taken for one item each; "
                "if they are lists of items add --sequences",
                *(path, f"{several:,}", f"{total:,}", example[:60]),
            )
            return None
        raise DataError(
            f"{path}: item ids with commas or blanks, such as {example[:60]!r}; if they are lists "
            "of items add --sequences, else --no-sequences"
        )
    split = [ours for ours in lists if ours == "item_id" or ours in beside]
    log.info("%s: rows are taken for sequences: lists of %s", path, ", ".join(split))
    uneven = " OR ".join(f"len({lists[ours]}) != len({lists['item_id']})" for ours in split[1:])
    sound = (
        f"coalesce(_good AND len({lists['item_id']}) > 0{uneven and f' AND NOT ({uneven})'}, false)"
    )
    fault = f"CASE WHEN NOT _good THEN 'no JSON object' WHEN len({lists['item_id']}) = 0 "
    fault += "THEN 'no item' ELSE 'lists of different lengths' END"
    for reason, count, first in engine.rows(
        f"SELECT {fault} AS fault, count(*), min(_number, {SHOWN}) FROM {table} "
        f"WHERE NOT {sound} GROUP BY fault ORDER BY fault"
    ):
        engine.broken.add(path, reason, count, first, "row")
    engine.broken.judge(path, engine.value(f"SELECT count(*) FROM {table} WHERE {sound}"))
    shown = [f"unnest({lists[ours]}) AS {identifier(ours)}" for ours in split]
    shown += [f"{sql} AS {identifier(ours)}" for ours, sql in there.items() if ours not in split]
    engine.number("expanded", f"SELECT _good, {', '.join(shown)} FROM {table} WHERE {sound}")
    engine.drop(table)
    engine.do(f"ALTER TABLE expanded_rows RENAME TO {table}_rows; DROP VIEW expanded")
    engine.see(table, {ours: identifier(ours) for ours in there})
    return {ours: f"{identifier(ours)}::VARCHAR" for ours in there}
