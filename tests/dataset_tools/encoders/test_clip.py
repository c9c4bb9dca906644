"""Tiny models, loaded from disk as a user's would be.

What is expected of them is computed by their own library on the model that was saved.
"""

import logging
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from click.testing import CliRunner

from dataset_tools.__main__ import main
from dataset_tools.encoders import text_encoder
from dataset_tools.encoders.loading import BATCH_SIZE, load_encoder
from dataset_tools.enrich import features as clip_features
from recbole_tema.errors import DataError
from tests.support.tiny_clip import (
    POOLINGS,
    TEXTS,
    add_modules,
    check_vectors,
    make_bert,
    open_clip,
    open_clip_steps,
    pictures,
    readable,
    torch,
    transformers,
    unit,
)
from tests.support.word_backend import NAME, write_shop

pytestmark = pytest.mark.long


def encoded(encoder, folder):
    """Vectors of the pictures, from files."""
    files = {str(n): folder / f"{n}.png" for n in range(7)}
    for image, file in zip(pictures(), files.values(), strict=True):
        image.save(file)
    ids, vectors, refused = encoder.images(files, progress=False)
    assert ids == list(files) and not refused
    return vectors


@torch.inference_mode()
def test_clip_by_transformers_gives_the_librarys_own_vectors(clip, tmp_path, caplog):
    folder, model, tokenizer, processor = clip
    encoder = load_encoder(f"clip:{folder}", device="cpu", batch_size=2)
    assert encoder.dimension == 20 and encoder.has_images
    inputs = tokenizer(
        [readable(text) for text in TEXTS],
        padding=True,
        truncation=True,
        max_length=77,
        return_tensors="pt",
    )
    assert inputs["input_ids"].shape[1] == 77
    expected = unit(model.get_text_features(**inputs).pooler_output)
    with caplog.at_level(logging.INFO):
        check_vectors(encoder.texts(TEXTS, progress=False), expected)
    assert encoder.n_cut == 1
    assert [r.message for r in caplog.records if "were cut" in r.message] == [
        "clip tiny-clip: 1 texts are longer than the 77 tokens that it reads and were cut"
    ]
    single = [encoder.texts([text], progress=False)[0] for text in TEXTS]
    check_vectors(np.stack(single), expected)
    alone = [
        model.get_image_features(**processor(images=image, return_tensors="pt")).pooler_output
        for image in (image.convert("RGB") for image in pictures())
    ]
    check_vectors(encoded(encoder, tmp_path), unit(torch.cat(alone)))


@torch.inference_mode()
@pytest.mark.parametrize("weights", ["weights.pt", "open_clip_model.safetensors"])
def test_open_clip_gives_the_librarys_own_vectors(openclip, tmp_path, weights):
    folder, model = openclip
    spec = f"open_clip:{folder / 'tiny.json'}:{folder / weights}"
    encoder = load_encoder(spec, device="cpu", batch_size=2)
    assert encoder.dimension == 24 and encoder.has_images
    assert encoder.name.startswith(f"open_clip tiny.json {weights} (weights sha256 ")
    tokens = open_clip.tokenize([readable(text) for text in TEXTS])
    expected = unit(model.encode_text(tokens))
    check_vectors(encoder.texts(TEXTS, progress=False), expected)
    assert encoder.n_cut == 1
    single = [encoder.texts([text], progress=False)[0] for text in TEXTS]
    check_vectors(np.stack(single), expected)
    prepare = open_clip_steps()
    expected = unit(torch.cat([model.encode_image(prepare(i)[None]) for i in pictures()]))
    check_vectors(encoded(encoder, tmp_path), expected)


@torch.inference_mode()
@pytest.mark.parametrize(
    "form", ["open_clip:{0}", "open_clip:{0}/open_clip_config.json:{0}/weights.pt"]
)
def test_open_clips_own_folders_keep_their_preprocessing(openclip, tmp_path, form):
    folder, model = openclip
    encoder = load_encoder(form.format(folder), device="cpu")
    prepare = open_clip_steps((0.4, 0.5, 0.6), (0.2, 0.3, 0.25), "bilinear")
    expected = unit(torch.cat([model.encode_image(prepare(i)[None]) for i in pictures()]))
    check_vectors(encoded(encoder, tmp_path), expected)
    expected = unit(model.encode_text(open_clip.tokenize(["a red cup"])))
    check_vectors(encoder.texts(["a red cup"], progress=False), expected)


