"""Tiny models with random weights, saved to disk as a user's would be, and images for them."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", reason="no transformers")
open_clip = pytest.importorskip("open_clip", reason="no open_clip")
Image = pytest.importorskip("PIL.Image", reason="no pillow")
pytest.importorskip("sentence_transformers", reason="no sentence-transformers")

TEXTS = ["a red cup", "tea", "", "a red cup", "Ünïcode 中文 \ud800 half", "two words " * 60]
OPEN_CLIP = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 32,
        "heads": 2,
        "layers": 2,
    },
}


def pictures(n=7):
    """Images of several shapes, one of them grey."""
    rng = np.random.default_rng(0)
    shapes = [(40, 30), (32, 32), (20, 90), (64, 48), (33, 57), (100, 31), (48, 48)]
    made = [
        Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8)) for shape in shapes[:n]
    ]
    made[-1] = made[-1].convert("L")
    return made


def unit(tensor):
    return torch.nn.functional.normalize(tensor.float(), dim=-1).numpy()


def readable(text):
    return text.replace("\ud800", "\ufffd")


def check_vectors(found, expected):
    assert found.dtype == np.float32 and found.shape == expected.shape
    assert np.abs(np.linalg.norm(found, axis=1) - 1).max() < 1e-5
    assert np.abs(found - expected).max() < 1e-5
    assert (found * expected).sum(1).min() >= 0.999999


def byte_letters():
    """The 256 characters that byte-level BPE writes bytes as (GPT-2's table)."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in kept]
    return [chr(byte) for byte in kept] + [chr(256 + n) for n in range(len(rest))]


def make_clip(folder):
    """Save a tiny CLIPModel; returns the model, its tokenizer and its image processor."""
    letters = byte_letters()
    merges = [("t", "e"), ("r", "e"), ("re", "d</w>"), ("c", "u"), ("te", "a</w>")]
    words = letters + [f"{letter}</w>" for letter in letters] + ["".join(pair) for pair in merges]
    words += ["<|startoftext|>", "<|endoftext|>"]
    tokenizer = transformers.CLIPTokenizer(
        vocab={word: n for n, word in enumerate(words)}, merges=merges, model_max_length=77
    )
    ends = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1}
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = transformers.CLIPConfig(
        text_config={
            **small,
            **ends,
            "pad_token_id": len(words) - 1,
            "vocab_size": len(words),
            "num_attention_heads": 2,
            "max_position_embeddings": 77,
        },
        vision_config={**small, "num_attention_heads": 4, "image_size": 32, "patch_size": 8},
        projection_dim=20,
    )
    torch.manual_seed(0)
    model = transformers.CLIPModel(config).eval()
    processor = transformers.CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    for part in (model, tokenizer, processor):
        part.save_pretrained(folder)
    return model, tokenizer, processor


def make_open_clip(folder):
    """Save a tiny open_clip model with both forms of configuration and of weights; returns it."""
    folder.mkdir()
    torch.manual_seed(0)
    model = open_clip.CLIP(**OPEN_CLIP).eval()
    (folder / "tiny.json").write_text(json.dumps(OPEN_CLIP))
    steps = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25], "resize_mode": "shortest"}
    whole = {"model_cfg": OPEN_CLIP, "preprocess_cfg": {**steps, "interpolation": "bilinear"}}
    (folder / "open_clip_config.json").write_text(json.dumps(whole))
    torch.save(model.state_dict(), folder / "weights.pt")
    from safetensors.torch import save_file

    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    return model


def open_clip_steps(mean=None, std=None, interpolation="bicubic"):
    from open_clip.transform import image_transform

    return image_transform(32, False, mean, std, "shortest", interpolation)


BERT_WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "red",
    "cup",
    "tea",
    "two",
    "words",
    "a",
]
POOLINGS = ["cls_token", "mean_tokens", "max_tokens"]


def make_bert(folder):
    """A tiny BERT as a plain folder of transformers; returns model and tokenizer."""
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(BERT_WORDS))
    tokenizer = transformers.BertTokenizer(
        vocab={word: n for n, word in enumerate(BERT_WORDS)}, model_max_length=40
    )
    torch.manual_seed(0)
    model = transformers.BertModel(
        transformers.BertConfig(
            vocab_size=len(BERT_WORDS),
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=40,
        )
    ).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer


def add_modules(folder, *kinds, pooling):
    """What sentence-transformers writes beside a model since its first versions."""
    names = ["", "1_Pooling", "2_Normalize", "3_More"]
    modules = [
        {"idx": n, "name": str(n), "path": names[n], "type": f"sentence_transformers.models.{kind}"}
        for n, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    modes = {f"pooling_mode_{kind}": kind == pooling for kind in POOLINGS}
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 16, **modes})
    )
