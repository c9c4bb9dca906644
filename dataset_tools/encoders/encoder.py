"""Unit vectors of texts and images by a model, whatever library computes it."""

import hashlib
import logging
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dataset_tools.images.decoding import open_image
from recbole_tema.errors import DataError
from recbole_tema.progress import ProgressBar

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor, device, nn

log = logging.getLogger(__name__)

TOKEN_CHARACTERS = 64  # twice the longest entry of CLIP's vocabulary
DECODERS = 4  # threads, each of which may hold an image of some 200 MB
LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # half of a pair, which no tokenizer reads


class Encoder(ABC):
    """Unit vectors of texts and, where the model has an image tower, of images.

    A subclass loads the model and computes one batch.

    Attributes:
        name: Kind, model and hash of the weights, for the provenance card.
        dimension: Length d of a vector.
        batch_size: Texts or images at once.
        has_images: Whether `images` can be asked.
        max_tokens: Longest text that is read whole; None where there is no limit.
        n_cut: How many distinct texts of the last call of `texts` were longer.
    """

    has_images = False
    tokenizer: Any  # `load` sets it

    def __init__(
        self, label: str, source: str, options: dict[str, Any], device: "device", batch_size: int
    ) -> None:
        """Load the model `source`, from a library that takes `options`, in float32."""
        import torch

        self.label, self.device, self.batch_size, self.n_cut = label, device, batch_size, 0
        model, self.max_tokens = self.load(source, options)
        self.model: Any = model.to(device).float().eval()
        self.name = f"{label} (weights sha256 {weights_hash(self.model)[:16]})"
        with torch.inference_mode():
            self.dimension = self.encode_batch(["a"]).shape[-1]

    @abstractmethod
    def load(self, source: str, options: dict[str, Any]) -> tuple["nn.Module", int | None]:
        """The model, and how many tokens of a text it reads."""

    @abstractmethod
    def encode_batch(self, texts: list[str]) -> "Tensor":
        """Vectors (B, d) of B texts, of any norm."""

    def count_tokens(self, text: str) -> int:
        """How many tokens a text has, if it is not cut."""
        return len(self.tokenizer(text, truncation=False, verbose=False)["input_ids"])

    def prepare_image(self, image: "Image") -> "Tensor":
        """The tensor (C, H, W) of an RGB image; several threads may call it at once."""
        raise NotImplementedError

    def encode_image_batch(self, images: "Tensor") -> "Tensor":
        """Vectors (B, d) of B prepared images (B, C, H, W), of any norm."""
        raise NotImplementedError

    def texts(self, texts: Sequence[str], progress: bool = True) -> np.ndarray:
        """Vectors (n, d) float32 of norm 1, in the order of the n texts.

        Each distinct text is encoded once, in batches of like length, longest first, so that no
        batch is mostly padding and a lack of memory shows at once. Batches depend on the set of
        texts alone: the same texts give the same vectors. How many are longer than the model reads
        and were cut is logged once.

        Raises:
            DataError: something is not a text, the device's memory does not hold a batch, or the
                model gives no finite vectors.
        """
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise DataError(f"text {row} to encode is {text!r}, not a text; leave it out")
        readable = [self._readable(text) for text in texts]
        unique = sorted(set(readable), key=lambda text: (-len(text), text))
        vectors = np.empty((len(unique), self.dimension), np.float32)
        with self._bar(len(unique), "text", progress) as bar:
            for start in range(0, len(unique), self.batch_size):
                batch = unique[start : start + self.batch_size]
                vectors[start : start + len(batch)] = self._unit(self.encode_batch, batch)
                bar.update(len(batch))
        limit = self.max_tokens or math.inf
        # A token has at least one byte; two more mark the start and the end.
        long = (text for text in unique if len(text.encode()) + 2 > limit)
        self.n_cut = sum(self.count_tokens(text) > limit for text in long)
        if self.n_cut:
            what = f"{self.n_cut} texts are longer than the {limit} tokens that it reads"
            log.info("%s: %s and were cut", self.label, what)
        place = {text: row for row, text in enumerate(unique)}
        return vectors[[place[text] for text in readable]]

    def images(
        self, items: Mapping[str, Path], progress: bool = True
    ) -> tuple[list[str], np.ndarray, dict[str, str]]:
        """Ids (n) of the items whose image is sound, their vectors, and the others with the reason.

        A file that several items share is read once. Threads decode the next batch while the model
        computes. Order and batches depend on `items` alone.

        Returns:
            ids; float32 (n, d) of norm 1, a row for each id; reasons by item.

        Raises:
            DataError: the model reads no images, or see `texts`.
        """
        import torch

        self.require_images()
        files = list(dict.fromkeys(items.values()))
        batches = [files[n : n + self.batch_size] for n in range(0, len(files), self.batch_size)]
        rows: dict[Path, int] = {}
        refused: dict[Path, str] = {}
        parts = [np.empty((0, self.dimension), np.float32)]

        def prepared(path: Path) -> "Tensor | str":
            image = open_image(path)
            return image if isinstance(image, str) else self.prepare_image(image)

        with self._bar(len(files), "image", progress) as bar, ThreadPoolExecutor(DECODERS) as pool:
            ahead = pool.map(prepared, batches[0] if batches else [])
            for batch, following in pairwise([*batches, []]):
                found, ahead = ahead, pool.map(prepared, following)
                tensors: dict[Path, Tensor] = {}
                for path, image in zip(batch, found, strict=True):
                    if isinstance(image, str):
                        refused[path] = image
                    else:
                        tensors[path] = image
                if tensors:
                    stacked = torch.stack(list(tensors.values()))
                    parts.append(self._unit(self.encode_image_batch, stacked))
                rows |= {path: len(rows) + n for n, path in enumerate(tensors)}
                bar.update(len(batch))
        ids = [item for item, path in items.items() if path in rows]
        faults = {item: refused[path] for item, path in items.items() if path in refused}
        return ids, np.concatenate(parts)[[rows[items[item]] for item in ids]], faults

    def require_images(self) -> None:
        """Raise a DataError where the model reads no images."""
        if not self.has_images:
            raise DataError(
                f"{self.label} reads no images; use a CLIP model, clip:FOLDER_OR_NAME (a folder "
                "with preprocessor_config.json) or open_clip:MODEL:TAG_OR_FILE"
            )

    def _readable(self, text: str) -> str:
        text = LONE_SURROGATE.sub("\ufffd", text)
        # CLIP's tokenizer takes time with the square of a word's length: minutes for one title of
        # 50,000 letters, of which the model reads the beginning.
        longest = TOKEN_CHARACTERS * (self.max_tokens or len(text))
        return text if len(text) <= longest else " ".join(text.split())[:longest]

    def _bar(self, total: int, unit: str, progress: bool) -> ProgressBar:
        desc = f"{self.label}: {unit}s"
        return ProgressBar(total=total, desc=desc, unit=unit, disable=not progress)

    def _unit(self, compute: "Callable[..., Tensor]", batch: "list[str] | Tensor") -> np.ndarray:
        import torch

        try:
            with torch.inference_mode():
                vectors = compute(batch).float()
                # What the model has normalised itself stays as it is, to the last bit.
                lengths = vectors.norm(dim=-1, keepdim=True)
                if not torch.allclose(lengths, torch.ones_like(lengths), rtol=0, atol=1e-6):
                    vectors = torch.nn.functional.normalize(vectors, dim=-1)
        except torch.cuda.OutOfMemoryError:
            raise DataError(
                f"{self.label}: a batch of {self.batch_size} does not fit into the memory of the "
                "device; use a smaller batch size (--batch_size of 'clip'), or the device cpu"
            ) from None
        if not torch.isfinite(vectors).all():
            raise DataError(f"{self.label}: vectors that are not finite; its weights are bad")
        return vectors.cpu().numpy()


def weights_hash(module: "nn.Module") -> str:
    """SHA-256 over the numbers of a model, whatever its library calls them and their order."""
    digests = set()
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            array = tensor.detach().float().cpu().contiguous().numpy()
            digests.add(hashlib.sha256(str(array.shape).encode() + array.tobytes()).digest())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()
