"""What of a benchmark's folder may be published, in a few files: `publish_results.py FROM TO`.

    TO/report.html, table.csv, table.md, table.tex, benchmark.json    as they are
    TO/runs.jsonl       a line a run: its record, and its validations as "curve"
    TO/ranks.parquet    a row a test target: domain, candidates, history, overlap, popularity, and
                        its rank from 1 in each run, a column a model and seed; no user, no item

FROM is a folder of results with all its runs finished, TO a new folder.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pandas as pd

KEPT = ("report.html", "table.csv", "table.md", "table.tex", "benchmark.json")
TARGET = ["domain", "candidates", "history", "overlap", "popularity"]


def records(folder: Path) -> Iterator[tuple[dict, pd.DataFrame]]:
    """The record of each run and its test targets, in the order in which all runs have them."""
    found = sorted([*folder.glob("runs/*/run.json"), *folder.glob("*/run.json")])
    if not found:
        raise SystemExit(f"error: {folder} has no finished run (runs/*/run.json)")
    for path in found:
        record = json.loads(path.read_text(encoding="utf-8"))
        curve = path.with_name("curve.jsonl").read_text(encoding="utf-8").splitlines()
        table = duckdb.read_parquet(str(path.with_name("test.parquet"))).df()
        if "user" in table:  # as the run has written it; what is published has that order already
            order = [name for name in ("user", "history", "domain", "item") if name in table]
            table = table.sort_values(order, ignore_index=True, kind="stable")
        column = f"{record['label']} {record['seed']}"
        if folder == path.parents[1]:  # runs that are told apart by their folders' names
            column = path.parent.name
        yield {"column": column, **record, "curve": [json.loads(line) for line in curve]}, table


def joined(runs: list[tuple[dict, pd.DataFrame]]) -> pd.DataFrame:
    """The targets of all runs, once, with the ranks of each run.

    Raises:
        SystemExit: runs have ranked different targets or candidates.
    """
    targets = max((table for _, table in runs), key=len)[TARGET]
    ranks: dict[str, pd.Series] = {}
    for record, table in runs:
        domain = record["target_domain"]
        rows = targets.index if domain is None else targets.index[targets["domain"] == domain]
        if not targets.loc[rows].reset_index(drop=True).equals(table[TARGET]):
            raise SystemExit(f"error: {record['column']} has ranked other targets or candidates")
        column = ranks.setdefault(record["column"], pd.Series(pd.NA, targets.index, "Int32"))
        column.loc[rows] = table["rank"].to_numpy()
    return targets.assign(**ranks)


def publish(source: Path, target: Path) -> None:
    """Write `target`, whole or not at all."""
    runs = list(records(source))
    table = joined(runs)
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for name in KEPT:
        if (source / name).is_file():
            shutil.copy(source / name, part / name)
    lines = [json.dumps(record, sort_keys=True) + "\n" for record, _ in runs]
    (part / "runs.jsonl").write_text("".join(lines), encoding="utf-8")
    with duckdb.connect() as database:
        database.from_df(table).write_parquet(str(part / "ranks.parquet"), compression="zstd")
    part.rename(target)
    print(f"{target}: {len(table):,} targets, {len(table.columns) - len(TARGET)} columns of ranks")


def main() -> None:
    """Read the arguments and publish."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    if arguments.target.exists():
        sys.exit(f"error: {arguments.target} is there already; name a new folder")
    publish(arguments.source, arguments.target)


if __name__ == "__main__":
    main()
