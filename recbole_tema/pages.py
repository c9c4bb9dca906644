"""What figures and pages of this package have in common: colours, SVG, the frame."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by people who see few; their yellow is too pale for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
YELLOW = "#F0E442"
INK, GRID = "#222222", "#DDDDDD"
BASE = Path(__file__).with_name("page.html")


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


def rendered(template: Path, **values: Any) -> str:
    """An HTML page that needs nothing from elsewhere; texts are escaped, `Markup` is not.

    Args:
        template: Of jinja2; it may extend `page.html` of this folder, which has the blocks title,
            style and body.
        values: What it names; a name without a value is an error.
    """
    loader = FileSystemLoader([template.parent, BASE.parent])
    pages = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    return pages.get_template(template.name).render(values)
