"""A description in words: for the terminal, and as an HTML page."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from markupsafe import Markup
from tabulate import tabulate

from dataset_tools.describe.checks import LOOKS_LIKE_SECONDS
from dataset_tools.describe.figure import svg
from dataset_tools.describe.measures import Description, Part
from recbole_tema.pages import rendered


def moment(seconds: float | None) -> str:
    """A time as a date where it looks like one, else as the number it is; `-` for none."""
    if seconds is None:
        return "-"
    if seconds < LOOKS_LIKE_SECONDS or seconds > 1e10:
        return f"{seconds:g}"
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")


def rows(found: Description) -> tuple[list[str], list[list[str]]]:
    """(heads, rows) of the table of counts: a column a domain, and one for all."""
    parts = {**found.domains, "all": found.whole}

    def row(label: str, value: Callable[[Any], str]) -> list[str]:
        return [label, *(value(part) for part in parts.values())]

    def spread(values: dict[str, float]) -> str:
        return f"{values['mean']:.1f} ({values['0.5']:g}, {values['0.9']:g}, {values['1']:g})"

    def share(part: Part) -> str:
        return f"{part.only_here:,} ({part.only_here / part.users:.1%})" if part.users else "0"

    return ["", *parts], [
        row("users", lambda p: f"{p.users:,}"),
        row("users of one domain", share),
        row("items", lambda p: f"{p.items:,}"),
        row("items with an event", lambda p: f"{p.items_used:,}"),
        row("events", lambda p: f"{p.events:,}"),
        row("density", lambda p: f"{p.density:.4%}"),
        row("events a user: mean (median, 90 %, most)", lambda p: spread(p.lengths)),
        row("events an item: mean (median, 90 %, most)", lambda p: spread(p.popularity)),
        row("events on the top tenth of items", lambda p: f"{p.top_tenth:.1%}"),
        row("first event", lambda p: moment(p.first)),
        row("last event", lambda p: moment(p.last)),
        ["validation targets", *_targets(found, "valid")],
        ["test targets", *_targets(found, "test")],
    ]


def _targets(found: Description, part: str) -> list[str]:
    return [f"{n:,}" for n in found.targets[part].values()] + [f"{found.split[part]:,}"]


def facts(found: Description) -> list[str]:
    """What concerns the domains together, in sentences."""
    split, whole = found.split, found.whole
    pairs = ", ".join(f"{pair} {count:,}" for pair, count in found.pairs.items())
    lines = [
        f"{found.overlapping:,} of {whole.users:,} users ({found.overlapping / whole.users:.1%}) "
        f"have events in several domains{f': {pairs}' if pairs else ''}",
        f"{found.switches:.1%} of the steps in their sequences change the domain",
        f"{found.rule}: {split['train']:,} training events, {split['valid']:,} validation and "
        f"{split['test']:,} test targets ({found.cold['valid']:,} and {found.cold['test']:,} of "
        f"items without a training event); {split['unevaluated']:,} users have no test target",
    ]
    if split["held"]:
        lines.append(f"{split['held']:,} held-out events are histories alone, no targets")
    shares = ", ".join(f"{name} {share:.1%}" for name, share in found.coverage.items())
    lines.append(f"items (users for profile_emb) that have a field: {shares or 'none'}")
    if weights := found.tag_weights:
        spread = "{least:.3g} to {most:.3g}, median {median:.3g}".format(**weights)
        kind = "shares that sum to 1 for each item" if weights["shares"] == 1 else "raw scores"
        lines.append(f"tag_weights: {spread}; {kind}")
    return lines


def text(found: Description) -> str:
    """All of it for the terminal."""
    heads, body = rows(found)
    table = tabulate(body, heads, colalign=["left"] + ["right"] * (len(heads) - 1))
    checks = [
        f"{f['level']}: {f['count']:,} {f['what']} (e.g. {f['example']})" for f in found.checks
    ] or ["nothing found"]
    return "\n".join([found.name, "", table, "", *facts(found), "", "checks:", *checks])


def page(found: Description) -> str:
    """All of it, with the figure, as one page that needs nothing from elsewhere."""
    heads, body = rows(found)
    return rendered(
        Path(__file__).with_name("description.html"),
        title=found.name,
        heads=heads,
        rows=body,
        facts=facts(found),
        wide=Markup(svg(found, 11.0)),
        narrow=Markup(svg(found, 5.0)),
        checks=found.checks,
    )
