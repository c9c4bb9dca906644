"""CLIP by transformers, weights as safetensors.

sentence-transformers reads the same folders, but says nothing of weights that are missing in them,
and loads no text tower without an image processor.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from dataset_tools.encoders.encoder import Encoder
from recbole_tema.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor, device

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


class ClipEncoder(Encoder):
    """The two towers of a CLIPModel. A folder without the image processor's file has no images."""

    def __init__(
        self, label: str, source: str, options: dict[str, bool], device: "device", batch_size: int
    ) -> None:
        """Load the folder or name `source`, with transformers' `options`.

        Raises:
            DataError: another architecture, or weights are missing.
        """
        from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, CLIPModel
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()  # one bar is enough: that of the texts
        config = AutoConfig.from_pretrained(source, **options)
        if config.model_type != "clip":
            raise DataError(
                f"{source} holds a model of type {config.model_type!r}, not 'clip'; for a sentence "
                f"encoder use sentence:{source}, for other pairs of towers open_clip:"
                "MODEL:TAG_OR_FILE"
            )
        model, info = CLIPModel.from_pretrained(
            source, use_safetensors=True, output_loading_info=True, **options
        )
        missing = sorted(info["missing_keys"])
        if missing:
            raise DataError(
                f"{source}: {len(missing)} of the model's weights are not in its files, e.g. "
                f"{missing[0]}; get the whole model"
            )
        self._model, self._device = model.to(device).float().eval(), device
        self._tokenizer = AutoTokenizer.from_pretrained(source, **options)
        positions = config.text_config.max_position_embeddings
        max_tokens = min(positions, self._tokenizer.model_max_length)
        super().__init__(label, self._model, max_tokens, batch_size)
        files = [Path(source) / name for name in PROCESSOR_FILES]
        self.has_images = not Path(source).is_dir() or any(file.is_file() for file in files)
        if self.has_images:
            self._processor = AutoImageProcessor.from_pretrained(source, **options)

    def encode_batch(self, texts: list[str]) -> "Tensor":
        cut = {"padding": True, "truncation": True, "max_length": self._max_tokens}
        inputs = self._tokenizer(texts, return_tensors="pt", **cut).to(self._device)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        return self._model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output

    def count_tokens(self, text: str) -> int:
        return len(self._tokenizer(text, verbose=False)["input_ids"])

    def prepare_image(self, image: "Image") -> "Tensor":
        return self._processor(images=image, return_tensors="pt")["pixel_values"][0]

    def encode_image_batch(self, images: "Tensor") -> "Tensor":
        return self._model.get_image_features(pixel_values=images.to(self._device)).pooler_output