def test_an_architecture_by_name_takes_weights_from_a_file(openclip, tmp_path):
    """A name that open_clip knows; an unknown tag lists the tags there are."""
    folder, model = openclip
    (tmp_path / "tiny-by-name.json").write_bytes((folder / "tiny.json").read_bytes())
    open_clip.add_model_config(tmp_path / "tiny-by-name.json")
    weights = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": weights}, tmp_path / "trained.pt")
    encoder = load_encoder(f"open_clip:tiny-by-name:{tmp_path / 'trained.pt'}", device="cpu")
    with torch.inference_mode():
        expected = unit(model.encode_text(open_clip.tokenize(["a cup"])))
    check_vectors(encoder.texts(["a cup"], progress=False), expected)
    with pytest.raises(DataError, match=r"no file of weights.*tags of this model: .*laion2b_s34b"):
        load_encoder("open_clip:ViT-B-32:no-such-tag")


@torch.inference_mode()
def pooled(model, tokenizer, text, pooling):
    """Sentence-BERT's poolings over the real tokens, written out."""
    inputs = tokenizer([text], truncation=True, max_length=40, return_tensors="pt")
    states = model(**inputs).last_hidden_state[0]
    if pooling == "cls_token":
        return states[0]
    return states.max(0).values if pooling == "max_tokens" else states.mean(0)


@pytest.mark.parametrize("pooling", [*POOLINGS, None])
def test_sentence_folders_pool_as_they_say_and_by_the_mean_where_they_say_nothing(
    tmp_path, pooling
):
    model, tokenizer = make_bert(tmp_path / "bert")
    if pooling:
        add_modules(tmp_path / "bert", "Transformer", "Pooling", "Normalize", pooling=pooling)
    encoder = load_encoder(f"sentence:{tmp_path / 'bert'}", device="cpu", batch_size=2)
    texts = ["a red cup", "tea", "a red cup", "words " * 60, "two words"]
    expected = unit(torch.stack([pooled(model, tokenizer, text, pooling) for text in texts]))
    check_vectors(encoder.texts(texts, progress=False), expected)
    assert encoder.n_cut == 1 and encoder.dimension == 16 and not encoder.has_images


def minilm_pooled(text):
    """Its recipe written out: the mean of the last layer over the real tokens, at most 256."""
    folder = text_encoder.model_folder()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        inputs = tokenizer([text], truncation=True, max_length=256, return_tensors="pt")
        return model(**inputs).last_hidden_state[0].mean(0)


@pytest.mark.skipif(bool(text_encoder.missing_packages()), reason=text_encoder.HOW_TO_GET)
def test_minilm_is_the_packaged_model(caplog):
    texts = ["tea", "heart: Toy Story (1995)", "", "Ünïcode 中文", "a \ud83d", "word " * 255]
    encoder = load_encoder("minilm", "cpu", 3)
    expected = unit(
        torch.stack([minilm_pooled(text.replace("\ud83d", "\ufffd")) for text in texts])
    )
    found = encoder.texts(texts, progress=False)
    check_vectors(found, expected)
    assert encoder.n_cut == 1 and encoder.dimension == 384
    assert encoder.texts(["word " * 254]) is not None and encoder.n_cut == 0  # and its two marks
    assert np.array_equal(encoder.texts(texts, progress=False), found)
    # The name is on the cards of datasets: another one would have their vectors made anew.
    assert encoder.name == "all-MiniLM-L6-v2 (weights sha256 1009370bf5c35b70)"
    with pytest.raises(DataError, match=r"all-MiniLM-L6-v2 reads no images.*clip:"):
        encoder.images({})
    same = load_encoder(f"sentence:{text_encoder.model_folder()}", "cpu")
    check_vectors(same.texts(texts, progress=False), expected)
    assert same.name.split("sha256")[1] == encoder.name.split("sha256")[1]


def test_a_title_of_50000_letters_takes_no_time(openclip):
    folder, model = openclip
    encoder = load_encoder(f"open_clip:{folder}", device="cpu")
    letters = np.random.default_rng(0).choice(list("abcdefghijklmnopqrstuvwxyz"), 50_000)
    begin = time.process_time()
    found = encoder.texts(["".join(letters), "word " * 10_000], progress=False)
    assert time.process_time() - begin < 20 and encoder.n_cut == 2  # whole: minutes
    with torch.inference_mode():
        expected = unit(model.encode_text(open_clip.tokenize(["word " * 10_000])))
    check_vectors(found[1:], expected)


