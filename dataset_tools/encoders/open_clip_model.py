"""CLIP by open_clip: a built-in or own configuration with a tag or a file of weights, or a folder.

open_clip reads a checkpoint with `weights_only`, but repeats without it after a TypeError, which a
prepared file can cause. So each file that is not safetensors is read once before it gets there.
"""

import difflib
import hashlib
import json
import pickle
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from dataset_tools.encoders.towers import Towers, refuse_remote_code
from recbole_tema.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor, device

WEIGHTS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
CONFIG_FILE = "open_clip_config.json"
PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")
MAX_TOKEN_CHARACTERS = 32  # of the longest entry of CLIP's vocabulary


def load(spec: str, where: str, device: "device") -> Towers:
    """The two towers of an open_clip model, float32.

    Raises:
        DataError: unknown model or tag, no such file, weights that hold more than tensors or do
            not fit the model.
    """
    import open_clip
    import torch

    name, weights, preprocessing = _resolve(spec, where)
    refuse_remote_code(spec, open_clip.get_model_config(name))
    model, _, prepare = open_clip.create_model_and_transforms(
        name,
        pretrained=weights,
        precision="fp32",
        device=device,
        weights_only=True,
        require_pretrained=True,
        pretrained_text=False,
        **preprocessing,
    )
    model = model.float().eval()
    tokenizer = open_clip.get_tokenizer(name)
    context = tokenizer.context_length

    def texts(batch: list[str]) -> "tuple[Tensor, int]":
        batch = [_shortened(tokenizer, text) for text in batch]
        n_cut = sum(_n_tokens(tokenizer, text) > context for text in batch)
        return model.encode_text(tokenizer(batch).to(device)), n_cut

    def images(batch: "Tensor") -> "Tensor":
        return model.encode_image(batch.to(device))

    with torch.inference_mode():
        dimension = texts(["a"])[0].shape[-1]
    return Towers(model, dimension, context, texts, prepare, images)


def _resolve(spec: str, where: str) -> tuple[str, str | None, dict]:
    """open_clip's name of the model, its weights (None: they come with the name), preprocessing."""
    import open_clip
    from open_clip.pretrained import download_pretrained_from_hf

    model, _, weights = where.partition(":")
    path = Path(model).expanduser()
    if path.is_dir():
        if weights:
            raise DataError(f"{spec}: a folder brings its weights; use open_clip:{path}")
        _check_folder(spec, path)
        return f"local-dir:{path}", None, {}
    if model == "hf-hub":
        _check_weights(spec, Path(download_pretrained_from_hf(weights)))
        return f"hf-hub:{weights}", None, {}
    if path.suffix == ".json":
        name, preprocessing = _register(spec, path)
        return name, _own_weights(spec, weights), preprocessing
    if model not in open_clip.list_models():
        near = difflib.get_close_matches(model, open_clip.list_models(), n=3, cutoff=0.4)
        near = ", ".join(f"open_clip:{name}:TAG_OR_FILE" for name in near or ["ViT-B-32"])
        raise DataError(f"{spec}: open_clip has no model {model!r}, and no such folder; use {near}")
    if open_clip.is_pretrained_cfg(model, weights):
        config = open_clip.get_pretrained_cfg(model, weights)
        _check_weights(spec, Path(open_clip.download_pretrained(config)))
        return model, weights, {}
    return model, _own_weights(spec, weights, open_clip.list_pretrained_tags_by_model(model)), {}


def _own_weights(spec: str, weights: str, tags: list[str] | None = None) -> str:
    path = Path(weights).expanduser()
    if not weights or not path.is_file():
        known = f"; tags of this model: {', '.join(tags)}" if tags else ""
        raise DataError(
            f"{spec}: no file of weights {weights!r}; use open_clip:MODEL:FILE with a "
            f".safetensors file{known}"
        )
    _check_weights(spec, path)
    return str(path)


def _check_folder(spec: str, folder: Path) -> None:
    if not (folder / CONFIG_FILE).is_file():
        hint = f"; use clip:{folder}" if (folder / "config.json").is_file() else ""
        raise DataError(f"{spec}: {folder} has no {CONFIG_FILE}{hint}")
    files = [file for suffix in WEIGHTS for file in sorted(folder.glob(f"*{suffix}"))]
    if not files:
        raise DataError(f"{spec}: {folder} has no file of weights ({', '.join(WEIGHTS)})")
    for file in files:
        _check_weights(spec, file)


def _check_weights(spec: str, path: Path) -> None:
    """Read a checkpoint that is not safetensors with the unpickler that makes tensors alone."""
    import torch

    if path.suffix not in WEIGHTS:
        raise DataError(f"{spec}: {path} is not of {', '.join(WEIGHTS)}; convert the weights")
    if path.suffix == ".safetensors":
        return
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, TypeError, ValueError, EOFError) as error:
        reason = str(error).split("\n")[0][:200]
        raise DataError(
            f"{spec}: {path} holds more than tensors, or is broken ({reason}); it is not loaded: "
            "save the model's state_dict() as .safetensors"
        ) from None


def _register(spec: str, path: Path) -> tuple[str, dict]:
    """Make a configuration file known to open_clip, under a name that no built-in model has."""
    import open_clip

    if not path.is_file():
        raise DataError(f"{spec}: no configuration file {path}")
    try:
        content = json.loads(path.read_bytes())
        config = content.get("model_cfg", content)
        missing = [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in config]
    except (ValueError, AttributeError, TypeError) as error:
        raise DataError(f"{spec}: {path} is not a JSON object ({error})") from None
    if missing:
        raise DataError(f"{spec}: {path} has no {', '.join(missing)}; it is no open_clip model")
    text = json.dumps(config, sort_keys=True)
    name = f"own-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{name}.json"
        file.write_text(text, encoding="utf-8")
        open_clip.add_model_config(file)
    steps = content.get("preprocess_cfg", {})
    return name, {f"image_{key}": steps[key] for key in PREPROCESSING if key in steps}


def _shortened(tokenizer, text: str) -> str:
    """A very long text without the part that the model cannot read.

    CLIP's own tokenizer takes time with the square of a word's length: minutes for one title of
    50,000 letters.
    """
    limit = 2 * MAX_TOKEN_CHARACTERS * tokenizer.context_length
    return text if len(text) <= limit else tokenizer.clean_fn(text)[:limit]


def _n_tokens(tokenizer, text: str) -> int:
    if hasattr(tokenizer, "encode"):  # CLIP's own; it leaves out the start and end
        return len(tokenizer.encode(text)) + 2
    return len(tokenizer.tokenizer(text, verbose=False)["input_ids"])
