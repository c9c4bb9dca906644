"""Figures of a benchmark, as PNG, as SVG, and in the report."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from recbole_tema.benchmark.results import Results
from recbole_tema.benchmark.statistics import bootstrap_interval, by_user
from recbole_tema.benchmark.variants import OVERLAP
from recbole_tema.errors import DataError, how_to_get
from recbole_tema.evaluation.metrics import OVERALL
from recbole_tema.pages import COLOURS as SIX
from recbole_tema.pages import GRID, INK, svg_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = (*SIX, "#444444")  # then the same with another marker
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", ":", "-.")
WIDE, NARROW = 11.0, 4.6  # inches, of a page and of a phone
METRIC, K = "ndcg", 10
TITLES = {
    "models": "By model, with 95 % intervals over users",
    "history": "By length of the history",
    "popularity": "By popularity of the target",
    "overlap": "Users with a history in several domains, and in one",
    "curves": "Validation score while training",
    "time": "Quality against training time",
}


def titles(results: Results) -> dict[str, str]:
    """The figures that a benchmark has."""
    if any(row.share is not None for row in results.rows):
        return {"ratio": "By share of overlapping users in the training data", **TITLES}
    return TITLES


def figure(name: str, results: Results, summary: pd.DataFrame, width: float = WIDE) -> "Figure":
    """One of the figures that `titles` names.

    Raises:
        DataError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise DataError(f"matplotlib is not installed: {how_to_get('benchmark')}") from None
    height = {"models": 0.32 * len(results.rows) + 1.3}.get(name, 4.2)
    made = Figure(figsize=(width, height * (1 if width >= 7 else 0.95)), layout="constrained")
    draw: dict[str, Callable] = {
        "models": _models,
        "ratio": _ratio,
        "curves": _curves,
        "time": _time,
    }
    if name in draw:
        draw[name](made, results, summary, width)
    else:
        _grouped(made, results, name, width)
    for panel in made.axes:
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(colors=INK, labelsize=9)
        panel.title.set_fontsize(10)
    return made


