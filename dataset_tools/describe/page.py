"""A description as one HTML page that needs nothing from elsewhere."""

from html import escape

from dataset_tools.describe.figure import svg
from dataset_tools.describe.measures import Description
from dataset_tools.describe.text import facts, rows
from recbole_tema.pages import whole_page

STYLE = """
@media (max-width: 700px) {
  table { font-size: .85rem; } th, td { padding: .2rem .35rem; }
  td:first-child { white-space: normal; min-width: 6rem; }
}
.error { color: #a40000; } .warning { color: #8a5a00; } .note { color: #444; }
"""


def page(found: Description) -> str:
    """The page as text."""
    heads, body = rows(found)
    head = "".join(f"<th>{escape(cell)}</th>" for cell in heads)
    lines = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in body
    )
    sentences = "".join(f"<li>{escape(fact)}</li>" for fact in facts(found))
    findings = "".join(
        f'<li class="{f["level"]}"><b>{f["level"]}</b>: {f["count"]:,} {escape(f["what"])} '
        f"(e.g. {escape(f['example'])})</li>"
        for f in found.checks
    )
    name = escape(found.name)
    content = f"""<h1>{name}</h1>
<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>
<ul>{sentences}</ul>
<h2>Figure</h2>
<div class="wide">{svg(found, 11.0)}</div>
<div class="narrow">{svg(found, 5.0)}</div>
<h2>Checks</h2>
<ul>{findings or "<li>nothing found</li>"}</ul>"""
    return whole_page(name, STYLE, content)
