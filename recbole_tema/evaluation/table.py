"""The results of both phases as a table for the terminal."""

from tabulate import tabulate

# With one target a user, recall@k is hit@k and precision@k is hit@k / k: left to the full table.
PREFERRED = ("ndcg", "hit", "mrr")
PREFERRED_K = 10
# Metrics of both phases side by side that fit 100 columns.
WIDEST = 3
OVERALL = "all"


def format_table(valid_result, test_result, counts, metrics="main") -> str:
    """Rows: overall, domains, groups. Columns: number of targets and metrics of each phase.

    Args:
        valid_result, test_result: from ``metrics.evaluate_ranks``; None leaves the phase out.
        counts: phase (``valid``, ``test``) -> slice -> number of targets, from
            ``metrics.slice_counts``.
        metrics: ``main`` for NDCG, hit and MRR at 10 (else at the first k there is), ``all`` for
            every metric in blocks by k, or a list of keys (``["ndcg@10", "hit@5"]``).

    Returns:
        Text of several lines, at most 100 columns wide for ``main`` and names of usual length.
    """
    results = {"valid": valid_result, "test": test_result}
    results = {phase: result for phase, result in results.items() if result}
    if not results:
        return ""
    keys = [key for key in next(iter(results.values())) if "/" not in key]
    blocks = _blocks(keys) if metrics == "all" else [_main(keys) if metrics == "main" else metrics]
    return "\n\n".join(_block(results, counts, block) for block in blocks)


def _split(key: str):
    """(metric, k) of ``ndcg@10``; k is None for a metric without one."""
    name, _, k = key.partition("@")
    return name, int(k) if k else None


def _main(keys):
    ks = sorted({k for _, k in map(_split, keys) if k is not None})
    k = PREFERRED_K if PREFERRED_K in ks else next(iter(ks), None)
    at_k = {_split(key)[0]: key for key in keys if _split(key)[1] == k}
    return [at_k[name] for name in PREFERRED if name in at_k] or list(at_k.values())[:3]


def _blocks(keys):
    """Keys by k, those without a k last, in even parts that are not too wide."""
    blocks = []
    for k in sorted({_split(key)[1] for key in keys}, key=lambda k: (k is None, k or 0)):
        at_k = [key for key in keys if _split(key)[1] == k]
        parts = -(-len(at_k) // WIDEST)
        size = -(-len(at_k) // parts)
        blocks += [at_k[low : low + size] for low in range(0, len(at_k), size)]
    return blocks


def _block(results, counts, keys):
    names = list(dict.fromkeys(name for phase in results for name in counts[phase]))
    header = [""]
    for phase in results:
        header += [f"{phase}\ntargets"] + [f"{phase}\n{key}" for key in keys]
    rows = []
    for name in names:
        row = [name]
        for phase, result in results.items():
            row.append(str(counts[phase].get(name, "-")))
            prefix = "" if name == OVERALL else f"{name}/"
            row += [_cell(result.get(prefix + key)) for key in keys]
        rows.append(row)
    align = ["left"] + ["right"] * (len(header) - 1)
    return tabulate(rows, header, tablefmt="simple", colalign=align, disable_numparse=True)


def _cell(value):
    """Four decimals; a hyphen where the metric is not given for the slice."""
    return "-" if value is None else f"{value:.4f}"
