"""CLIP by transformers, weights as safetensors.

sentence-transformers reads the same folders, but says nothing of weights that are missing in them,
and loads no text tower without an image processor.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataset_tools.encoders.encoder import Encoder
from recbole_tema.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor, nn

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


class ClipEncoder(Encoder):
    """The two towers of a CLIPModel. A folder without the image processor's file has no images."""

    def load(self, source: str, options: dict[str, Any]) -> tuple["nn.Module", int]:
        """See `Encoder`.

        Raises:
            DataError: another architecture, or weights are missing.
        """
        from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, CLIPModel
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # one bar is enough: that of the texts
        config = AutoConfig.from_pretrained(source, **options)
        if config.model_type != "clip":
            raise DataError(
                f"a model of type {config.model_type!r}, not 'clip'; for a sentence encoder use "
                f"sentence:{source}, for other pairs of towers open_clip:MODEL:TAG_OR_FILE"
            )
        safe: dict[str, Any] = {"use_safetensors": True, "output_loading_info": True}
        loaded: Any = CLIPModel.from_pretrained(source, **safe, **options)
        model, info = loaded
        missing = sorted(info["missing_keys"])
        if missing:
            raise DataError(
                f"{len(missing)} of the model's weights are not in its files, e.g. {missing[0]}; "
                "get the whole model"
            )
        files = [Path(source) / name for name in PROCESSOR_FILES]
        self.has_images = not Path(source).is_dir() or any(file.is_file() for file in files)
        if self.has_images:
            self._processor = AutoImageProcessor.from_pretrained(source, **options)
        self.tokenizer = AutoTokenizer.from_pretrained(source, **options)
        positions = config.text_config.max_position_embeddings
        return model, min(positions, self.tokenizer.model_max_length)

    def encode_batch(self, texts: list[str]) -> "Tensor":
        cut = {"padding": True, "truncation": True, "max_length": self.max_tokens}
        inputs = self.tokenizer(texts, return_tensors="pt", **cut).to(self.device)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        return self.model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output

    def prepare_image(self, image: "Image") -> "Tensor":
        return self._processor(images=image, return_tensors="pt")["pixel_values"][0]

    def encode_image_batch(self, images: "Tensor") -> "Tensor":
        return self.model.get_image_features(pixel_values=images.to(self.device)).pooler_output
