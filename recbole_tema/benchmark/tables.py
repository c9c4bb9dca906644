"""The results as tables: CSV with all numbers, Markdown and LaTeX to publish."""

from collections.abc import Sequence

import pandas as pd

from recbole_tema.benchmark.results import SHARE
from recbole_tema.benchmark.statistics import shown

MARK, WORSE = "*", "†"
TEST = "paired t-test over users, Holm-corrected over {} of this table, p < 0.05"
BY_SEED = (
    ", and over seeds too (Mann-Whitney U, p ≤ 0.05; with fewer than three each, every seed above "
    "every other)"
)
FEW = 3  # seeds, below which a table says that it has few


def note(summary: pd.DataFrame, reference: str | None, presets: Sequence[str] = ()) -> str:
    """Presets of all rows, what the marks of a table mean, and what its tests say nothing of."""
    text = f"Preset of all rows: {', '.join(presets)}. " if presets else ""
    text += "Mean over seeds (± standard deviation). Best in bold, second underlined"
    text += " of each share. " if SHARE in summary else ". "
    if not summary["reference"].any():
        why = "no baseline is among the rows" if reference is None else "there is no run of it yet"
        return f"{text}Nothing is tested against {reference or 'a baseline'}: {why}."
    seeds = summary.groupby("model", sort=False)["seeds"].first()
    tests = int(summary["p"].notna().sum())
    if not tests:
        return (
            f"{text}Nothing is tested: no row has a partner to be compared with, target by target."
        )
    number = f"all {tests} tests" if tests > 1 else "the one test"
    test = TEST.format(number) + (BY_SEED if seeds.max() > 1 else "")
    if reference is None:
        text += f"{MARK}: better than the best baseline"
        text += " at the same share" if SHARE in summary else ""
        text += f", {test}."
    else:
        text += f"{MARK}: better, {WORSE}: worse than {reference}, {test}."
    few = [model for model, number in seeds.items() if number < FEW]
    if few:
        count = "one seed" if seeds.max() == 1 else f"fewer than {FEW} seeds"
        whose = "All rows" if len(few) == len(seeds) else ", ".join(few)
        whose += " is" if len(few) == 1 < len(seeds) else " are"
        text += (
            f" {whose} of {count}: the tests are of these trained models, and "
            "training with other seeds moves the means too."
        )
    return text


def mark(line: dict, reference: str | None) -> str:
    """The mark of a cell: against baselines only what is better is told."""
    if line["better"]:
        return MARK
    return WORSE if reference is not None and line["worse"] else ""


ESCAPES = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {
    c: f"\\{c}" for c in "&%$#_{}"
}


def csv_text(summary: pd.DataFrame) -> str:
    """All numbers, unrounded."""
    return summary.to_csv(index=False, lineterminator="\n")


def grid(summary: pd.DataFrame) -> tuple[list[str], list[str], list[str], dict[str, dict]]:
    """(slices, metrics, models, cells): cells[model][slice, metric] -> its line of the summary,
    with `place`, 1 for the best of the column and 2 for the second."""
    metrics = shown(summary["metric"])
    part = summary[summary["metric"].isin(metrics)].copy()
    compared = [name for name in ("slice", "metric", SHARE) if name in part]
    ranked = part.groupby(compared)["mean"].rank(method="min", ascending=False)
    part["place"] = ranked.astype(int)
    cells: dict[str, dict] = {}
    for line in part.to_dict("records"):
        cells.setdefault(line["model"], {})[line["slice"], line["metric"]] = line
    return list(dict.fromkeys(part["slice"])), metrics, list(cells), cells


def markdown(
    summary: pd.DataFrame, reference: str | None = None, presets: Sequence[str] = ()
) -> str:
    """The table for a README."""
    slices, metrics, models, cells = grid(summary)
    columns = [(s, m) for s in slices for m in metrics]
    lines = [
        "| model | seeds | " + " | ".join(f"{s} {m}" for s, m in columns) + " |",
        "| --- | --- | " + " | ".join("---:" for _ in columns) + " |",
    ]
    for model in models:
        seeds = next(iter(cells[model].values()))["seeds"]
        row = [_markdown_cell(cells[model][column], reference) for column in columns]
        lines.append(f"| {_bar(model)} | {seeds} | " + " | ".join(row) + " |")
    return "\n".join([*lines, "", note(summary, reference, presets), ""])


def _bar(text: str) -> str:
    return text.replace("|", "\\|")


def _markdown_cell(line: dict, reference: str | None) -> str:
    text = f"{line['mean']:.4f}"
    if pd.notna(line["std"]):
        text += f" ± {line['std']:.4f}"
    text += mark(line, reference).replace(MARK, "\\" + MARK)
    return {1: f"**{text}**", 2: f"<u>{text}</u>"}.get(line["place"], text)


def latex(
    summary: pd.DataFrame,
    caption: str,
    reference: str | None = None,
    presets: Sequence[str] = (),
) -> str:
    """The table for a paper; it needs the package booktabs."""
    slices, metrics, models, cells = grid(summary)
    spans, rules, start = [], [], 3
    for name in slices:
        spans.append(rf"\multicolumn{{{len(metrics)}}}{{c}}{{{_tex(name)}}}")
        rules.append(rf"\cmidrule(lr){{{start}-{start + len(metrics) - 1}}}")
        start += len(metrics)
    body = []
    for model in models:
        row = [_latex_cell(cells[model][s, m], reference) for s in slices for m in metrics]
        seeds = next(iter(cells[model].values()))["seeds"]
        body.append(f"{_tex(model)} & {seeds} & " + " & ".join(row) + r" \\")
    told = _tex(note(summary, reference, presets))
    told = told.replace(MARK, "$^{*}$").replace(WORSE, r"$^{\dagger}$")
    for sign, command in (("<", "$<$"), ("≤", r"$\leq$"), ("±", r"$\pm$")):
        told = told.replace(sign, command)
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_tex(caption)}. {told}}}",
            rf"\begin{{tabular}}{{lr{'r' * len(slices) * len(metrics)}}}",
            r"\toprule",
            "& & " + " & ".join(spans) + r" \\",
            " ".join(rules),
            "Model & Seeds & " + " & ".join(_tex(m) for _ in slices for m in metrics) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _tex(text: str) -> str:
    return "".join(ESCAPES.get(char, char) for char in text)


def _latex_cell(line: dict, reference: str | None) -> str:
    text = f"{line['mean']:.4f}"
    text = {1: rf"\textbf{{{text}}}", 2: rf"\underline{{{text}}}"}.get(line["place"], text)
    found = mark(line, reference)
    spread = ""
    if pd.notna(line["std"]):
        spread = rf" {{\scriptsize $\pm$ {line['std']:.4f}}}"
    return text + {MARK: "$^{*}$", WORSE: r"$^{\dagger}$"}.get(found, "") + spread
