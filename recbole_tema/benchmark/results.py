"""The finished runs of a folder, and what they say together: means, intervals, tests."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from recbole_tema.benchmark.record import RECORD, read_record, statement_of
from recbole_tema.benchmark.spec import RUNS, Entry, Spec, run_name
from recbole_tema.benchmark.statistics import (
    LEVEL,
    above_by_seed,
    bootstrap_interval,
    by_user,
    holm,
    paired_p,
    shown,
)
from recbole_tema.benchmark.targets import read_targets
from recbole_tema.benchmark.worker import CURVE, read_curve
from recbole_tema.config.registry import OUR_MODELS
from recbole_tema.errors import DataError
from recbole_tema.evaluation.groups import group_masks, popularity_notes
from recbole_tema.evaluation.metrics import MACRO, OVERALL, metric_key, per_target

TARGET = ["user", "item", "domain", "candidates", "history", "overlap", "popularity"]
# The groups of the evaluation -> what a report calls them.
GROUPS = {
    "length": ("history", {}),
    "popularity": (
        "popularity",
        {"low": "least popular third", "middle": "middle third", "high": "most popular third"},
    ),
    "overlap": ("overlap", {"yes": "several domains", "no": "one domain"}),
}
SHARE = "overlap_ratio"


@dataclass
class Row:
    """The finished runs of one entry.

    Attributes:
        label, model, keys: As in the spec.
        records: (seed, target domain) -> its `run.json`; the domain is "" where one run is for all.
        curves: (seed, target domain) -> validations in their order.
        ranks: Phase -> ``(seeds, n_targets)`` int64 from 1, seeds ascending.
    """

    label: str
    model: str
    keys: dict = field(default_factory=dict)
    records: dict[tuple[int, str], dict] = field(default_factory=dict)
    curves: dict[tuple[int, str], list[dict]] = field(default_factory=dict)
    ranks: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def ours(self) -> bool:
        """Whether the model is one of this package's."""
        return self.model in OUR_MODELS

    @property
    def share(self) -> float | None:
        """Of overlapping users in its training data, where rows differ in that; else None."""
        return self.keys.get(SHARE)

    def values(self, metric: str, k: int | None, phase: str = "test") -> np.ndarray:
        """``(seeds, n_targets)`` of a metric."""
        return np.stack([per_target(metric, ranks, k) for ranks in self.ranks[phase]])


@dataclass
class Results:
    """All rows of a benchmark that have a finished run.

    Attributes:
        dataset: Its name. rows: In the order of the spec.
        targets: Phase -> what is the same in every run: a row a target, columns TARGET.
        reference: Label of the row that the others are tested against; None: the best baseline.
    """

    dataset: str
    rows: list[Row]
    targets: dict[str, pd.DataFrame]
    reference: str | None = None

    @cached_property
    def slices(self) -> dict[str, np.ndarray]:
        """Name -> ``(n,)`` bool of the test targets: all, then each domain."""
        test = self.targets["test"]
        found = {OVERALL: np.ones(len(test), dtype=bool)}
        for domain in sorted(test["domain"].unique()):
            found[domain] = (test["domain"] == domain).to_numpy()
        return found

    @cached_property
    def weights(self) -> dict[str, np.ndarray]:
        """Name -> ``(n,)`` what a test target counts in a slice, on average 1 where it does: all,
        `macro`, in which each domain counts alike, then each domain."""
        overall, *domains = self.slices.values()
        sizes = sum(mask / mask.sum() for mask in domains)
        macro = sizes * len(overall) / len(domains)
        names = [OVERALL, MACRO, *list(self.slices)[1:]]
        return dict(zip(names, [overall, macro, *domains], strict=True))

    @cached_property
    def groupings(self) -> dict[str, dict[str, np.ndarray]]:
        """Grouping -> bucket -> ``(n,)`` bool of the test targets, empty buckets left out."""
        test = self.targets["test"]
        columns = ("overlap", "popularity", "history")
        masks = group_masks(*(test[column].to_numpy() for column in columns))
        return {
            title: {names.get(bucket, bucket): mask for bucket, mask in masks[group].items()}
            for group, (title, names) in GROUPS.items()
        }

    @cached_property
    def popularity_notes(self) -> list[str]:
        """What the groups by popularity hold: a line each, targets and bounds."""
        popularity = self.targets["test"]["popularity"].to_numpy()
        return popularity_notes(popularity, self.groupings["popularity"])

    def summary(
        self,
        metrics: Iterable[tuple[str, int | None]],
        untested: Iterable[tuple[str, int | None]] = (),
        seed: int = 2020,
    ) -> pd.DataFrame:
        """One line for each row of the table, slice and metric.

        Args:
            metrics: (name, k) of each metric that a table can show, k None without a cut-off:
                those that it does (`metrics.shown`) are tested, and corrected by Holm, together.
            untested: (name, k) of more metrics. seed: Of the bootstrap.

        Returns:
            model, slice, metric (`ndcg@10`), targets, seeds, mean (over seeds), std (over seeds,
            NaN for one), low, high (95 % bootstrap interval over users of their mean over seeds),
            reference (the best baseline of the slice and metric, or the row that all are tested
            against), p_alone (paired test against it; NaN for itself, for the slice `macro` and
            where there is none), p
            (corrected by Holm over all cells of the metrics shown; NaN for other metrics), better,
            worse (p < 0.05, and the means of the seeds are, `metrics.above_by_seed`). In a study
            of shares of overlapping users also overlap_ratio, the share: rows are compared with
            rows of theirs.
        """
        wanted = list(dict.fromkeys([*metrics, *untested]))
        lines = [
            line
            for metric, k in wanted
            for name, weights in self.weights.items()
            for rows in self.by_share.values()
            for line in self._of_slice(rows, name, weights, metric, k, seed)
        ]
        found = pd.DataFrame(lines)
        in_table = found["metric"].isin(shown([metric_key(*metric) for metric in metrics]))
        family = in_table & found["p_alone"].notna()
        found.loc[family, "p"] = holm(found.loc[family, "p_alone"].tolist())
        for side in ("better", "worse"):  # of every seed so far
            found[side] &= found["p"] < LEVEL
        return found if found[SHARE].notna().any() else found.drop(columns=[SHARE])

    @property
    def by_share(self) -> dict[float | None, list[Row]]:
        """The rows that are compared with each other: those of one share, or all."""
        found: dict[float | None, list[Row]] = {}
        for row in self.rows:
            found.setdefault(row.share, []).append(row)
        return found

    def _of_slice(
        self, rows: list[Row], name: str, weights: np.ndarray, metric: str, k: int | None, seed: int
    ) -> list[dict]:
        """The lines of some rows, of which `p`, and `better` and `worse` by it, are left open."""
        mask = weights > 0
        who = self.targets["test"]["user"].to_numpy()[mask]
        values = {row.label: row.values(metric, k)[:, mask] * weights[mask] for row in rows}
        means = {label: float(found.mean()) for label, found in values.items()}
        by_seed = {label: found.mean(axis=1) for label, found in values.items()}
        baselines = [row.label for row in rows if not row.ours]
        best = self.reference or max(baselines, key=means.__getitem__, default="")
        best = best if best in means else ""
        # The mean of the domains is told, and each domain tested for itself.
        others = [label for label in values if best and label != best and name != MACRO]
        # A user's value is of all its targets, the mean over the seeds: a user counts once.
        users, counts = {}, np.empty(0)
        for label, found in values.items():
            users[label], counts = by_user(found.mean(axis=0), who)
        alone = {label: paired_p(users[label], users[best]) for label in others}
        lines = []
        for row in rows:
            label, found = row.label, values[row.label]
            low, high = bootstrap_interval(users[label], seed, counts=counts)
            lines.append(
                {
                    "model": label,
                    "slice": name,
                    "metric": metric_key(metric, k),
                    "targets": int(mask.sum()),
                    "seeds": len(found),
                    "mean": means[label],
                    "std": float(by_seed[label].std(ddof=1)) if len(found) > 1 else np.nan,
                    "low": low,
                    "high": high,
                    "reference": best,
                    "p_alone": alone.get(label, np.nan),
                    "p": np.nan,
                    "better": label in alone and above_by_seed(by_seed[label], by_seed[best]),
                    "worse": label in alone and above_by_seed(by_seed[best], by_seed[label]),
                    SHARE: np.nan if row.share is None else row.share,
                }
            )
        return lines


