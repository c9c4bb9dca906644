"""Configuration text and YAML files: read as RecBole reads them, never run."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from recbole.config import Config

from recbole_tema.config.files import load_yaml, parse_value
from recbole_tema.config.tema_config import TemaConfig
from recbole_tema.errors import ConfigError
from recbole_tema.paths import recbole_dir


def write_yaml(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("-2", -2),
        ("[5, 10]", [5, 10]),
        ("{'LS': 'valid_and_test'}", {"LS": "valid_and_test"}),
        ("0,1", (0, 1)),
        ("TRUE", True),
        ("false", False),
        ("None", None),
        ("none", None),
        ("'12'", "12"),
        ("[0,inf)", "[0,inf)"),
        ("saved/run=3", "saved/run=3"),
        ("", ""),
        ("{1, 2}", "{1, 2}"),
        ("b'x'", "b'x'"),
        ("1 + 1", "1 + 1"),
        ("(" * 500, "(" * 500),
        ("[0,inf]", [0, "inf"]),
        ("[Hit, NDCG]", ["Hit", "NDCG"]),
        ("{inter: [user_id, item_id], item: ~x}", {"inter": ["user_id", "item_id"], "item": "~x"}),
        ("{LS: valid_and_test", "{LS: valid_and_test"),
        ("{a: 1, a: 2}", "{a: 1, a: 2}"),
        ("{mode: uni100, group_by: null}", {"mode": "uni100", "group_by": None}),
        ("{mode: uni100, group_by: None}", {"mode": "uni100", "group_by": None}),
        ("[2020-01-01]", "[2020-01-01]"),
        ("[&a [*a]]", "[&a [*a]]"),
        ("[!!int '']", "[!!int '']"),
        ("{}", {}),
        ("[!!python/object/apply:os.getcwd []]", "[!!python/object/apply:os.getcwd []]"),
        ("[" * 500 + "x" + "]" * 500, "[" * 500 + "x" + "]" * 500),
        *((text, text) for text in ("[" * 51 + "x" + "]" * 51, "[" * 51 + "1" + "]" * 51)),
    ],
)
def test_text_becomes_the_literal_that_it_spells(text, value):
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize("leaf", ["x", 1])
def test_fifty_lists_within_lists_are_a_value_on_every_python(leaf):
    parsed = parse_value("[" * 50 + str(leaf) + "]" * 50)
    for _ in range(50):
        (parsed,) = parsed
    assert parsed == leaf


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=8))
def test_the_text_of_a_literal_is_read_back(value):
    assert parse_value(repr(value)) == value


def test_a_python_tag_in_yaml_is_refused_and_not_run(tmp_path):
    trace = tmp_path / "trace"
    path = write_yaml(
        tmp_path / "a.yaml", f"seed: !!python/object/apply:os.system ['touch {trace}']"
    )
    with pytest.raises(ConfigError, match=r"a\.yaml', line 1: tags .* write plain values"):
        TemaConfig("Pop", "x", config_file_list=[path])
    assert not trace.exists()


def test_yaml_numbers_are_read_as_recbole_reads_them(tmp_path):
    text = "a: 1e-3\nb: 1.5E+2\nc: 7\nd: '1e-3'\ne: .5\nf: 1e5\n"
    path = write_yaml(tmp_path / "a.yaml", text)
    theirs = yaml.load(text, Loader=Config._build_yaml_loader(None))
    assert load_yaml(path) == theirs
    assert theirs["a"] == 0.001


def test_the_global_yaml_loader_stays_as_it_was():
    assert yaml.safe_load("a: 1e-3") == {"a": "1e-3"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("seed: 1\nepochs: [1", "line"),
        ("- seed", "key: value"),
        ("3: 4", "text keys"),
        ("seed: 1\nseed: 2", r"line 2: the key 'seed' stands twice"),
        ("when: 2026-13-45", "month"),
    ],
)
def test_bad_yaml_names_the_file(tmp_path, text, problem):
    path = write_yaml(tmp_path / "bad.yaml", text)
    with pytest.raises(ConfigError, match=problem) as caught:
        load_yaml(path)
    assert "bad.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_or_binary_file_is_named(tmp_path):
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    for name in ("a.yaml", "b.yaml"):
        with pytest.raises(ConfigError, match=name):
            TemaConfig("Pop", "x", config_file_list=[str(tmp_path / name)])


def test_every_yaml_file_of_recbole_can_be_read():
    files = sorted((recbole_dir() / "properties").rglob("*.yaml"))
    assert len(files) > 90
    loader = Config._build_yaml_loader(None)
    for path in files:
        assert load_yaml(path) == (yaml.load(path.read_text(), Loader=loader) or {})
