"""The report of a benchmark: one HTML page that needs nothing from elsewhere."""

import json
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from markupsafe import Markup

from recbole_tema.benchmark.figures import NARROW, WIDE, titles
from recbole_tema.benchmark.results import Results
from recbole_tema.benchmark.tables import grid, mark, note
from recbole_tema.pages import rendered

TEMPLATE = Path(__file__).with_name("report.html")


def page(
    results: Results,
    svgs: dict[tuple[str, float], str],
    statement: dict,
    facts: list[str],
    asked: pd.DataFrame,
) -> str:
    """The page as text.

    Args:
        svgs: The figures (`figures.drawn`). asked: The summary's lines of the metrics asked for.
        statement: What the folder belongs to (`spec.stated`). facts: Sentences for its head.
    """
    slices, metrics, models, cells = grid(asked)
    labels = {row.label for row in results.rows}
    return rendered(
        TEMPLATE,
        title=f"Benchmark on {results.dataset}",
        facts=facts,
        slices=slices,
        metrics=metrics,
        models=models,
        cells=cells,
        mark=lambda cell: mark(cell, results.reference),
        note=note(asked, results.reference),
        figures=[
            (title, Markup(svgs[key, WIDE]), Markup(svgs[key, NARROW]))
            for key, title in titles(results).items()
        ],
        runs=_runs(results),
        configurations=[
            (label, entry["model"], json.dumps(entry["keys"], indent=1))
            for label, entry in statement["entries"].items()
            if label in labels
        ],
    )


def _runs(results: Results) -> Iterator[list[str]]:
    for row in results.rows:
        for (seed, domain), record in sorted(row.records.items()):
            curve = row.curves[seed, domain]
            versions = {"python": record["python"], **record["versions"]}
            yield [
                row.label + (f" to {domain}" if domain else ""),
                str(seed),
                str(len(curve)),
                f"{curve[-1]['seconds']:.0f}" if curve else "",
                record["device"],
                str(record["threads"]),
                record["date"],
                record["machine"],
                ", ".join(f"{name} {number}" for name, number in versions.items()),
            ]
