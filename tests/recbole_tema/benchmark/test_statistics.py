"""A benchmark's metrics, intervals and tests against other libraries and by hand."""

import io
import math

import numpy as np
import pandas as pd
import pytest
import pytrec_eval
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from recbole_tema.benchmark.report import facts
from recbole_tema.benchmark.results import Results, Row
from recbole_tema.benchmark.statistics import (
    above_by_seed,
    bootstrap_interval,
    by_user,
    holm,
    paired_p,
)
from recbole_tema.benchmark.tables import csv_text, latex, markdown, note
from recbole_tema.evaluation.metrics import per_target

RANKS = np.array([1, 2, 3, 10, 11, 400])


@pytest.mark.parametrize("k", [1, 5, 10])
def test_metrics_of_stored_ranks_are_those_of_trec_eval(k):
    qrels = {str(n): {"target": 1} for n in range(len(RANKS))}
    run = {}
    for n, rank in enumerate(RANKS):
        scores = {f"d{place}": float(1000 - place) for place in range(1, 500) if place != rank}
        run[str(n)] = scores | {"target": float(1000 - rank)}
    names = {"hit": f"success_{k}", "ndcg": f"ndcg_cut_{k}", "recall": f"recall_{k}"}
    names |= {"precision": f"P_{k}", "map": f"map_cut_{k}"}
    found = pytrec_eval.RelevanceEvaluator(qrels, set(names.values())).evaluate(run)
    for ours, theirs in names.items():
        expected = [found[str(n)][theirs] for n in range(len(RANKS))]
        assert per_target(ours, RANKS, k) == pytest.approx(expected, abs=1e-12)
    assert per_target("mrr", RANKS, None) == pytest.approx(1 / RANKS)
    assert per_target("mrr", RANKS, 10) == pytest.approx([1, 1 / 2, 1 / 3, 1 / 10, 0, 0])


def test_the_bootstrap_is_scipys():
    values = np.random.default_rng(1).gamma(1.0, 0.2, size=400)
    low, high = bootstrap_interval(values)
    interval = stats.bootstrap((values,), np.mean, method="percentile", random_state=1)
    assert low == pytest.approx(interval.confidence_interval.low, abs=0.002)
    assert high == pytest.approx(interval.confidence_interval.high, abs=0.002)
    assert bootstrap_interval(values) == (low, high)
    assert bootstrap_interval(np.full(9, 0.5)) == (0.5, 0.5)


