"""Encoders of texts and images by their specification, such as `clip:openai/clip-vit-base-patch32`.

    minilm                           all-MiniLM-L6-v2 from its package: texts, no network
    clip:FOLDER_OR_NAME              CLIPModel of transformers, safetensors only
    open_clip:MODEL:TAG_OR_FILE      open_clip; MODEL is a name or a config's .json file
    open_clip:FOLDER                 a folder with open_clip_config.json and its weights
    open_clip:hf-hub:NAME            the same on the hub
    sentence:FOLDER_OR_NAME          any sentence-embedding model: texts

Nothing that comes with a model is executed: no pickle, no remote code.
"""

import difflib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dataset_tools.encoders.text_encoder import (
    DIMENSION,
    HOW_TO_GET,
    MAX_TOKENS,
    MODEL_NAME,
    checked_texts,
    in_batches,
    load_minilm,
    require_packages,
)
from dataset_tools.encoders.towers import Towers, loading, weights_hash
from dataset_tools.images.decoding import DEFAULT_LIMITS, open_image
from recbole_tema.errors import DataError
from recbole_tema.progress import ProgressBar

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

log = logging.getLogger(__name__)

BATCH_SIZE = 64
FORMS = {
    "minilm": "minilm",
    "clip": "clip:FOLDER_OR_NAME",
    "open_clip": "open_clip:MODEL:TAG_OR_FILE",
    "sentence": "sentence:FOLDER_OR_NAME",
}
LOADERS = {  # kind: (module with `load(spec, where, device) -> Towers`, packages it needs)
    "clip": ("dataset_tools.encoders.transformers_clip", ("transformers", "PIL", "torchvision")),
    "open_clip": ("dataset_tools.encoders.open_clip_model", ("open_clip",)),
    "sentence": ("dataset_tools.encoders.sentence_model", ("sentence_transformers",)),
}


class Encoder:
    """Unit vectors of texts and, where the model has an image tower, of images.

    Attributes:
        name: Kind, model and hash of the weights, for the provenance card.
        dimension: Length d of a vector.
        batch_size: Texts or images at once.
        has_images: Whether `images` can be asked.
        n_cut: How many distinct texts of the last call of `texts` were longer than the model reads.
    """

    def __init__(self, label: str, towers: Towers, batch_size: int) -> None:
        self.name = f"{label} (weights sha256 {weights_hash(towers.model)[:16]})"
        self.dimension = towers.dimension
        self.batch_size = batch_size
        self.has_images = towers.prepare is not None
        self.n_cut = 0
        self._label = label
        self._towers = towers

    def texts(self, texts: Sequence[str], progress: bool = True) -> np.ndarray:
        """Vectors (n, d) float32 of norm 1, in the order of the n texts.

        Each distinct text is encoded once, in batches of like length; the same texts give the
        same vectors. What is longer than the model reads is cut; how many, is logged once.

        Raises:
            DataError: something is not a text, the device's memory does not hold a batch, or the
                model gives no finite vectors.
        """
        texts = checked_texts(texts)
        self.n_cut = 0
        if not texts:
            return np.empty((0, self.dimension), np.float32)

        def encode(batch: list[str]) -> np.ndarray:
            with self._computing():
                vectors, n_cut = self._towers.texts(batch)
            self.n_cut += n_cut
            return self._unit(vectors)

        matrix = in_batches(
            texts, encode, self.dimension, self.batch_size, f"{self._label}: texts", progress
        )
        if self.n_cut:
            log.info(
                "%s: %d texts are longer than the %s tokens that it reads and were cut",
                self._label,
                self.n_cut,
                self._towers.max_tokens,
            )
        return matrix

    def images(self, images: "Sequence[Image | str | Path]", progress: bool = True) -> np.ndarray:
        """Vectors (n, d) float32 of norm 1 of n images, in their order.

        Raises:
            DataError: the model has no image tower, a path holds no sound image, or see `texts`.
                `features.image_vectors` leaves out bad images instead.
        """
        self.require_images()
        matrix = np.empty((len(images), self.dimension), np.float32)
        bar = ProgressBar(
            total=len(images), desc=f"{self._label}: images", unit="image", disable=not progress
        )
        with bar:
            for start in range(0, len(images), self.batch_size):
                batch = [self.prepare(i) for i in images[start : start + self.batch_size]]
                matrix[start : start + len(batch)] = self.encode_prepared(batch)
                bar.update(len(batch))
        return matrix

    def require_images(self) -> None:
        """Raise a DataError where the model reads no images."""
        if not self.has_images:
            raise DataError(
                f"{self._label} {self._towers.no_images}; for images use a CLIP model: "
                f"{FORMS['clip']} or {FORMS['open_clip']}"
            )

    def prepare(self, image: "Image | str | Path") -> "Tensor":
        """The input tensor (C, H, W) of one image. Several threads may call it at once.

        Raises:
            DataError: a path holds no sound image.
        """
        if isinstance(image, str | Path):
            path, image = image, open_image(image, DEFAULT_LIMITS)
            if isinstance(image, str):
                raise DataError(f"{path}: {image}; leave the image out")
        return self._towers.prepare(image if image.mode == "RGB" else image.convert("RGB"))

    def encode_prepared(self, tensors: "list[Tensor]") -> np.ndarray:
        """Vectors (B, d) float32 of norm 1 of B tensors from `prepare`: one batch, no more."""
        import torch

        with self._computing():
            vectors = self._towers.images(torch.stack(tensors))
        return self._unit(vectors)

    def _unit(self, vectors: "Tensor | np.ndarray") -> np.ndarray:
        import torch

        vectors = torch.as_tensor(vectors).float()
        vectors = torch.nn.functional.normalize(vectors, dim=-1).cpu().numpy()
        if not np.isfinite(vectors).all():
            raise DataError(f"{self._label}: vectors that are not finite; its weights are bad")
        return vectors

    @contextmanager
    def _computing(self) -> Iterator[None]:
        import torch

        try:
            with torch.inference_mode():
                yield
        except torch.cuda.OutOfMemoryError:
            raise DataError(
                f"{self._label}: a batch of {self.batch_size} does not fit into the memory of the "
                "device; use a smaller batch size (--batch_size of 'clip'), or the device cpu"
            ) from None


