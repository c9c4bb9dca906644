"""Arguments of a benchmark: what they come to, and what is refused."""

from pathlib import Path

import pytest

from recbole_tema.benchmark.command import parse, seeds_of
from recbole_tema.benchmark.spec import Entry, Spec, domains_of
from recbole_tema.benchmark.tuning import space_of, tuned
from recbole_tema.benchmark.worker import read_curve
from recbole_tema.cli import main
from recbole_tema.config.files import properties_dir
from recbole_tema.config.keys import general_keys, keys_by_model
from recbole_tema.errors import ConfigError, DataError
from tests.recbole_tema.benchmark.test_command import words

pytestmark = pytest.mark.long


@pytest.mark.parametrize(
    "more, says",
    [
        ({"models": "TEMA,Pop,TEMA"}, "TEMA more than once"),
        ({"models": ","}, "names no model"),
        ({"models": "TEMA,SASREC"}, "did you mean SASRec"),
        ({"models": "TEMA", "seeds": "0"}, "--seeds is 0"),
        ({"models": "TEMA", "seeds": "x"}, "--seeds is 'x'"),
        ({"models": "TEMA", "seeds": "2020"}, "write --seeds=2020,\n"),
        ({"models": "TEMA", "seeds": "3,3"}, "a seed more than once"),
        ({"models": "TEMA", "jobs": "-1"}, "--jobs is '-1'"),
        ({"models": "TEMA", "job": "2"}, "did you mean jobs"),
        ({"models": "TEMA", "epoch": "2"}, "epochs"),
        ({"models": "TEMA", "seeds": "5000000000,"}, "seed is 5000000000 (of --seeds); allowed:"),
        ({"models": "TEMA", "seed": "1"}, "give --seeds"),
        ({"models": "TEMA", "TEMA.seed": "1"}, "--TEMA.seed is of single runs; give --seeds"),
        ({"models": "Pop,TEMA", "TEMA.candidates": "all"}, "ranked alike; give --candidates"),
        ({"models": "Pop,TEMA", "Pop.val_interval": "{timestamp: '[4,inf)'}"}, "ranked alike"),
        ({"models": "Pop,TEMA", "TEMA.target_domain": "heart"}, "give --target_domain"),
        ({"models": "TEMA,Pop", "target_domain": "flim"}, "is 'flim' (command line); allowed:"),
        ({"models": "TEMA", "SASRec.n_layers": "1"}, "'SASRec' is none of --models"),
        ({"models": "TEMA", "TEMA.n_layer": "1"}, "n_layers"),
        ({"models": "Pop,TEMA", "TEMA.fusion": "gats"}, "(model TEMA)"),
        (
            {"models": "TEMA", "metrics": "['ItemCoverage']", "valid_metric": "ItemCoverage@10"},
            "ranks alone",
        ),
        ({"models": "TEMA", "dataset": "nosuch"}, "nosuch"),
    ],
)  # fmt: skip
def test_refused(small_root, tmp_path, capsys, more, says):
    assert main(words(small_root, tmp_path / "results", **more)) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1
    assert not (tmp_path / "results" / "runs").exists()


@pytest.mark.parametrize("line, says", [("seed: 7", "--seeds"), ("dataset: tiny", "--dataset")])
def test_keys_of_single_runs_are_refused_in_files_too(small_root, tmp_path, capsys, line, says):
    (tmp_path / "keys.yaml").write_text(line + "\n")
    text = words(small_root, tmp_path / "r", models="TEMA,Pop", config_files=tmp_path / "keys.yaml")
    assert main(text) == 2
    said = capsys.readouterr().err
    assert "keys.yaml'), which is of single runs; give " + says in said


def test_files_of_single_runs_that_say_the_same_are_taken(small_root, tmp_path):
    lines = [
        "model: Pop",
        "dataset: genre-small",
        "seed: ~",
        "nproc: 1",
        "resume: true",
        "learning_rate: 0.25",
    ]
    (tmp_path / "keys.yaml").write_text("\n".join([*lines, "checkpoint_dir: here"]))
    more = {"models": "TEMA,Pop", "config_files": str(tmp_path / "keys.yaml")}
    spec, _, _ = parse(arguments(small_root, **more))
    assert spec.keys["learning_rate"] == 0.25
    assert not {"model", "dataset", "seed", "nproc", "resume", "checkpoint_dir"} & set(spec.keys)


def test_domains_of_a_file_that_is_not_utf8(tmp_path):
    (tmp_path / "d.inter").write_text("user_id:token\titem_id:token\n1\t1\n")
    (tmp_path / "d.item").write_bytes("item_id:token\tdomain:token\n1\tcafé\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"d\.item, line 2: not UTF-8"):
        domains_of(tmp_path, "d", {})


def arguments(root, **more):
    return dict(w[2:].split("=", 1) for w in words(root, "r", **more) if "hidden_size" not in w)


def test_ablations_are_the_switches_that_change_something(small_root, tiny_root):
    spec, _, _ = parse(arguments(small_root, ablation="TEMA"))
    assert spec.reference == "TEMA" == spec.entries[0].label and not spec.entries[0].keys
    names = {entry.label: entry.keys for entry in spec.entries[1:]}
    assert names["TEMA without intra-domain attention"] == {"use_intra": False}
    assert "TEMA without image" not in names  # there are none
    spec, _, _ = parse(arguments(tiny_root, dataset="bare", ablation="TEMA"))
    assert not any("tag" in entry.label or "text" in entry.label for entry in spec.entries)
    spec, _, _ = parse(arguments(small_root, ablation="LLM4CDSR"))
    assert [entry.keys for entry in spec.entries] == [
        {}, {"alpha": 0}, {"beta": 0}, {"alpha": 0, "beta": 0},
    ]  # fmt: skip


def test_overlaps(small_root):
    spec, _, _ = parse(arguments(small_root, overlap="1,0.5", models="TEMA,SASRec"))
    assert [(entry.model, entry.keys["overlap_ratio"]) for entry in spec.entries] == [
        ("TEMA", 0.5), ("TEMA", 1.0), ("SASRec", 0.5), ("SASRec", 1.0),
    ]  # fmt: skip
    for text in ("", "2", "x", "0.5,0.50"):
        with pytest.raises(ConfigError, match="--overlap is"):
            parse(arguments(small_root, overlap=text))
    with pytest.raises(ConfigError, match="no variants of 'SASRec'"):
        parse(arguments(small_root, ablation="SASRec"))


def test_seeds():
    assert seeds_of("3") == [2020, 2021, 2022]
    assert seeds_of("7,5") == [7, 5] and seeds_of("2021,") == [2021]


def test_a_curve_of_a_killed_run(tmp_path):
    lines = ['{"epoch": 0, "valid": 0.1, "seconds": 1}', '{"epoch": 1, "valid": 0.2, "seconds": 2}']
    path = tmp_path / "curve.jsonl"
    path.write_text("\n".join([*lines, lines[1].replace("0.2", "0.3"), '{"epoch": 2, "va']))
    assert [point["valid"] for point in read_curve(path)] == [0.1, 0.3]


def test_spaces_are_of_keys_that_models_have(tmp_path):
    for path in (properties_dir() / "hyper").glob("*.yaml"):
        space = space_of(path.stem)
        known = keys_by_model().get(path.stem, set()) | general_keys()
        assert set(space) <= known, path
    with pytest.raises(ConfigError, match="given and searched"):
        spec = Spec("x", Path(), (Entry("BPR", "BPR"),), (1,), {"learning_rate": 1})
        tuned(tmp_path, spec, {"dataset": "x", "content": "", "entries": {}}, 1, 1, print)
