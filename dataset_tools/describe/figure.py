"""The figure of a description: four panels, as PNG or SVG."""

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from dataset_tools.describe.measures import Description
from recbole_tema.errors import DataError, how_to_get
from recbole_tema.pages import COLOURS, GRID, INK, YELLOW, svg_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BARS = (*COLOURS, YELLOW)


def draw(found: Description, width: float = 11.0) -> "Figure":
    """Sequence lengths, popularity, split and overlap, coverage.

    Args:
        width: Inches; below 7 the panels stand in one column.

    Raises:
        DataError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise DataError(f"matplotlib is not installed: {how_to_get('convert')}") from None
    columns = 2 if width >= 7 else 1
    rows = 4 // columns
    figure = Figure(figsize=(width, 3.4 * rows), layout="constrained")
    figure.suptitle(
        f"{found.name}: {found.whole.users:,} users, {found.whole.items:,} items, "
        f"{found.whole.events:,} events",
        color=INK,
    )
    panels = [figure.add_subplot(rows, columns, i + 1) for i in range(4)]
    colours = dict(zip(found.domains, BARS * len(found.domains), strict=False))
    _lengths(panels[0], found, colours)
    _popularity(panels[1], found, colours)
    _targets(panels[2], found, colours)
    _coverage(panels[3], found)
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(colors=INK, labelsize=9)
        panel.title.set_fontsize(11)
    return figure


def _lengths(panel: "Axes", found: Description, colours: dict) -> None:
    panel.set_title("Users by number of events")
    edges = [edge for edge, _ in found.length_counts[""]]
    names = [str(a) if b == a + 1 else f"{a}-{b - 1}" for a, b in pairwise(edges)]
    names.append(f"{edges[-1]}+")
    n = len(colours) + 1
    shown = [("all domains", "#999999", found.length_counts[""])]
    shown += [(domain, colours[domain], found.length_counts[domain]) for domain in colours]
    for i, (label, colour, counts) in enumerate(shown):
        heights = [count for _, count in counts]
        places = [x + (i - (n - 1) / 2) * 0.8 / n for x in range(len(heights))]
        panel.bar(places, heights, 0.8 / n, color=colour, label=label)
    panel.set_xticks(range(len(names)), names, rotation=45, ha="right")
    panel.set_ylabel("users")
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    panel.grid(axis="y", color=GRID)
    panel.set_axisbelow(True)
    panel.legend(frameon=False, fontsize=9)


def _popularity(panel: "Axes", found: Description, colours: dict) -> None:
    panel.set_title("Events on the most popular items")
    for domain, colour in colours.items():
        points = found.popularity_curve[domain]
        label = f"{domain} (Gini {found.domains[domain].gini:.2f})"
        panel.plot([x for x, _ in points], [y for _, y in points], color=colour, label=label)
    panel.plot([0, 1], [0, 1], color="#999999", linestyle=":", label="all alike")
    panel.set_xlabel("share of items, most popular first")
    panel.set_ylabel("share of events")
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:.0%}")
    panel.grid(color=GRID)
    panel.legend(frameon=False, fontsize=9)


def _targets(panel: "Axes", found: Description, colours: dict) -> None:
    panel.set_title("Users and targets by domain")
    bars = [
        ("users of this\ndomain alone", {d: found.domains[d].only_here for d in colours}),
        (
            "users of other\ndomains too",
            {d: found.domains[d].users - found.domains[d].only_here for d in colours},
        ),
        ("validation\ntargets", found.targets["valid"]),
        ("test\ntargets", found.targets["test"]),
    ]
    n = len(colours)
    for i, (domain, colour) in enumerate(colours.items()):
        places = [x + (i - (n - 1) / 2) * 0.8 / n for x in range(len(bars))]
        drawn = panel.bar(places, [v[domain] for _, v in bars], 0.8 / n, color=colour, label=domain)
        panel.bar_label(drawn, fmt=lambda value: f"{value:,.0f}", fontsize=8)
    panel.set_xticks(range(len(bars)), [name for name, _ in bars])
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    panel.legend(frameon=False, fontsize=9)


def _coverage(panel: "Axes", found: Description) -> None:
    panel.set_title("Items (profile_emb: users) that have a field")
    names = list(found.coverage)[::-1]
    shares = [found.coverage[name] for name in names]
    drawn = panel.barh(names, shares, 0.6, color="#0072B2")
    panel.set_ylim(-0.6, max(3, len(names)) - 0.4)
    panel.bar_label(drawn, fmt=lambda value: f"{value:.1%}", fontsize=8, padding=2)
    panel.set_xlim(0, 1.15)
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}" if value <= 1 else "")
    if not names:
        panel.text(0.5, 0.5, "no field beside id and domain", ha="center")


def png(found: Description, path: Path) -> None:
    """Write the figure as PNG."""
    draw(found).savefig(path, format="png", dpi=150)


def svg(found: Description, width: float) -> str:
    """The figure as an SVG element; the same bytes each time."""
    return svg_of(lambda: draw(found, width), found.name)
