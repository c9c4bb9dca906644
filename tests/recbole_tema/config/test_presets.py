"""Presets: their layer, what they refuse, what they require, what `--help` says of them."""

import json
import re
import shutil

import pytest
import yaml

from recbole_tema import run_recbole_tema
from recbole_tema.benchmark.command import parse
from recbole_tema.benchmark.command import run as benchmark
from recbole_tema.cli import main
from recbole_tema.config.files import load_yaml, properties_dir
from recbole_tema.config.keys import idle_keys
from recbole_tema.config.presets import REQUIREMENTS, names_of, preset_names, read_preset
from recbole_tema.config.registry import OUR_MODELS
from recbole_tema.config.tema_config import TemaConfig
from recbole_tema.config.validation import check_arguments
from recbole_tema.data.schema import check_required
from recbole_tema.errors import ConfigError, DataError
from recbole_tema.help_text import help_text
from recbole_tema.quick_start import evaluate_checkpoint, load_model
from recbole_tema.trainer.checkpoint import run_name
from tests.recbole_tema.config.test_files import write_yaml


@pytest.fixture
def presets(tmp_path, monkeypatch):
    """A function that writes presets into a copy of ``properties``, which is read in its place."""
    folder = tmp_path / "properties"
    shutil.copytree(properties_dir(), folder)
    for module in ("files", "presets", "keys"):
        monkeypatch.setattr(f"recbole_tema.config.{module}.properties_dir", lambda: folder)

    def add(**files):
        for name, text in files.items():
            (folder / "preset" / f"{name}.yaml").write_text(f"# About {name}.\n{text}\n")
        return folder

    return add


# Precedence


def test_a_preset_lies_over_the_files_of_defaults_and_under_all_that_is_given(presets, tmp_path):
    folder = presets(
        mine="learning_rate: 0.5\nstopping_step: 50\nepochs: 50\nseed: 50\nMAX_ITEM_LIST_LENGTH: 50"
    )
    (folder / "dataset" / "shop.yaml").write_text("stopping_step: 7\nweight_decay: 0.25\n")
    path = write_yaml(tmp_path / "a.yaml", "preset: mine\nepochs: 3\nseed: 3\n")
    config = TemaConfig("TEMA", "shop", [path], {"seed": 4}, {"MAX_ITEM_LIST_LENGTH": "5"})
    keys = ("learning_rate", "stopping_step", "epochs", "seed", "MAX_ITEM_LIST_LENGTH")
    assert [config[key] for key in keys] == [0.5, 50, 3, 4, 5]
    assert config["weight_decay"] == 0.25, "of the dataset's file, which the preset says nothing of"
    assert config["preset"] == ["mine"] and config.sources["learning_rate"] == "preset 'mine'"
    plain = TemaConfig("TEMA", "shop")
    assert plain["preset"] is None and plain["stopping_step"] == 7


def test_presets_join_and_parts_of_eval_args_with_them(presets):
    presets(
        a="eval_args: {mode: uni100}\nepochs: 3", b="eval_args: {order: TO}\nseed: 3\nepochs: 3"
    )
    config = TemaConfig("SASRec", "x", cmd_config_dict={"preset": "a,b"})
    assert config["eval_args"]["mode"] == {"valid": "uni100", "test": "uni100"}
    assert config["eval_args"]["order"] == "TO" and config["seed"] == 3
    over = {"preset": ["a"], "eval_args": {"mode": "full"}}
    assert TemaConfig("SASRec", "x", config_dict=over)["eval_args"]["mode"]["test"] == "full"


def test_keys_of_one_dataset_lie_over_a_presets_own(presets):
    presets(mine="alpha: 0.5\nbeta: 0.5\ndatasets:\n  shop: {beta: 2}")
    given = {"preset": "mine"}
    for dataset, beta in (("shop", 2), ("other", 0.5)):
        config = TemaConfig("LLM4CDSR", dataset, config_dict=given)
        assert (config["alpha"], config["beta"]) == (0.5, beta)


def test_a_preset_of_one_model_chooses_it(presets):
    presets(mine="model: LLM4CDSR")
    assert TemaConfig(dataset="x", config_dict={"preset": "mine"})["model"] == "LLM4CDSR"


