"""What figures and pages of this package have in common: colours, SVG, style."""

import io
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by people who see few; their yellow is too pale for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
YELLOW = "#F0E442"
INK, GRID = "#222222", "#DDDDDD"
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 1100px; margin: 0 auto;
  padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .75rem; text-align: right; border-bottom: 1px solid #ddd;
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
svg { width: 100%; height: auto; }
.narrow { display: none; }
@media (max-width: 700px) { .wide { display: none; } .narrow { display: block; } }
@media print { .narrow { display: none; } .wide { display: block; } }
"""


def svg_of(draw: Callable[[], "Figure"], salt: str) -> str:
    """A figure as an SVG element; the same bytes each time.

    Args:
        draw: Makes the figure. salt: Of the ids in it; figures of one page need different ones.
    """
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": salt, "svg.fonttype": "none"}):
        draw().savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def whole_page(title: str, style: str, body: str) -> str:
    """An HTML page that needs nothing from elsewhere.

    Args:
        title, style, body: As HTML, the title without markup; `style` comes after STYLE.
    """
    return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><link rel="icon" href="data:,"><style>{STYLE}{style}</style></head>
<body>
{body}
</body>
</html>
"""
