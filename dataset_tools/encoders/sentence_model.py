"""Sentence encoders by sentence-transformers: pooling, length and prompts as the folder says."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from dataset_tools.encoders.towers import Towers, hub_is_offline, local_folder
from recbole_tema.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor, device

NAMESPACE = "sentence_transformers."


def load(spec: str, where: str, device: "device") -> Towers:
    """A sentence encoder; a folder without modules.json gets the mean over its real tokens.

    Raises:
        DataError: no such folder, a folder of another kind, a module that is not one of the
            library's own, or no safetensors.
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging as transformers_logging

    folder = local_folder(spec, where)
    if folder is not None:
        _check_folder(spec, folder)
    transformers_logging.disable_progress_bar()
    model = SentenceTransformer(
        str(folder or where),
        device=str(device),
        trust_remote_code=False,
        local_files_only=folder is not None or hub_is_offline(),
        model_kwargs={"use_safetensors": True},
    )
    model = model.float().eval()
    max_tokens = model.max_seq_length

    def texts(batch: list[str]) -> "tuple[Tensor, int]":
        vectors = model.encode(
            batch, batch_size=len(batch), convert_to_tensor=True, show_progress_bar=False
        )
        return vectors, _count_longer(model.tokenizer, batch, max_tokens)

    with torch.inference_mode():
        dimension = len(texts(["a"])[0][0])
    return Towers(model, dimension, max_tokens, texts)


def _count_longer(tokenizer, batch: list[str], max_tokens: int | None) -> int:
    """Texts of more than `max_tokens` tokens; a token has at least one character."""
    long = [text for text in batch if max_tokens and len(text) > max_tokens - 2]
    if not long or not hasattr(tokenizer, "model_max_length"):
        return 0
    encoded = tokenizer(long, truncation=False, verbose=False)["input_ids"]
    return sum(len(ids) > max_tokens for ids in encoded)


def _check_folder(spec: str, folder: Path) -> None:
    modules = folder / "modules.json"
    if modules.is_file():
        for module in json.loads(modules.read_text(encoding="utf-8")):
            if not str(module.get("type")).startswith(NAMESPACE):
                raise DataError(
                    f"{modules}: module type {module.get('type')!r} is code from outside of "
                    "sentence-transformers; it is not loaded"
                )
        return
    if not (folder / "config.json").is_file():
        raise DataError(f"{spec}: {folder} has neither modules.json nor config.json; name a model")
    kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    if kind == "clip":
        raise DataError(f"{spec}: {folder} holds a CLIP model; use clip:{folder}")
    if not any(folder.glob("*.safetensors")):
        raise DataError(
            f"{spec}: {folder} has no .safetensors file, and pickled weights are not loaded; save "
            "the model in that format"
        )
