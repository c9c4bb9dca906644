"""What a benchmark leaves to read: tables, figures and one page, made of its finished runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from recbole_tema.benchmark.figures import METRIC, K, drawn, write_figures
from recbole_tema.benchmark.page import page
from recbole_tema.benchmark.results import Results, read_results
from recbole_tema.benchmark.spec import Spec
from recbole_tema.benchmark.tables import csv_text, latex, markdown
from recbole_tema.config.presets import KEY as PRESET
from recbole_tema.config.presets import names_of
from recbole_tema.data.atomic import replace_file
from recbole_tema.data.split import MERGED, read_rule
from recbole_tema.errors import ConfigError
from recbole_tema.evaluation.metrics import PER_TARGET, metric_key

FIGURES = (METRIC, K)


def write_report(folder: Path, spec: Spec, statement: dict) -> str:
    """Write table.csv, table.md, table.tex, figures/ and report.html; the table, to print.

    Args:
        statement: What the folder belongs to (`spec.stated`).

    Raises:
        ConfigError: no configured metric can be had from ranks.
        DataError: no run is finished, or a file of one is damaged.
    """
    results = read_results(folder, spec, statement)
    metrics = metrics_of(keys_of(results, statement))
    summary = results.summary(metrics, untested=[FIGURES])
    asked = summary[summary["metric"].isin([metric_key(*metric) for metric in metrics])]
    presets = names_of(spec.keys.get(PRESET))
    table = markdown(asked, spec.reference, presets)
    svgs = drawn(results, summary)
    texts: dict[str, Callable[[], str]] = {
        "table.csv": lambda: csv_text(summary),
        "table.md": lambda: table,
        "table.tex": lambda: latex(asked, f"Results on {spec.dataset}", spec.reference, presets),
        "report.html": lambda: page(results, svgs, statement, facts(results, statement), asked),
    }
    for name, text in texts.items():
        with replace_file(folder / name) as file:
            file.write(text().encode())
    write_figures(folder / "figures", results, summary, svgs)
    return f"{table}\nreport: {folder / 'report.html'}"


def keys_of(results: Results, statement: dict) -> dict:
    """The keys that all rows of a report have alike; a folder may hold other rows beside them."""
    return statement["entries"][results.rows[0].label]["keys"]


def metrics_of(keys: dict) -> list[tuple[str, int | None]]:
    """(name, k) of the configured metrics that ranks give; k None without a cut-off.

    Raises:
        ConfigError: there are none.
    """
    names = [name.lower() for name in _listed(keys["metrics"]) if name.lower() in PER_TARGET]
    if not names:
        raise ConfigError(
            f"metrics are {keys['metrics']}: none of them comes from ranks alone; "
            f"choose of {', '.join(PER_TARGET)}"
        )
    cut = ((name, int(k)) for k in _listed(keys["topk"]) for name in names)
    uncut = ((name.lower(), None) for name in _listed(keys.get("uncut_metrics") or []))
    return list(dict.fromkeys([*cut, *uncut]))


def _listed(value: Any) -> list:
    return list(value) if isinstance(value, list | tuple) else [value]


def facts(results: Results, statement: dict) -> list[str]:
    """Sentences on the data and the protocol."""
    test = results.targets["test"]
    keys = keys_of(results, statement)
    mode = (keys.get("eval_args") or {}).get("mode", "full")
    mode = mode.get("test") if isinstance(mode, dict) else mode
    seeds = sorted({seed for row in results.rows for seed, _ in row.records})
    domains = ", ".join(
        f"{int(mask.sum()):,} in {name}" for name, mask in list(results.slices.items())[1:]
    )
    rule = read_rule((keys.get("eval_args") or {}).get("split"))
    split = "the last event of each user" if rule.kind == MERGED else f"split {rule.words}"
    given = keys.get("exclude_history")
    records = results.rows[0].records
    excluded = next(iter(records.values()), {}).get("exclude_history", given is True)
    # Of sampled negatives none ever is one of the user's own items.
    past = "the user's past ones among them" if mode == "full" else "none of the user's own"
    past = "without the user's past ones" if excluded else past
    again = []
    # Of one seed: all have the same targets.
    left_out = sum(
        record.get("left_out", {}).get("test", 0)
        for (seed, _), record in records.items()
        if seed == seeds[0]
    )
    if left_out:
        again.append(f"{left_out:,} more targets, which their users had before, are left out")
    again.append("; ".join(results.popularity_notes))
    if statement.get("ranked_again"):
        again.append(
            "the models are those of another benchmark, whose protocol chose their best epochs; "
            "times and machines are of their training"
        )
    found = {row.label: statement["entries"][row.label].get("trials") for row in results.rows}
    if any(found.values()):
        shown = (
            f"{label} by {counts[0]} of {counts[1]} trials" if counts else f"{label} by none"
            for label, counts in found.items()
        )
        again.append(f"keys were searched on validation data: {', '.join(shown)}")
    ranked = "all" if mode == "full" else f"{str(mode).removeprefix('uni')} sampled"
    return [
        f"{len(test):,} test targets ({domains}), {split}; "
        f"{int(test['overlap'].sum()):,} of them with a history in several domains",
        f"candidates: {ranked} items "
        + ("of the target's domain" if keys.get("candidates") == "in_domain" else "of all domains")
        + f", {past} (exclude_history {given})",
        *again,
        *(
            f"{row.label}: preset {', '.join(statement['entries'][row.label][PRESET])}"
            for row in results.rows
            if PRESET in statement["entries"][row.label]
        ),
        f"{len(results.rows)} models, seed{'s' if len(seeds) > 1 else ''} "
        + ", ".join(map(str, seeds)),
        f"dataset {statement['dataset']}, SHA-256 of its files {statement['content'][:16]}",
    ]