@pytest.mark.parametrize("name", [n for n in preset_names() if n.endswith(("paper", "official"))])
def test_what_no_paper_has_stays_off_whatever_the_defaults_become(name):
    """What this package adds to both models, which a preset of a paper has to name itself."""
    added = {"repeat_bias": False, "label_smoothing": 0.0, "ema_decay": 0.0}
    added |= {"cross_attention_weight": 0.0, "domain_adapter": 0}
    preset = read_preset(name)
    keys = load_yaml(properties_dir() / "model" / f"{preset.model}.yaml")
    idle = {"repeat_bias", "label_smoothing"} if preset.keys.get("loss_type") == "BCE" else set()
    added = {key: off for key, off in added.items() if key in keys and key not in idle}
    assert {key: preset.keys.get(key) for key in added} == added


# What is refused


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("tema-papr", "unknown preset 'tema-papr'; did you mean tema-paper"),
        ("slow,quick", "epochs is 300 in 'slow' and 3 in 'quick'; leave one of them out"),
        ("full,sampled", "eval_args.mode is 'full' in 'full' and 'uni100' in 'sampled'"),
        ("ours,theirs", "model is 'TEMA' in 'ours' and 'LLM4CDSR' in 'theirs'"),
        ("theirs", "preset 'theirs' is for LLM4CDSR, and the model is TEMA; leave it out, or"),
        ("wrong", "unknown key 'epoch' (preset 'wrong') for model TEMA; did you mean epochs"),
        ("worse", "epochs is 'many' (preset 'worse'); allowed: an integer >= 0"),
        ("needy", "requires is ['photos']; allowed: tags, text, images"),
        ("rows", "benchmark is {'jobs': 2}; allowed: seeds, tune"),
        (3, "preset is 3 (config_dict); allowed: names parted by commas"),
    ],
)
def test_refused_in_one_line(presets, given, says):
    presets(
        slow="epochs: 300", quick="epochs: 3", full="eval_args: {mode: full}",
        sampled="eval_args: {mode: uni100}", ours="model: TEMA", theirs="model: LLM4CDSR",
        wrong="epoch: 3", worse="epochs: many", needy="requires: [photos]",
        rows="benchmark: {jobs: 2}",
    )  # fmt: skip
    sources = {"preset": "config_dict"}
    for refuse in (
        lambda: TemaConfig("TEMA", "x", config_dict={"preset": given}),
        lambda: check_arguments("TEMA", "ml-100k-genre", {"preset": given}, sources),
    ):
        with pytest.raises(ConfigError, match=re.escape(says)) as error:
            refuse()
        assert "\n" not in str(error.value)


def test_names_may_come_as_text_or_list():
    assert names_of("a, b,a,") == names_of(["a", " b", "a"]) == ["a", "b"]
    assert names_of(None) == names_of("") == names_of("None") == names_of("~") == []


def test_a_preset_that_another_model_runs_by_is_refused_before_torch_is_loaded(capsys):
    assert main(["--preset=tema-paper", "--model=SASRec"]) == 2
    assert "preset 'tema-paper' is for TEMA, and the model is SASRec" in capsys.readouterr().err


# What they require


@pytest.mark.parametrize("part", REQUIREMENTS)
def test_what_a_dataset_lacks_is_told_with_its_command(presets, tmp_path, part):
    presets(mine=f"requires: [{part}]")
    (tmp_path / "shop.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\n")
    (tmp_path / "shop.item").write_text("item_id:token\tdomain:token\n")
    needed = REQUIREMENTS[part]
    command = needed.command.replace("NAME", "shop")
    with pytest.raises(DataError, match=rf"'mine' requires {needed.words}.*{re.escape(command)}"):
        check_required(tmp_path, "shop", {"preset": ["mine"]})
    if needed.switch:
        check_required(tmp_path, "shop", {"preset": ["mine"], needed.switch: False})
    with open(tmp_path / f"shop.{needed.suffix}", "w") as file:
        file.write(f"any_id:token\t{needed.field}:token\n")
    check_required(tmp_path, "shop", {"preset": ["mine"]})