def test_users_with_several_targets_are_drawn_and_compared_as_users():
    rng = np.random.default_rng(4)
    users = rng.permutation(np.repeat(np.arange(60), rng.integers(1, 6, 60)))
    ours, theirs = rng.random(60)[users], rng.random(60)[users]  # a user's targets are all alike
    sums, counts = by_user(ours, users)
    for user in range(60):
        assert sums[user] == pytest.approx(ours[users == user].sum())
        assert counts[user] == (users == user).sum()
    low, high = bootstrap_interval(sums, counts=counts)

    def ratio(sums, counts, axis):
        return sums.sum(axis) / counts.sum(axis)

    judge = stats.bootstrap(
        (sums, counts), ratio, paired=True, method="percentile", random_state=1, vectorized=True
    )
    assert low == pytest.approx(judge.confidence_interval.low, abs=0.005)
    assert high == pytest.approx(judge.confidence_interval.high, abs=0.005)
    alone = bootstrap_interval(ours)
    assert high - low > 1.3 * (alone[1] - alone[0]), "targets alone would look surer"
    frame = pd.DataFrame({"user": users, "item": "i", "domain": "film", "candidates": 9})
    frame = frame.assign(history=1, overlap=True, popularity=1)
    frame.loc[0, "domain"] = "book"
    rows = [Row(model, model, {}, {(1, ""): {}}) for model in ("TEMA", "SASRec")]
    for row, values in zip(rows, (ours, theirs), strict=True):
        row.ranks = {"test": 1 + (9 * values[None]).astype(int)}
    line = Results("shop", rows, {"test": frame}).summary([("mrr", None)]).iloc[0]
    assert line["metric"] == "mrr"
    difference = by_user(1 / rows[0].ranks["test"][0] - 1 / rows[1].ranks["test"][0], users)[0]
    assert line["p_alone"] == pytest.approx(stats.ttest_1samp(difference, 0).pvalue)


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.9 times 4, 3, 2, 1, and never below the one before.
    assert holm([0.9, 0.01, 0.03, 0.02]) == pytest.approx([0.9, 0.04, 0.06, 0.06])
    assert holm([]) == [] and holm([0.7, 0.6]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_no_correction_and_bonferronis(values):
    corrected = holm(values)
    for p, c in zip(values, corrected, strict=True):
        assert p <= c <= min(1.0, len(values) * p) + 1e-12
    order = np.argsort(values, kind="stable")
    assert (np.diff(np.array(corrected)[order]) >= 0).all()


def test_the_paired_test():
    rng = np.random.default_rng(2)
    a = rng.random(50)
    b = a + rng.normal(0.05, 0.1, 50)
    difference = b - a
    t = difference.mean() / (difference.std(ddof=1) / math.sqrt(50))
    assert paired_p(b, a) == pytest.approx(2 * stats.t.sf(abs(t), 49))
    assert paired_p(a, a) == 1.0


def test_the_paired_test_of_differences_that_are_all_alike():
    """Student's has no spread to go by there, and p = 0 of two targets would get a mark."""
    assert paired_p(np.ones(2), np.zeros(2)) == 0.5
    assert paired_p(np.zeros(6), np.ones(6)) == 2 / 2**6
    assert paired_p(np.full(9, 0.3), np.full(9, 0.2)) == pytest.approx(stats.binomtest(9, 9).pvalue)
    assert paired_p(np.ones(1), np.zeros(1)) == 1.0


def test_above_by_seed():
    # Of three and three all have to be above: 1 of the 20 ways to share out six places.
    assert above_by_seed([0.4, 0.5, 0.6], [0.1, 0.2, 0.3])
    assert not above_by_seed([0.25, 0.5, 0.6], [0.1, 0.2, 0.3])
    # Of five and five one may be out of place: U = 24, two of 252 ways.
    assert above_by_seed([5, 7, 8, 9, 10], [1, 2, 3, 4, 6])
    assert not above_by_seed([1, 7, 8, 9, 3], [2, 4, 5, 6, 10])
    # Fewer: every one above every other.
    assert above_by_seed([0.2], [0.1]) and above_by_seed([0.2, 0.3], [0.1, 0.1, 0.15])
    assert not above_by_seed([0.2, 0.1], [0.15]) and not above_by_seed([0.1], [0.1])


def results(ranks_of, n=400, seeds=2):
    """Rows with some seeds; `ranks_of` is (label, model) -> the mean of its ranks."""
    rng = np.random.default_rng(5)
    targets = pd.DataFrame(
        {
            "user": [f"u{i}" for i in range(n)],
            "item": "i",
            "domain": np.where(np.arange(n) < n // 4, "book", "film"),
            "candidates": 100,
            "history": rng.integers(1, 60, n),
            "overlap": rng.random(n) < 0.5,
            "popularity": rng.integers(0, 50, n),
        }
    )
    rows = []
    for (label, model), mean in ranks_of.items():
        row = Row(label, model, records={2020: {}, 2021: {}})
        row.ranks = {"test": 1 + rng.poisson(mean, size=(seeds, n))}
        rows.append(row)
    return Results("shop", rows, {"test": targets})


MODELS = {
    ("TEMA", "TEMA"): 4, ("twin", "TEMA"): 9, ("SASRec", "SASRec"): 9, ("Pop", "Pop"): 30,
}  # fmt: skip


def test_the_summary():
    found = results(MODELS)
    summary = found.summary([("ndcg", 10), ("hit", 5)])
    assert list(summary["slice"].unique()) == ["overall", "macro", "book", "film"]
    line = summary.set_index(["model", "slice", "metric"])
    macro = line.loc["TEMA", "macro", "hit@5"]
    domains = [line.loc["TEMA", name, "hit@5"]["mean"] for name in ("book", "film")]
    assert macro["mean"] == pytest.approx(sum(domains) / 2) and macro["targets"] == 400
    ranks = found.rows[0].ranks["test"]
    by_domain = [ranks[:, :100] <= 5, ranks[:, 100:] <= 5]
    of_seeds = np.mean([hits.mean(axis=1) for hits in by_domain], axis=0)
    assert macro["std"] == pytest.approx(of_seeds.std(ddof=1))
    assert macro["low"] < macro["mean"] < macro["high"] and math.isnan(macro["p_alone"])
    tema = line.loc["TEMA", "book", "hit@5"]
    hits = found.rows[0].ranks["test"][:, :100] <= 5
    assert tema["mean"] == pytest.approx(hits.mean()) and tema["targets"] == 100
    by_seed = hits.mean(axis=1)
    assert tema["std"] == pytest.approx(abs(by_seed[0] - by_seed[1]) / math.sqrt(2))
    assert tema["low"] < tema["mean"] < tema["high"] and tema["seeds"] == 2
    assert set(summary["reference"]) == {"SASRec"}
    assert line.loc["TEMA", "overall", "ndcg@10"]["better"]
    assert not line.loc["Pop", "overall", "ndcg@10"]["better"]  # other, but not better
    assert line.loc["Pop", "overall", "ndcg@10"]["p"] < 0.05
    assert math.isnan(line.loc["SASRec", "overall", "ndcg@10"]["p"])
    assert not line.loc["twin", "overall", "ndcg@10"]["better"]


def test_a_mark_holds_over_seeds_too():
    """With many users a test over users alone tells the seeds of one model apart."""
    found = results({("TEMA", "TEMA"): 6, ("SASRec", "SASRec"): 8}, n=4000, seeds=3)
    assert found.summary([("ndcg", 10)])["better"][0]
    ours, theirs = (row.ranks["test"] for row in found.rows)
    ours[2], theirs[2] = theirs[2].copy(), ours[2].copy()  # one seed the other way round
    line = found.summary([("ndcg", 10)]).iloc[0]
    assert line["p"] < 0.001 and line["mean"] > found.rows[1].values("ndcg", 10).mean()
    assert not line["better"]


def test_all_cells_that_a_table_can_mark_are_one_family():
    """Holm's procedure by its definition, over metrics, slices and rows of the printed table."""
    found = results({**MODELS, ("close", "TEMA"): 8.3}, n=800)
    metrics = [(name, k) for k in (5, 10) for name in ("hit", "ndcg", "mrr")]
    summary = found.summary(metrics, untested=[("ndcg", 20)])
    alone, shown = {}, [("hit", 10), ("ndcg", 10), ("mrr", 10)]
    for metric, k in shown:
        for name, mask in found.slices.items():
            users = {row.label: row.values(metric, k)[:, mask].mean(axis=0) for row in found.rows}
            best = max(("SASRec", "Pop"), key=lambda label: users[label].mean())
            for label in set(users) - {best}:
                p = stats.ttest_rel(users[label], users[best]).pvalue
                alone[label, name, f"{metric}@{k}"] = float(p)
    assert len(alone) == 4 * 3 * 3
    # A hypothesis is rejected at the level p if all of smaller p-values are: the largest of them.
    wanted, smaller = {}, []
    for place, (cell, p) in enumerate(sorted(alone.items(), key=lambda item: item[1])):
        smaller.append(p * (len(alone) - place))
        wanted[cell] = min(1.0, max(smaller))
    lines = summary.set_index(["model", "slice", "metric"])
    corrected = lines["p"].dropna()
    assert corrected.to_dict() == pytest.approx(wanted) and len(corrected) == len(wanted)
    told = lines["p_alone"].dropna()
    assert {cell: told[cell] for cell in alone} == pytest.approx(alone)
    assert len(told) == 4 * 3 * 7  # of the other metrics too
    marked = lines[lines["better"]]
    assert len(marked) and (marked["p"] < 0.05).all()
    # A column alone would have marked more.
    columns = {cell[1:] for cell in alone}
    by_column = 0
    for column in columns:
        ps = sorted(p for cell, p in alone.items() if cell[1:] == column)
        by_column += sum(
            max(p * (4 - i) for i, p in enumerate(ps[: n + 1])) < 0.05 for n in range(4)
        )
    assert by_column > (corrected < 0.05).sum()
    assert "Holm-corrected over all 36 tests of this table" in note(summary, None)


def test_rows_of_a_study_of_overlap_are_compared_at_their_share():
    mean = {("TEMA", 0.25): 9, ("SASRec", 0.25): 14, ("TEMA", 1.0): 4, ("SASRec", 1.0): 3}
    names = {(f"{model}, overlap {share:g}", model): m for (model, share), m in mean.items()}
    found = results(names)
    for row, (_, share) in zip(found.rows, mean, strict=True):
        row.keys = {"overlap_ratio": share}
    summary = found.summary([("ndcg", 10)])
    line = summary[summary["slice"] == "overall"].set_index("model")
    assert line.loc["TEMA, overlap 0.25", "reference"] == "SASRec, overlap 0.25"
    assert line.loc["TEMA, overlap 0.25", "better"] and not line.loc["TEMA, overlap 1", "better"]
    users = [row.values("ndcg", 10).mean(axis=0) for row in found.rows]
    assert line.loc["TEMA, overlap 0.25", "p_alone"] == paired_p(users[0], users[1])
    assert summary["p"].notna().sum() == 2 * 3  # of all shares and slices, corrected together
    text = markdown(summary)
    assert "of each share" in text and "at the same share" in text
    assert text.splitlines()[2].count("**") + text.splitlines()[3].count("**") == 2 * 4


def test_a_table_says_when_it_has_few_seeds_or_no_reference():
    found = results(MODELS, seeds=3)
    summary = found.summary([("ndcg", 10)])
    assert "seeds moves the means" not in note(summary, None)
    found.rows[1].ranks["test"] = found.rows[1].ranks["test"][:1]
    assert "twin is of fewer than 3 seeds" in note(found.summary([("ndcg", 10)]), None)
    assert "All rows are of fewer than 3" in note(results(MODELS).summary([("ndcg", 10)]), None)
    found.reference = "LLM4CDSR"
    alone = note(found.summary([("ndcg", 10)]), "LLM4CDSR")
    assert "Nothing is tested against LLM4CDSR: there is no run of it yet" in alone


def test_a_table_without_baselines_marks_nothing():
    summary = results({("TEMA", "TEMA"): 3, ("LLM4CDSR", "LLM4CDSR"): 4}).summary([("ndcg", 10)])
    assert summary["p"].isna().all() and not summary["better"].any()
    assert "Nothing is tested against a baseline" in note(summary, None)


def test_a_table_says_how_many_tests_it_makes():
    name = {("SASRec", "SASRec"): 3}
    alone = note(results(name).summary([("ndcg", 10)]), None)
    assert alone.endswith(
        "Nothing is tested: no row has a partner to be compared with, target by target."
    )
    two = results(name | {("TEMA", "TEMA"): 4}).summary([("ndcg", 10)])
    few = two.iloc[
        [int(two["p"].notna().to_numpy().argmax()), int(two["p"].isna().to_numpy().argmax())]
    ]
    assert "Holm-corrected over the one test of this table" in note(few, None)


def test_groups_cover_every_target_once():
    for buckets in results(MODELS).groupings.values():
        assert (sum(mask.astype(int) for mask in buckets.values()) == 1).all()


def test_a_report_says_what_its_protocol_and_its_thirds_are():
    found = results(MODELS)
    keys = {"candidates": "in_domain", "exclude_history": "auto", "eval_args": {"mode": "full"}}
    entries = {row.label: {"keys": keys} for row in found.rows}
    stated = {"dataset": "shop", "content": "0" * 64, "entries": entries}
    for row in found.rows:  # trained for one domain after the other, two seeds
        row.records = {
            (seed, domain): {"exclude_history": True, "left_out": {"test": n, "valid": 9}}
            for seed in (2020, 2021)
            for domain, n in (("book", 2), ("film", 5))
        }
    text = "\n".join(facts(found, stated))
    assert "domain, without the user's past ones (exclude_history auto)" in text
    assert "7 more targets, which their users had before, are left out" in text
    popularity = found.targets["test"]["popularity"].to_numpy()
    low = popularity[found.groupings["popularity"]["least popular third"]]
    third = f"least popular third: {len(low)} targets of 0 to {low.max()} training events; middle"
    assert third in text and (popularity <= low.max()).sum() == len(low)
    for row in found.rows:
        row.records = {(2020, ""): {"exclude_history": False, "left_out": {"test": 0}}}
    text = "\n".join(facts(found, stated))
    assert "the user's past ones among them (exclude_history auto)" in text
    assert "left out" not in text
    keys["eval_args"] = {"mode": "uni100"}
    assert "100 sampled items of the target's domain, none of the user's own" in "\n".join(
        facts(found, stated)
    )


def test_tables():
    summary = results(MODELS).summary([("ndcg", 10), ("hit", 10), ("hit", 20)])
    text = markdown(summary)
    lines = text.splitlines()
    assert len(lines) == 2 + 4 + 2 and lines[-1] == note(summary, None)
    assert len({line.count(" | ") for line in lines[:6]}) == 1
    assert "**" in lines[2] and "\\*" in lines[2] and "hit@20" not in lines[0]
    best = summary[summary["metric"] == "ndcg@10"].groupby("slice")["mean"].max()
    assert all(f"**{value:.4f} ±" in text for value in best)
    paper = latex(summary, "On shop_1 & 50 %")
    for part in (r"\toprule", r"\multicolumn{2}{c}{book}", r"shop\_1 \& 50 \%", r"\underline{"):
        assert part in paper
    body = [line for line in paper.splitlines() if line.startswith(("TEMA", "Pop", "SASRec"))]
    assert {line.count(" & ") for line in body} == {9} and body[0].count("$^{*}$") == 6
    assert body[0].startswith("TEMA & 2 & ") and body[0].count(r"$\pm$") == 8
    assert not {"±", "≤"} & set(paper)
    frame = pd.read_csv(io.StringIO(csv_text(summary)))
    assert len(frame) == 4 * 4 * 3 and np.allclose(frame["mean"], summary["mean"], rtol=1e-14)
