"""CLIP by open_clip: a built-in or own configuration with a tag or a file of weights, or a folder.

open_clip reads a checkpoint with `weights_only`, but repeats without it after a TypeError, which a
prepared file can cause. So each file that is not safetensors is read once before it gets there.
"""

import difflib
import hashlib
import json
import pickle
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataset_tools.encoders.encoder import Encoder
from recbole_tema.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor, nn

WEIGHTS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")


class OpenClipEncoder(Encoder):
    """The two towers of an open_clip model."""

    has_images = True

    def load(self, source: str, options: dict[str, Any]) -> tuple["nn.Module", int]:
        """See `Encoder`; `source` is MODEL:TAG_OR_FILE, a folder or hf-hub:NAME.

        Raises:
            DataError: unknown model or tag, no such file, or weights that hold more than tensors.
        """
        import open_clip

        name, weights, preprocessing = _resolve(source)
        config = json.dumps(open_clip.get_model_config(name))
        if re.search(r'"trust_remote_code": (?!false|null)', config):
            raise DataError("its configuration sets trust_remote_code; it is not loaded")
        model, _, self._prepare = open_clip.create_model_and_transforms(
            name,
            pretrained=weights,
            weights_only=True,
            require_pretrained=True,
            pretrained_text=False,
            **preprocessing,
        )
        self.tokenizer = open_clip.get_tokenizer(name)
        return model, self.tokenizer.context_length

    def encode_batch(self, texts: list[str]) -> "Tensor":
        return self.model.encode_text(self.tokenizer(texts).to(self.device))

    def count_tokens(self, text: str) -> int:
        if hasattr(self.tokenizer, "encode"):  # CLIP's own; it leaves out the start and end
            return len(self.tokenizer.encode(text)) + 2
        return len(self.tokenizer.tokenizer(text, verbose=False)["input_ids"])

    def prepare_image(self, image: "Image") -> "Tensor":
        return self._prepare(image)

    def encode_image_batch(self, images: "Tensor") -> "Tensor":
        return self.model.encode_image(images.to(self.device))


def _resolve(source: str) -> tuple[str, str | None, dict]:
    """open_clip's name of the model, its weights (None: they come with the name), preprocessing."""
    import open_clip
    from open_clip.pretrained import download_pretrained_from_hf

    model, _, weights = source.partition(":")
    path, file = Path(model).expanduser(), Path(weights).expanduser()
    name, hint = model, ""
    preprocessing: dict[str, Any] = {}
    if path.is_dir():
        if weights:
            raise DataError(f"a folder brings its weights; use open_clip:{path}")
        files = [file for file in sorted(path.iterdir()) if file.suffix in WEIGHTS]
        if not files:
            raise DataError(f"{path} has no file of weights ({', '.join(WEIGHTS)})")
        for file in files:
            _check_weights(file)
        return f"local-dir:{path}", None, {}
    if model == "hf-hub":
        _check_weights(Path(download_pretrained_from_hf(weights)))
        return source, None, {}
    if path.suffix == ".json":
        name, preprocessing = _register(path)
    elif model not in open_clip.list_models():
        near = difflib.get_close_matches(model, open_clip.list_models(), n=3, cutoff=0.4)
        near = ", ".join(f"open_clip:{name}:TAG_OR_FILE" for name in near or ["ViT-B-32"])
        raise DataError(f"open_clip has no model {model!r}, and no such folder; use {near}")
    elif open_clip.is_pretrained_cfg(model, weights):
        config = open_clip.get_pretrained_cfg(model, weights)
        _check_weights(Path(open_clip.download_pretrained(config)))
        return model, weights, {}
    else:
        hint = f"; tags of this model: {', '.join(open_clip.list_pretrained_tags_by_model(model))}"
    if not file.is_file():
        found = f"no file of weights {weights!r}"
        raise DataError(f"{found}; use open_clip:MODEL:FILE with a .safetensors file{hint}")
    _check_weights(file)
    return name, str(file), preprocessing


def _check_weights(path: Path) -> None:
    """Read a checkpoint that is not safetensors with the unpickler that makes tensors alone."""
    import torch

    if path.suffix not in WEIGHTS:
        raise DataError(f"{path} is not of {', '.join(WEIGHTS)}; convert the weights")
    if path.suffix == ".safetensors":
        return
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, TypeError, ValueError, EOFError) as error:
        reason = str(error).split("\n")[0][:200]
        raise DataError(
            f"{path} holds more than tensors, or is broken ({reason}); it is not loaded: "
            "save the model's state_dict() as .safetensors"
        ) from None


def _register(path: Path) -> tuple[str, dict]:
    """Make a configuration file known to open_clip, under a name that no built-in model has."""
    import open_clip

    content = json.loads(path.read_bytes())
    config = content.get("model_cfg", content) if isinstance(content, dict) else {}
    missing = [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in config]
    if missing:
        raise DataError(f"{path} has no {', '.join(missing)}; it is no open_clip model")
    text = json.dumps(config, sort_keys=True)
    name = f"own-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{name}.json"
        file.write_text(text, encoding="utf-8")
        open_clip.add_model_config(file)
    steps = content.get("preprocess_cfg", {})
    return name, {f"image_{key}": steps[key] for key in PREPROCESSING if key in steps}