def read_results(folder: Path, spec: Spec, statement: dict) -> Results:
    """What is finished of a benchmark.

    Args:
        statement: What the folder belongs to (`spec.stated`).

    Raises:
        DataError: no run is finished, a file is damaged, a run is of other keys or data, or runs
            have ranked different targets.
    """
    rows: list[Row] = []
    targets: dict[str, pd.DataFrame] = {}
    for entry in spec.entries:
        row = Row(entry.label, entry.model, entry.keys)
        ranks: dict[str, list[np.ndarray]] = {"valid": [], "test": []}
        for seed, parts in _finished(folder, entry, spec.seeds):
            for domain, where in parts.items():
                stated = statement_of(statement, entry.label)
                row.records[seed, domain] = read_record(where / RECORD, stated)
                row.curves[seed, domain] = read_curve(where / CURVE)
            for phase, found in ranks.items():
                table = _targets([where / f"{phase}.parquet" for where in parts.values()])
                known = targets.setdefault(phase, table[TARGET])
                if not known.equals(table[TARGET]):
                    raise DataError(
                        f"{next(iter(parts.values())) / phase}.parquet has other targets or "
                        "candidates than the other runs of the folder; delete that run's folder "
                        "to have it run again"
                    )
                found.append(table["rank"].to_numpy())
        if row.records:
            row.ranks = {phase: np.stack(found) for phase, found in ranks.items()}
            rows.append(row)
    if not rows:
        raise DataError(f"{folder}: no run is finished, so there is nothing to report")
    return Results(spec.dataset, rows, targets, spec.reference)


def _targets(paths: list[Path]) -> pd.DataFrame:
    """The targets of runs that each have some, by user, a user's by what is before them."""
    table = pd.concat([read_targets(path) for path in paths], ignore_index=True)
    if absent := [name for name in TARGET if name not in table]:
        raise DataError(
            f"{paths[0]} has no {' and no '.join(absent)}, as ranks that were published without "
            "ids; a report is made of runs as they were done, so give another --results_dir"
        )
    return table.sort_values(
        ["user", "history", "domain", "item"], ignore_index=True, kind="stable"
    )


def _finished(
    folder: Path, entry: Entry, seeds: Iterable[int]
) -> Iterator[tuple[int, dict[str, Path]]]:
    """(seed, target domain -> folder) of the seeds whose runs are all finished."""
    for seed in sorted(seeds):
        parts = {
            domain or "": folder / RUNS / run_name(entry.label, seed, domain)
            for domain in entry.targets
        }
        if all((where / RECORD).is_file() for where in parts.values()):
            yield seed, parts
