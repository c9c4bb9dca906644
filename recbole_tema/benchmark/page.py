"""The report of a benchmark: one HTML page that needs nothing from elsewhere."""

import json
from html import escape

import pandas as pd

from recbole_tema.benchmark.figures import NARROW, WIDE, titles
from recbole_tema.benchmark.results import Results
from recbole_tema.benchmark.tables import grid, mark, note
from recbole_tema.pages import whole_page

STYLE = """
table { font-size: .9rem; } th, td { padding: .25rem .6rem; }
th:first-child, td:first-child { position: sticky; left: 0; background: #fff; }
thead tr:first-child th { text-align: center; }
.spread { color: #666; font-size: .85em; }
.best { font-weight: 700; } .second { text-decoration: underline; }
details { margin: .5rem 0; } pre { overflow-x: auto; font-size: .8rem; }
"""


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
    name = escape(results.dataset)
    told = "".join(f"<li>{escape(fact)}</li>" for fact in facts)
    figures = "".join(
        f"<h2>{escape(title)}</h2>"
        f'<div class="wide">{svgs[key, WIDE]}</div>'
        f'<div class="narrow">{svgs[key, NARROW]}</div>'
        for key, title in titles(results).items()
    )
    configs = "".join(
        f"<details><summary>{escape(label)}: {escape(entry['model'])}</summary>"
        f"<pre>{escape(json.dumps(entry['keys'], indent=1))}</pre></details>"
        for label, entry in statement["entries"].items()
        if label in {row.label for row in results.rows}
    )
    body = f"""<h1>Benchmark on {name}</h1>
<ul>{told}</ul>
<div class="scroll">{_table(asked, results.reference)}</div>
<p>{escape(note(asked, results.reference))} All numbers with their intervals and p-values are in
table.csv.</p>
{figures}
<h2>Runs</h2>
<div class="scroll">{_runs(results)}</div>
<h2>Configurations</h2>
{configs}"""
    return whole_page(f"Benchmark on {name}", STYLE, body)


def _table(summary: pd.DataFrame, reference: str | None) -> str:
    slices, metrics, models, cells = grid(summary)
    spans = "".join(f'<th colspan="{len(metrics)}">{escape(s)}</th>' for s in slices)
    heads = "".join(f"<th>{escape(m)}</th>" for _ in slices for m in metrics)
    body = ""
    for model in models:
        row = "".join(_cell(cells[model][s, m], reference) for s in slices for m in metrics)
        seeds = next(iter(cells[model].values()))["seeds"]
        body += f"<tr><td>{escape(model)}</td><td>{seeds}</td>{row}</tr>"
    return (
        f"<table><thead><tr><th></th><th></th>{spans}</tr>"
        f"<tr><th>model</th><th>seeds</th>{heads}</tr></thead>"
        f"<tbody>{body}</tbody></table>"
    )


def _cell(line: dict, reference: str | None) -> str:
    spread = ""
    if pd.notna(line["std"]):
        spread = f' <span class="spread">± {line["std"]:.4f}</span>'
    kind = {1: ' class="best"', 2: ' class="second"'}.get(line["place"], "")
    told = mark(line, reference)
    return f"<td><span{kind}>{line['mean']:.4f}</span>{told}{spread}</td>"


def _runs(results: Results) -> str:
    heads = (
        "run",
        "seed",
        "validations",
        "seconds",
        "device",
        "threads",
        "date",
        "machine",
        "versions",
    )
    body = ""
    for row in results.rows:
        for (seed, domain), record in sorted(row.records.items()):
            curve = row.curves[seed, domain]
            versions = {"python": record["python"], **record["versions"]}
            cells = [
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
            body += "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
    head = "".join(f"<th>{cell}</th>" for cell in heads)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