def load_encoder(spec: str, device: str = "auto", batch_size: int = BATCH_SIZE) -> Encoder:
    """The encoder that `spec` names (see the head of this module).

    Args:
        spec: The specification.
        device: `auto` (a GPU where there is one), `cpu`, `cuda`, `cuda:1`, ...
        batch_size: Texts or images at once.

    Raises:
        DataError: the specification is unknown, a package or the model is missing, its files are
            unsafe or of another architecture, or there is no such device.
    """
    kind, colon, where = spec.partition(":")
    if kind not in FORMS or (kind != "minilm" and not where) or (kind == "minilm" and colon):
        raise DataError(f"encoder {spec!r} is unknown; {_nearest(spec)}")
    if batch_size < 1:
        raise DataError(f"batch_size is {batch_size}; use 1 or more")
    if kind == "minilm":
        require_packages()
        model, encode = load_minilm(str(find_device(device)))
        return Encoder(MODEL_NAME, Towers(model, DIMENSION, MAX_TOKENS, encode), batch_size)
    module, packages = LOADERS[kind]
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise DataError(f"{spec} needs {', '.join(missing)}, not installed here; run: {HOW_TO_GET}")
    chosen = find_device(device)
    with loading(spec):
        load: Callable[[str, str, Any], Towers] = import_module(module).load
        return Encoder(_label(kind, where), load(spec, where, chosen), batch_size)


def find_device(device: str) -> Any:
    """The torch device; `auto` is the GPU where there is one.

    Raises:
        DataError: no such device here.
    """
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split("\n")[0]
        raise DataError(f"device {device!r} cannot be used ({reason}); use auto or cpu") from None
    return chosen


def _label(kind: str, where: str) -> str:
    """Kind and model without the folders of this machine."""
    parts = [
        Path(part).name if Path(part).expanduser().exists() else part for part in where.split(":")
    ]
    return " ".join([kind, *parts])


def _nearest(spec: str) -> str:
    """What the user may have meant."""
    kind = spec.partition(":")[0].strip().lower().replace("-", "_")
    folder = Path(spec).expanduser()
    if spec and folder.is_dir():
        guess = "sentence" if (folder / "modules.json").is_file() else "clip"
        guess = "open_clip" if (folder / "open_clip_config.json").is_file() else guess
        return f"for this folder use {guess}:{spec}"
    near = difflib.get_close_matches(kind, FORMS, n=1, cutoff=0.5)
    return f"use {FORMS[near[0]]}" if near else f"use one of {', '.join(FORMS.values())}"
