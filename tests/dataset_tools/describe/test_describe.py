"""`describe`: its numbers against pandas, its checks on datasets with one fault each."""

import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from dataset_tools.cli import main
from dataset_tools.convert.engine import engine
from dataset_tools.describe.checks import findings
from dataset_tools.describe.measures import describe
from dataset_tools.describe.text import page, text
from recbole_tema.data.split import SplitRule, read_rule
from tests.support.tiny_dataset import make_dataset

pytest.importorskip("duckdb", reason="the extra convert is not installed")
pytest.importorskip("matplotlib", reason="the extra convert is not installed")


def described(folder, name, work, rule=None):
    work.mkdir()
    with engine(work, "1GB", 1) as database:
        found = describe(database, folder, name, rule)
        found.checks = findings(database, rule or SplitRule())
    return found


@pytest.fixture
def tiny(tmp_path):
    """(folder, events with domain, items) of three domains by pandas."""
    folder = make_dataset(tmp_path, domains=("book", "film", "game"), n_users=50)
    inter = pd.read_csv(folder / "tiny.inter", sep="\t")
    item = pd.read_csv(folder / "tiny.item", sep="\t")
    inter.columns = [c.partition(":")[0] for c in inter.columns]
    item.columns = [c.partition(":")[0] for c in item.columns]
    inter["domain"] = inter["item_id"].map(item.set_index("item_id")["domain"])
    return folder, inter, item


def gini(counts):
    """By its definition: mean difference of all pairs, over twice the mean."""
    counts = np.asarray(counts, float)
    return np.abs(counts[:, None] - counts[None]).mean() / (2 * counts.mean())


def test_tag_weights_by_pandas(tiny, tmp_path):
    folder, _, item = tiny
    given = [[float(w) for w in cell.split()] for cell in item["tag_weights"].fillna("")]
    flat = [weight for row in given for weight in row]
    found = described(folder, "tiny", tmp_path / "a").tag_weights
    assert (found["least"], found["most"]) == (min(flat), max(flat))
    assert found["median"] == pytest.approx(np.median(flat))
    assert found["shares"] == np.mean([abs(sum(row) - 1) < 1e-3 for row in given if row])
    path = folder / "tiny.item"
    head, *rows = path.read_text().replace("0.7", "0.95").splitlines()
    told = [f"{row}\t{'A text.' if place < 9 else ''}" for place, row in enumerate(rows)]
    path.write_text("\n".join([f"{head}\taugmented_text:token_seq", *told, ""]))
    raw = described(folder, "tiny", tmp_path / "b")
    assert raw.tag_weights["shares"] < 1 and "0.95, median" in text(raw)
    assert "; raw scores" in text(raw) and f"augmented_text {9 / len(item):.1%}" in text(raw)


