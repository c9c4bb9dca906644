"""CLIP by transformers: a folder or a name on the hub, weights as safetensors."""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from dataset_tools.encoders.towers import Towers, hub_is_offline, local_folder
from recbole_tema.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor, device

log = logging.getLogger(__name__)

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


def load(spec: str, where: str, device: "device") -> Towers:
    """The two towers of a CLIPModel. A folder without the image processor's file has no images.

    Raises:
        DataError: no such folder, another architecture, no safetensors, or weights are missing.
    """
    from transformers import AutoConfig, AutoTokenizer, CLIPModel
    from transformers.utils import logging as transformers_logging

    folder = local_folder(spec, where)
    if folder is not None:
        _check_folder(spec, folder)
    source = str(folder or where)
    options = {"local_files_only": folder is not None or hub_is_offline()}
    config = AutoConfig.from_pretrained(source, trust_remote_code=False, **options)
    if config.model_type != "clip":
        raise _wrong_architecture(spec, where, config.model_type)
    transformers_logging.disable_progress_bar()  # one bar is enough: that of the texts
    model, info = CLIPModel.from_pretrained(
        source, use_safetensors=True, output_loading_info=True, **options
    )
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise DataError(
            f"{spec}: {len(missing)} of the model's weights are not in its files, e.g. "
            f"{missing[0]}; get the whole model"
        )
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **options)
    model = model.to(device).float().eval()
    max_tokens = min(config.text_config.max_position_embeddings, tokenizer.model_max_length)

    def texts(batch: list[str]) -> "tuple[Tensor, int]":
        inputs = tokenizer(
            batch, padding=True, truncation=True, max_length=max_tokens, return_tensors="pt"
        )
        n_cut = sum(bool(encoding.overflowing) for encoding in inputs.encodings or ())
        ids, mask = (inputs[key].to(device) for key in ("input_ids", "attention_mask"))
        return _vectors(model.get_text_features(input_ids=ids, attention_mask=mask)), n_cut

    towers = Towers(model, config.projection_dim, max_tokens, texts)
    return _with_images(towers, source, folder, device, options)


def _with_images(
    towers: Towers, source: str, folder: Path | None, device: "device", options: dict
) -> Towers:
    from transformers import AutoImageProcessor

    if folder is not None and not any((folder / name).is_file() for name in PROCESSOR_FILES):
        return towers._replace(no_images=f"has no {PROCESSOR_FILES[0]} and reads no images")
    processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=False, **options)

    def prepare(image: "Image") -> "Tensor":
        return processor(images=image, return_tensors="pt")["pixel_values"][0]

    def images(batch: "Tensor") -> "Tensor":
        return _vectors(towers.model.get_image_features(pixel_values=batch.to(device)))

    return towers._replace(prepare=prepare, images=images)


def _vectors(output) -> "Tensor":
    """Projected vectors (B, d): transformers 5 wraps them, earlier ones gave the tensor."""
    return getattr(output, "pooler_output", output)


def _check_folder(spec: str, folder: Path) -> None:
    if not (folder / "config.json").is_file():
        if (folder / "open_clip_config.json").is_file():
            raise DataError(f"{spec}: {folder} is a model of open_clip; use open_clip:{folder}")
        raise DataError(f"{spec}: {folder} has no config.json; name the folder of a CLIP model")
    kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    if kind != "clip":
        raise _wrong_architecture(spec, str(folder), kind)
    if not any(folder.glob("*.safetensors")):
        raise DataError(
            f"{spec}: {folder} has no .safetensors file, and pickled weights are not loaded; save "
            "the model with save_pretrained, or get it in that format"
        )


def _wrong_architecture(spec: str, where: str, kind: str | None) -> DataError:
    return DataError(
        f"{spec}: holds a model of type {kind!r}, not 'clip'; for a sentence encoder use "
        f"sentence:{where}, for other pairs of towers open_clip:MODEL:TAG_OR_FILE"
    )