def test_the_name_tells_the_weights_apart(openclip, tmp_path):
    folder, model = openclip
    one = load_encoder(f"open_clip:{folder}", device="cpu").name
    two = load_encoder(f"open_clip:{folder / 'tiny.json'}:{folder / 'weights.pt'}", "cpu").name
    assert str(folder.parent) not in one and one.split("sha256")[1] == two.split("sha256")[1]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state["text_projection"][0, 0] += 1
    torch.save(state, tmp_path / "other.pt")
    other = load_encoder(f"open_clip:{folder / 'tiny.json'}:{tmp_path / 'other.pt'}", "cpu").name
    assert other.split("sha256")[1] != one.split("sha256")[1]


def test_a_model_without_images_says_so(clip, tmp_path):
    folder = tmp_path / "texts-only"
    folder.mkdir()
    for file in clip[0].iterdir():
        if "processor" not in file.name:
            (folder / file.name).write_bytes(file.read_bytes())
    encoder = load_encoder(f"clip:{folder}", device="cpu")
    assert encoder.texts(["tea"], progress=False).shape == (1, 20)
    assert not encoder.has_images
    with pytest.raises(DataError, match=r"clip texts-only reads no.*with preprocessor_config.json"):
        encoder.images({"a": tmp_path / "a.png"})


@pytest.mark.parametrize(("words", "size"), [([], BATCH_SIZE), (["--batch_size", "2"], 2)])
def test_the_command_encodes_texts_and_images_in_batches_of_the_size_asked_for(
    clip, tmp_path, monkeypatch, words, size
):
    dataset = write_shop(tmp_path)
    (tmp_path / "photos").mkdir()
    for place, image in enumerate(pictures()):
        image.save(tmp_path / "photos" / f"f{place}.png")
    sizes = []

    def load(*arguments):
        encoder = load_encoder(*arguments)
        real = encoder.encode_image_batch
        encoder.encode_image_batch = lambda batch: sizes.append(len(batch)) or real(batch)
        assert encoder.batch_size == size
        return encoder

    monkeypatch.setattr(clip_features, "load_encoder", load)
    command = ["clip", NAME, "--data_path", str(tmp_path), "--text_encoder", f"clip:{clip[0]}"]
    command += ["--images", str(tmp_path / "photos"), "--device", "cpu", *words]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    assert sizes == ([2, 2, 2, 1] if size == 2 else [7])
    assert dataset.path("itemimage").is_file() and dataset.path("itemtext").is_file()
    refused = CliRunner().invoke(main, [*command, "--batch_size", "0"])
    assert refused.exit_code == 2 and "'--batch_size': 0 is not in the range" in refused.output


def test_names_on_the_hub_load_from_its_cache_without_a_network(clip, openclip, tmp_path):
    """In a process of its own: the hub's libraries read the environment once."""
    make_bert(tmp_path / "bert")
    names = {"a/clip": clip[0], "a/open": openclip[0], "a/bert": tmp_path / "bert"}
    for name, folder in names.items():
        cached = tmp_path / "home" / "hub" / f"models--{name.replace('/', '--')}"
        (cached / "refs").mkdir(parents=True)
        (cached / "refs" / "main").write_text("0" * 40)
        shutil.copytree(folder, cached / "snapshots" / ("0" * 40))
    script = """
import sys, numpy
from dataset_tools.encoders.loading import load_encoder
for n, spec in enumerate(sys.argv[2:]):
    encoder = load_encoder(spec, "cpu")
    numpy.save(f"{sys.argv[1]}/{n}.npy", encoder.texts(["a red cup", "tea"], progress=False))
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)
    specs = ["clip:a/clip", "open_clip:hf-hub:a/open", "sentence:a/bert"]
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), *specs], check=True, env=environment
    )
    kinds = ("clip", "open_clip", "sentence")
    for n, (kind, folder) in enumerate(zip(kinds, names.values(), strict=True)):
        expected = load_encoder(f"{kind}:{folder}", "cpu").texts(["a red cup", "tea"], False)
        check_vectors(np.load(tmp_path / f"{n}.npy"), expected)