def _style(number: int) -> tuple[str, str]:
    return COLOURS[number % len(COLOURS)], MARKERS[(number // len(COLOURS)) % len(MARKERS)]


def _models(made: "Figure", results: Results, summary: pd.DataFrame, width: float) -> None:
    slices = list(results.slices)
    if width < 7:  # one below the other
        made.set_size_inches(width, (0.3 * len(results.rows) + 0.9) * len(slices))
        panels = made.subplots(len(slices), 1, squeeze=False)[:, 0]
    else:
        panels = made.subplots(1, len(slices), squeeze=False)[0]
    names = [row.label for row in results.rows]
    for column, (panel, name) in enumerate(zip(panels, slices, strict=True)):
        metric = f"{METRIC}@{K}"
        part = summary[(summary["slice"] == name) & (summary["metric"] == metric)]
        part = part.set_index("model").loc[names]
        lines = zip(results.rows, part.to_dict("records"), strict=True)
        for place, (row, line) in enumerate(lines):
            spread = [[line["mean"] - line["low"]], [line["high"] - line["mean"]]]
            colour = COLOURS[0] if row.ours else "#777777"
            style = {"fmt": "o", "color": colour, "capsize": 3, "markersize": 5}
            panel.errorbar([line["mean"]], [-place], xerr=spread, **style)
        labelled = column == 0 or width < 7
        panel.set_yticks([-place for place in range(len(names))], names if labelled else [])
        panel.set_ylim(-len(names) + 0.5, 0.5)
        panel.set_title(name)
        panel.set_xlabel("NDCG@10")
        panel.grid(axis="x", color=GRID)
        panel.set_axisbelow(True)


def _ratio(made: "Figure", results: Results, summary: pd.DataFrame, width: float) -> None:
    panel = made.add_subplot()
    part = summary[(summary["slice"] == OVERALL) & (summary["metric"] == f"{METRIC}@{K}")]
    part = part.set_index("model")
    lines: dict[str, list] = {}
    for row in results.rows:
        name = row.label.rpartition(OVERLAP)[0] or row.label
        line = part.loc[row.label]
        point = row.share, line["mean"], line["low"], line["high"]
        lines.setdefault(name, []).append(point)
    for number, (name, points) in enumerate(lines.items()):
        share, mean, low, high = np.array(sorted(points)).T
        colour, marker = _style(number)
        style: dict[str, Any] = {"color": colour, "marker": marker, "capsize": 3, "label": name}
        panel.errorbar(share, mean, yerr=[mean - low, high - mean], **style)
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    panel.set_xlabel("share of the overlapping users whose training data stays")
    panel.set_ylabel("NDCG@10")
    panel.grid(color=GRID)
    _legend(made, [panel], width)


def _grouped(made: "Figure", results: Results, grouping: str, width: float) -> None:
    panel = made.add_subplot()
    buckets = results.groupings[grouping]
    names = list(buckets)
    n = len(results.rows)
    who = results.targets["test"]["user"].to_numpy()
    for number, row in enumerate(results.rows):
        values = row.values(METRIC, K).mean(axis=0)
        colour, marker = _style(number)
        places = [x + (number - (n - 1) / 2) * 0.7 / n for x in range(len(names))]
        means = [values[mask].mean() for mask in buckets.values()]
        of_users = [by_user(values[mask], who[mask]) for mask in buckets.values()]
        bounds = [bootstrap_interval(sums, counts=counts) for sums, counts in of_users]
        spread = np.abs(np.array(bounds).T - np.array(means))
        style: dict[str, Any] = {"fmt": marker, "color": colour, "capsize": 2, "markersize": 5}
        panel.errorbar(places, means, yerr=spread, label=row.label, **style)
    counts = [int(mask.sum()) for mask in buckets.values()]
    crowded = width < 7 and len(names) > 3  # on a phone the word stands once, below
    labels = [
        f"{name}\n{count:,}" + ("" if crowded else " target" if count == 1 else " targets")
        for name, count in zip(names, counts, strict=True)
    ]
    if grouping == "popularity":  # what the thirds hold: targets, then the bounds
        labels = [
            line.replace(" training", "").replace(": ", "\n").replace(" of ", "\n")
            for line in results.popularity_notes
        ]
        panel.set_xlabel("events: training events of the target item")
    if crowded:
        panel.set_xlabel("and number of targets")
    panel.set_xticks(range(len(names)), labels)
    for x in range(1, len(names)):
        panel.axvline(x - 0.5, color=GRID, linewidth=1)
    panel.set_ylabel("NDCG@10")
    panel.set_ylim(bottom=0)
    panel.grid(axis="y", color=GRID)
    _legend(made, [panel], width)


def _legend(made: "Figure", panels: "Iterable[Axes]", width: float) -> None:
    handles: dict[str, Any] = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if not handles:
        return
    columns = max(1, min(len(handles), int(width // 1.5)))
    made.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=9,
    )


def _curves(made: "Figure", results: Results, _summary: pd.DataFrame, width: float) -> None:
    # A score on one domain's targets and a score on all cannot be compared: a panel each.
    targets = sorted({domain for row in results.rows for _, domain in row.curves})
    if width < 7:  # one below the other
        made.set_size_inches(width, 3.2 * len(targets) + 0.8)
        panels = made.subplots(len(targets), 1, squeeze=False)[:, 0]
    else:
        panels = made.subplots(1, len(targets), squeeze=False)[0]
    for panel, target in zip(panels, targets, strict=True):
        for number, row in enumerate(results.rows):
            found = [curve for (_, domain), curve in sorted(row.curves.items()) if domain == target]
            for turn, curve in enumerate(found):
                epochs = [point["epoch"] + 1 for point in curve]
                scores = [point["valid"] for point in curve]
                style: dict[str, Any] = {
                    "color": _style(number)[0],
                    "linestyle": LINES[number // len(COLOURS) % 4],
                }
                style |= {"linewidth": 1.2, "alpha": 1.0 if turn == 0 else 0.4}
                style["marker"] = "o" if len(curve) == 1 else None
                panel.plot(epochs, scores, label=row.label if turn == 0 else None, **style)
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.set_xlabel("epoch")
        panel.grid(color=GRID)
        if len(targets) > 1:
            panel.set_title(
                f"trained for {target}" if target else "trained for all domains at once"
            )
    panels[0].set_ylabel("validation score")
    _legend(made, panels, width)


def _time(made: "Figure", results: Results, summary: pd.DataFrame, width: float) -> None:
    panel = made.add_subplot()
    part = summary[(summary["slice"] == OVERALL) & (summary["metric"] == f"{METRIC}@{K}")]
    means = part.set_index("model")["mean"]
    all_seconds = []
    for number, row in enumerate(results.rows):
        spent: dict[int, float] = {}
        for (seed, _), curve in row.curves.items():
            if curve:
                spent[seed] = spent.get(seed, 0.0) + curve[-1]["seconds"]
        seconds = list(spent.values())
        if not seconds:
            continue
        colour, marker = _style(number)
        place = float(np.mean(seconds)), float(means[row.label])
        panel.plot(*place, marker, color=colour, markersize=8, label=row.label)
        all_seconds.append(place[0])
    if all_seconds and max(all_seconds) > 10 * min(all_seconds):
        panel.set_xscale("log")
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        panel.xaxis.set_minor_formatter(
            lambda value, _: f"{value:g}" if f"{value:.0e}"[0] in "25" else ""
        )
    else:
        panel.set_xlim(left=0)
    panel.set_xlabel("seconds of training, with validation, mean over seeds")
    panel.set_ylabel("NDCG@10")
    panel.grid(color=GRID)
    _legend(made, [panel], width)


def svg(name: str, results: Results, summary: pd.DataFrame, width: float = WIDE) -> str:
    """A figure as an SVG element; the same bytes each time."""
    salt = f"{results.dataset}-{name}-{width}"
    return svg_of(lambda: figure(name, results, summary, width), salt)


def drawn(results: Results, summary: pd.DataFrame) -> dict[tuple[str, float], str]:
    """Every figure as SVG, by its name and width: WIDE for pages and files, NARROW for phones."""
    return {
        (name, width): svg(name, results, summary, width)
        for name in titles(results)
        for width in (WIDE, NARROW)
    }


def write_figures(folder: Path, results: Results, summary: pd.DataFrame, svgs: dict) -> None:
    """Write every figure as PNG and SVG.

    Args:
        svgs: what `drawn` gave.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in titles(results):
        figure(name, results, summary).savefig(folder / f"{name}.png", format="png", dpi=150)
        head = '<?xml version="1.0" encoding="utf-8" standalone="no"?>\n'
        (folder / f"{name}.svg").write_text(head + svgs[name, WIDE], encoding="utf-8")
