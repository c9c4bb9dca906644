"""What each kind of model is reduced to, and what its loaders share."""

import hashlib
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from recbole_tema.errors import DataError, TemaError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor
    from torch.nn import Module

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


class Towers(NamedTuple):
    """A loaded model.

    Attributes:
        model: The torch module, float32, in evaluation mode, on its device.
        dimension: Length d of the vectors.
        max_tokens: Longest text that is read whole; None where there is no limit.
        texts: B texts -> (B, d), of any norm, and how many of them were cut at `max_tokens`.
        prepare: An RGB image -> its tensor; may be called from several threads. None where the
            model reads no images.
        images: B prepared images -> (B, d), of any norm.
        no_images: Why it reads no images.
    """

    model: "Module"
    dimension: int
    max_tokens: int | None
    texts: Callable[[list[str]], "tuple[Tensor | np.ndarray, int]"]
    prepare: "Callable[[Image], Tensor] | None" = None
    images: "Callable[[Tensor], Tensor] | None" = None
    no_images: str = "is a model of texts alone"


def local_folder(spec: str, where: str) -> Path | None:
    """The folder `where` names; None where it can only be a name on the hub.

    Raises:
        DataError: no such folder, and the text is no name on the hub either.
    """
    folder = Path(where).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise DataError(f"{spec}: {folder} is a file; name the folder that holds the model")
    if not HUB_NAME.fullmatch(where) or where.startswith("."):
        raise DataError(f"{spec}: no folder {folder}; name a model's folder, or one on the hub")
    return None


def hub_is_offline() -> bool:
    """Whether the environment (HF_HUB_OFFLINE) keeps the hub's library off the network."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


@contextmanager
def loading(spec: str) -> Iterator[None]:
    """Turn whatever a library raises over foreign model files into a DataError of one line.

    open_clip tells the root logger each step, which is left out of the log.
    """
    root = logging.getLogger()

    def warnings_only(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING

    root.addFilter(warnings_only)
    try:
        yield
    except (TemaError, MemoryError):
        raise
    except Exception as error:  # model files are foreign: KeyError, OSError, SafetensorError, ...
        reason = " ".join(str(error).split())[:400] or "no reason given"
        hint = " (HF_HUB_OFFLINE is set)" if hub_is_offline() else ""
        raise DataError(
            f"{spec}: cannot be loaded{hint}: {type(error).__name__}: {reason}; check the model's "
            "files and its name"
        ) from error
    finally:
        root.removeFilter(warnings_only)


def refuse_remote_code(spec: str, config: Any) -> None:
    """Raise a DataError where a model's configuration asks to run code that comes with it."""
    if isinstance(config, dict):
        if config.get("trust_remote_code"):
            raise DataError(f"{spec}: its configuration sets trust_remote_code; it is not loaded")
        config = list(config.values())
    if isinstance(config, list):
        for value in config:
            refuse_remote_code(spec, value)


def weights_hash(model: "Module") -> str:
    """SHA-256 over the numbers of a model, whatever its library calls them and their order."""
    digests = set()
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            array = tensor.detach().float().cpu().contiguous().numpy()
            digests.add(hashlib.sha256(str(array.shape).encode() + array.tobytes()).digest())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()