def test_the_commands_that_make_what_is_required_are_commands():
    from dataset_tools.cli import main as tools

    for needed in REQUIREMENTS.values():
        words = needed.command.partition("dataset_tools ")[2].split()
        command = tools.commands[words[0]]
        options = {flag for one in command.params for flag in one.opts}
        if words[0] == "convert":
            options = {flag for one in command.commands[words[1]].params for flag in one.opts}
        assert {word for word in words if word.startswith("--")} <= options


def test_a_run_and_a_benchmark_end_before_training_where_something_is_lacking(
    presets, settings, tmp_path
):
    presets(mine="requires: [images]")
    says = "requires images, and .*tiny.itemimage is not there; make them by .* clip tiny --images"
    with pytest.raises(DataError, match=says):
        run_recbole_tema("TEMA", "tiny", config_dict={**settings, "preset": "mine"})
    words = {"models": "Pop,TEMA@mine", "dataset": "tiny", "data_path": settings["data_path"]}
    with pytest.raises(DataError, match=says):
        benchmark({**words, "results_dir": str(tmp_path / "results")})
    assert not (tmp_path / "results").exists()


# Runs and checkpoints


def test_a_checkpoint_needs_the_preset_no_more(presets, settings, tmp_path):
    folder = presets(mine="hidden_size: 8\nn_heads: 4\neval_args: {mode: uni5}", few="topk: [1, 3]")
    keys = {k: v for k, v in settings.items() if k != "hidden_size"}
    given = {**keys, "epochs": 1, "preset": "mine"}
    found = run_recbole_tema("TEMA", "tiny", config_dict=given)
    spelt = {**keys, "epochs": 1, "hidden_size": 8, "n_heads": 4, "eval_args": {"mode": "uni5"}}
    names = [run_name(TemaConfig("TEMA", "tiny", config_dict=keys)) for keys in (given, spelt)]
    assert names[0] == names[1], "it is the run of these keys, so --resume finds it by either"

    (folder / "preset" / "mine.yaml").unlink()
    config, _, model = load_model(found["model_file"])
    assert model.hidden_size == 8 and config["n_heads"] == 4
    metrics = evaluate_checkpoint(found["model_file"], phases=["test"])["test"]
    assert metrics == dict(found["test_result"])
    metrics = evaluate_checkpoint(found["model_file"], {"preset": "few"}, phases=["test"])["test"]
    assert "ndcg@3" in metrics and "ndcg@5" not in metrics


# Benchmarks


def test_a_row_names_its_presets_and_all_rows_share_the_others(presets, tiny_root, tmp_path):
    presets(
        mine="model: TEMA\nfusion: gate", sampled="eval_args: {mode: uni5}",
        honest="eval_groups: [overlap]\nbenchmark: {seeds: 3, tune: 2}",
    )  # fmt: skip
    given = {"models": "TEMA,TEMA@mine,SASRec", "dataset": "tiny", "data_path": str(tiny_root)}
    spec, _, _ = parse({**given, "preset": "sampled,honest"})
    assert [entry.label for entry in spec.entries] == ["TEMA", "TEMA@mine", "SASRec"]
    assert [entry.keys for entry in spec.entries] == [
        *({}, {"preset": ["sampled", "honest", "mine"]}, {}),
    ]
    assert spec.seeds == (2020, 2021, 2022) and spec.keys["preset"] == "sampled,honest"
    from recbole_tema.benchmark.spec import stated

    entries = stated(spec)["entries"]
    assert entries["TEMA@mine"]["keys"]["fusion"] == "gate"
    assert entries["TEMA"]["keys"]["fusion"] == "sum"
    assert entries["TEMA@mine"]["preset"] == ["sampled", "honest", "mine"]
    assert {json.dumps(e["keys"]["eval_args"]) for e in entries.values()} == {
        json.dumps(entries["TEMA"]["keys"]["eval_args"])
    }
    assert parse({**given, "preset": "honest", "seeds": "1"})[0].seeds == (2020,)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"models": "TEMA@targt"}, "'targt' is neither; did you mean target?"),
        ({"models": "SASRec@mine"}, "preset 'mine' is for TEMA, and the model is SASRec"),
        ({"models": "TEMA", "preset": "mine"}, "its row is TEMA@mine in --models"),
        ({"models": "TEMA", "TEMA.preset": "mine"}, "write TEMA@mine"),
        ({"models": "TEMA@slow", "preset": "quick"}, "epochs is 3 in 'quick' and 9 in 'slow'"),
    ],
)
def test_rows_by_presets_that_are_refused(presets, tiny_root, more, says):
    presets(mine="model: TEMA", slow="epochs: 9", quick="epochs: 3")
    with pytest.raises(ConfigError, match=re.escape(says)):
        parse({"dataset": "tiny", "data_path": str(tiny_root), **more})