def test_numbers_are_those_of_pandas(tiny, tmp_path):
    folder, inter, item = tiny
    found = described(folder, "tiny", tmp_path / "work")
    for domain, part in [(None, found.whole), *found.domains.items()]:
        mine = inter if domain is None else inter[inter["domain"] == domain]
        all_items = item if domain is None else item[item["domain"] == domain]
        per_user = mine.groupby("user_id").size()
        per_item = mine.groupby("item_id").size()
        assert (part.users, part.items, part.items_used, part.events) == (
            len(per_user), len(all_items), len(per_item), len(mine),
        )  # fmt: skip
        assert part.density == pytest.approx(len(mine) / (len(per_user) * len(per_item)))
        assert part.lengths["mean"] == pytest.approx(per_user.mean())
        assert part.lengths["0.5"] == per_user.quantile(0.5, interpolation="lower")
        assert part.popularity["1"] == per_item.max()
        assert part.gini == pytest.approx(gini(per_item))
        top = per_item.nlargest(-(-len(per_item) // 10)).sum()
        assert part.top_tenth == pytest.approx(top / len(mine))
        assert (part.first, part.last) == (mine["timestamp"].min(), mine["timestamp"].max())
    domains_of = inter.groupby("user_id")["domain"].nunique()
    assert found.overlapping == (domains_of > 1).sum()
    assert found.whole.only_here == (domains_of == 1).sum()
    ordered = inter.sort_values(["user_id", "timestamp"], kind="stable")
    ordered = ordered[ordered["user_id"].map(domains_of) > 1]
    before = ordered.groupby("user_id")["domain"].shift()
    changed = (ordered["domain"] != before)[before.notna()]
    assert found.switches == pytest.approx(changed.mean())
    both = inter.groupby("user_id")["domain"].agg(set)
    assert found.pairs["book & game"] == sum({"book", "game"} <= d for d in both)
    assert sum(n for _, n in found.length_counts[""]) == found.whole.users


def test_the_split_is_the_trainers(tiny, tmp_path):
    from recbole_tema.config.tema_config import TemaConfig
    from recbole_tema.data.preparation import create_dataset

    folder, inter, _ = tiny
    found = described(folder, "tiny", tmp_path / "work")
    config = TemaConfig("TEMA", "tiny", config_dict={"data_path": str(folder.parent)})
    dataset = create_dataset(config, config.model_class)
    lengths = inter.groupby("user_id").size()
    evaluated = (lengths >= 3).sum()
    targets = evaluated + (lengths >= 4).sum()
    assert found.split["train"] == len(inter) - targets == len(dataset.train_sequences.items)
    assert (found.split["evaluated"], found.split["unevaluated"]) == (
        evaluated,
        (lengths < 3).sum(),
    )
    domain_of = inter.set_index("item_id")["domain"].to_dict()
    for phase, targets in found.targets.items():
        rows = dataset.targets(phase).events
        items = dataset.id2token("item_id", dataset.sequences.items[rows])
        assert len(rows) == found.split[phase]
        assert targets == pd.Series(items).map(domain_of).value_counts().to_dict()


def edit(folder, suffix, change):
    path = folder / f"tiny.{suffix}"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(change(lines)) + "\n")


def blank_domain(lines):
    head, cells = lines[0].split("\t"), lines[1].split("\t")
    cells[[c.partition(":")[0] for c in head].index("domain")] = ""
    return [lines[0], "\t".join(cells), *lines[2:]]


FAULTS = {
    "stand more than once": ("item", lambda lines: [*lines, lines[1]]),
    "without a domain": ("item", blank_domain),
    "not in the item table": ("item", lambda lines: [lines[0], *lines[2:]]),
    "without a time": ("inter", lambda lines: [*lines, lines[1].rpartition("\t")[0] + "\t"]),
    "stand twice": ("inter", lambda lines: [*lines, lines[-1]]),
    "order of time in the file": ("inter", lambda lines: [lines[0], *lines[:0:-1]]),
}


@pytest.mark.parametrize("what", FAULTS)
def test_each_fault_is_found(tmp_path, what):
    folder = make_dataset(tmp_path)
    ordered = folder / "tiny.inter"
    frame = pd.read_csv(ordered, sep="\t").sort_values("timestamp:float", kind="stable")
    frame.drop_duplicates().to_csv(ordered, sep="\t", index=False)
    before = described(folder, "tiny", tmp_path / "before")
    assert not [f for f in before.checks if what in f["what"]]
    suffix, change = FAULTS[what]
    edit(folder, suffix, change)
    after = described(folder, "tiny", tmp_path / "after")
    (finding,) = [f for f in after.checks if what in f["what"]]
    assert finding["count"] >= 1 and finding["example"]


def test_one_time_of_two_targets_matters_where_the_order_parts_them(tmp_path):
    folder = tmp_path / "ties"
    folder.mkdir()
    (folder / "ties.item").write_text(
        "item_id:token\tdomain:token\n" + "".join(f"{d}{n}\t{d}\n" for d in "ab" for n in range(6))
    )
    # Of one time are: u1's last two events, of two domains; u2's last two in each domain.
    events = {
        "u1": "a1@1 a2@2 a3@3 b1@1 a4@9 b2@9",
        "u2": "b1@1 b2@1 b3@6 b4@6 a1@5 a2@5 a3@7 a4@8",
    }
    rows = [(user, *e.split("@")) for user, text in events.items() for e in text.split()]
    (folder / "ties.inter").write_text(
        "user_id:token\titem_id:token\ttimestamp:float\n"
        + "".join("\t".join(row) + "\n" for row in rows)
    )

    def users(place, value):
        found = described(folder, "ties", tmp_path / str(place), read_rule(value)).checks
        hits = [f for f in found if f["what"].startswith("users whose validation and test")]
        return [(f["count"], f["example"]) for f in hits]

    assert users(0, None) == [(1, "u1")]
    assert users(1, {"LS": "per_domain"}) == [(1, "u2")]
    assert users(2, {"TO": [6, 8]}) == []


def test_the_command(tiny, tmp_path):
    folder, inter, _ = tiny
    files = {kind: tmp_path / f"out.{kind}" for kind in ("json", "png", "html")}
    words = ["describe", "tiny", "--data_path", str(folder.parent)]
    words += [part for kind, path in files.items() for part in (f"--{kind}", str(path))]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    assert f"{len(inter):,}" in done.output and "test targets" in done.output
    numbers = json.loads(files["json"].read_text())
    assert numbers["whole"]["events"] == len(inter)
    assert files["png"].read_bytes().startswith(b"\x89PNG")
    html = files["html"].read_text()
    assert html.count("<svg") == 2 and "src=" not in html and "http" not in _texts(html)
    edit(folder, "item", FAULTS["stand more than once"][1])
    assert CliRunner().invoke(main, words).exit_code == 1
    missing = CliRunner().invoke(main, ["describe", "nosuch", "--data_path", str(folder.parent)])
    assert missing.exit_code == 2 and "there are: tiny" in missing.stderr


def _texts(html):
    """The page without the names of XML's own namespaces, which are no addresses to fetch."""
    for known in ("http://www.w3.org/", "http://purl.org/", "http://creativecommons.org/"):
        html = html.replace(known, "")
    return html.replace("https://matplotlib.org/", "")


def test_names_cannot_become_markup(tiny, tmp_path):
    folder, _, _ = tiny
    edit(folder, "item", lambda lines: [x.replace("book", "<b>&amp;") for x in lines])
    edit(folder, "inter", lambda lines: [x.replace("book", "<b>&amp;") for x in lines])
    found = described(folder, "tiny", tmp_path / "work")
    text = page(found)
    assert "<b>&amp;<" not in text.replace("&lt;b&gt;&amp;amp;", "")
    start = text.index("<svg")
    ElementTree.fromstring(text[start : text.index("</svg>") + 6])


@pytest.mark.parametrize(
    "text", ["{LS: per_domain}", "{TO: [0.7, 0.15, 0.15]}", "{'TO': [142857280, 142857320]}"]
)
def test_another_split_is_the_trainers_too(tiny, tmp_path, text):
    from dataset_tools.convert.engine import engine
    from dataset_tools.describe.measures import describe
    from dataset_tools.describe.text import facts
    from dataset_tools.options import split_rule
    from recbole_tema.config.tema_config import TemaConfig
    from recbole_tema.data.preparation import create_dataset

    folder, _, _ = tiny
    keys = {"data_path": str(folder.parent), "eval_args": f"{{split: {text}}}"}
    config = TemaConfig("TEMA", "tiny", config_dict=keys)
    dataset = create_dataset(config, config.model_class)
    (tmp_path / "work").mkdir()
    with engine(tmp_path / "work", "256MB", 1) as database:
        found = describe(database, folder, "tiny", split_rule(text))
        train = {u + i for u, i in database.rows("SELECT user, item FROM ev WHERE part = 'train'")}
    items = dataset.id2token("item_id", dataset.train_sequences.items)
    users = dataset.id2token("user_id", dataset.train_sequences.users())
    assert train == {str(u) + str(i) for u, i in zip(users, items, strict=True)}
    assert found.split["train"] == len(items)
    for phase, targets in found.targets.items():
        events = dataset.targets(phase).events
        counts = np.bincount(dataset.item_domain[dataset.sequences.items[events]], minlength=3)
        assert targets == dict(zip(dataset.domain_names, counts[1:].tolist(), strict=True))
        unseen = dataset.split_popularity()[dataset.sequences.items[events]] == 0
        assert found.cold[phase] == unseen.sum()
    line = facts(found)[2]
    assert line.startswith(("leave-one-out in each domain: ", "by time ("))
    assert f"{found.split['train']:,} training events" in line


def test_a_split_that_is_none_is_told_in_one_line(tiny):
    folder, _, _ = tiny
    for value, message in (
        ("{LS: both}", "--split is '{LS: both}'; allowed: {'LS': 'valid_and_test'}"),
        ("{given: split}", "NAME.inter has no column 'split:token'"),
        ("{TO: [1, 2]}", "eval_args.split by time (1, 2) leaves no training event"),
    ):
        words = ["describe", "tiny", "--data_path", str(folder.parent), "--split", value]
        done = CliRunner().invoke(main, words)
        assert done.exit_code == 2 and message in done.output
        assert len(done.output.strip().splitlines()) == 1
