"""The results of both phases as a table for the terminal."""

from collections.abc import Mapping, Sequence

from tabulate import tabulate

from recbole_tema.evaluation.metrics import OVERALL, metric_parts

# With one target a user, recall@k is hit@k and precision@k is hit@k / k: left to the full table.
PREFERRED = ("ndcg", "hit", "mrr")
PREFERRED_K = 10
# Columns of the terminal that a block may fill.
WIDTH = 100


def format_table(
    valid_result: Mapping[str, float] | None,
    test_result: Mapping[str, float] | None,
    counts: Mapping[str, int],
    metrics: str | Sequence[str] = "main",
    notes: Sequence[str] = (),
) -> str:
    """Rows: overall, macro, domains, groups. Columns: metrics of each phase, number of targets.

    Args:
        valid_result, test_result: from ``metrics.evaluate_ranks``; None leaves the phase out.
        counts: slice -> number of targets, from ``metrics.slice_counts`` of the last phase given
            (test, unless ``test_result`` is None).
        metrics: ``main`` for NDCG, hit and MRR at 10 (else at the first k there is) and without a
            cut-off, ``all`` for every metric in blocks by k, or a list of keys
            (``["ndcg@10", "hit@5"]``).
        notes: lines to stand below, as ``EvalData.notes``.

    Returns:
        Text of several lines; blocks are at most 100 columns wide where one metric fits at all.
    """
    results = {"valid": valid_result, "test": test_result}
    results = {phase: result for phase, result in results.items() if result}
    if not results:
        return ""
    names = _slices(results, counts)
    keys = [key for key in next(iter(results.values())) if "/" not in key]
    below = "".join(f"\n{line}" for line in notes)
    if metrics != "all":
        block = _block(results, counts, names, _main(keys) if metrics == "main" else metrics)
        return block + below
    first_column = max(map(len, names))
    blocks = _blocks(keys, len(results), WIDTH - first_column - len("targets") - 4)
    return "\n\n".join(_block(results, counts, names, block) for block in blocks) + below


def _slices(results: Mapping[str, Mapping[str, float]], counts: Mapping[str, int]) -> list[str]:
    """Names of the rows: those counted, then those that only another phase has."""
    found = dict.fromkeys(counts)
    for result in results.values():
        found.update(dict.fromkeys(key.rpartition("/")[0] or OVERALL for key in result))
    return list(found)


def _main(keys: Sequence[str]) -> list[str]:
    ks = sorted({k for _, k in map(metric_parts, keys) if k is not None})
    k = PREFERRED_K if PREFERRED_K in ks else next(iter(ks), None)
    at_k = {metric_parts(key)[0]: key for key in keys if metric_parts(key)[1] == k}
    found = [at_k[name] for name in PREFERRED if name in at_k] or list(at_k.values())[:3]
    return found + [name for name in PREFERRED if name in keys and name not in found]


def _blocks(keys: Sequence[str], n_phases: int, room: int) -> list[list[str]]:
    """Keys by k, those without a k last, in parts that fit ``room`` columns."""
    blocks: list[list[str]] = []
    for k in sorted({metric_parts(key)[1] for key in keys}, key=lambda k: (k is None, k or 0)):
        left = 0
        for key in (key for key in keys if metric_parts(key)[1] == k):
            width = n_phases * (len(key) + 4)
            if width > left:
                blocks.append([])
                left = room
            blocks[-1].append(key)
            left -= width
    return blocks


def _block(
    results: Mapping[str, Mapping[str, float]],
    counts: Mapping[str, int],
    names: Sequence[str],
    keys: Sequence[str],
) -> str:
    header = ["", *(f"{phase}\n{key}" for phase in results for key in keys)]
    header.append(f"{list(results)[-1]}\ntargets")
    rows = []
    for name in names:
        prefix = "" if name == OVERALL else f"{name}/"
        cells = [_cell(result.get(prefix + key)) for result in results.values() for key in keys]
        rows.append([name, *cells, str(counts.get(name, "-"))])
    align = ["left"] + ["right"] * (len(header) - 1)
    return tabulate(rows, header, tablefmt="simple", colalign=align, disable_numparse=True)


def _cell(value: float | None) -> str:
    """Four decimals; a hyphen where the metric is not given for the slice."""
    return "-" if value is None else f"{value:.4f}"