def test_an_ablation_of_a_model_by_a_preset(presets, tiny_root):
    presets(mine="model: TEMA\nfusion: gate")
    given = {"ablation": "TEMA@mine", "dataset": "tiny", "data_path": str(tiny_root)}
    spec, folder, _ = parse(given)
    assert spec.reference == "TEMA@mine" and folder.name == "tiny-ablation-TEMA@mine"
    assert "TEMA@mine without tags" in [entry.label for entry in spec.entries]
    assert all(entry.keys["preset"] == ["mine"] for entry in spec.entries)


# The files


@pytest.mark.parametrize("name", ["abxi", "llm4cdsr", "per-domain", "honest"])
def test_a_protocol_runs_with_any_model(settings, name):
    keys = {k: v for k, v in settings.items() if k not in ("topk", "valid_metric", "metrics")}
    result = run_recbole_tema("Pop", "tiny", config_dict={**keys, "preset": name}, saved=False)
    found = result["test_result"]
    assert ("mrr" in found) == (name == "abxi"), "without a cut-off"
    assert ("repeat=no/ndcg@10" in found) == (name == "honest")
    assert {"macro/ndcg@10", "ndcg@5"} <= set(found)


def test_seeds_and_trials_of_protocols(tiny_root):
    given = {"models": "Pop,TEMA", "dataset": "tiny", "data_path": str(tiny_root)}
    assert parse({**given, "preset": "abxi"})[0].seeds == (3407, 0, 1, 2, 3)
    assert parse({**given, "preset": "honest"})[0].seeds == (2020, 2021, 2022, 2023, 2024)
    with pytest.raises(ConfigError, match=r"eval_args.mode is 'uni999' in 'abxi' and 'full' in"):
        parse({**given, "preset": "abxi,honest"})
    with pytest.raises(
        DataError, match=r"requires a given split, .*tiny.inter has no column split"
    ):
        check_required(tiny_root / "tiny", "tiny", {"preset": "llmcdsr"})


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_one_of_keys_that_its_models_read(name, caplog):
    for model in [read_preset(name).model] if read_preset(name).model else ["TEMA", "SASRec"]:
        config = TemaConfig(model, "x", config_dict={"preset": name})
        assert config["preset"] == [name]
        assert "without effect" not in caplog.text, "no key of another model"
        assert idle_keys(config.final_config_dict, config.sources, model in OUR_MODELS) == {}


def test_a_presets_key_that_the_user_makes_idle_is_no_mistake(presets, caplog):
    presets(mine="model: LLM4CDSR\nbeta: 1\ntau: 2", other="model: LLM4CDSR\nfusion: sum")
    TemaConfig("LLM4CDSR", "x", config_dict={"preset": "mine", "beta": 0})
    assert "without effect" not in caplog.text
    TemaConfig("LLM4CDSR", "x", config_dict={"preset": "other"})
    assert "keys without effect on LLM4CDSR: fusion (preset 'other')" in caplog.text


def test_a_preset_may_change_another(presets):
    presets(
        first="model: TEMA\nrequires: [text]\nepochs: 5\nseed: 5\ndatasets: {shop: {seed: 6}}",
        second="base: first\nepochs: 7",
    )
    found = read_preset("second", "shop")
    assert (found.model, tuple(found.requires)) == ("TEMA", ("text",))
    assert found.keys == {"epochs": 7, "seed": 6}


def test_help_lists_every_preset_with_its_first_line(tmp_path):
    text = re.sub(r"\s+", " ", help_text("run", "TEMA", "x", tmp_path))
    for name in preset_names():
        path = properties_dir() / "preset" / f"{name}.yaml"
        first = path.read_text().splitlines()[0]
        assert first.startswith("# ") and f" {name} {first[2:]}" in text
        assert yaml.safe_load(path.read_text())
