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
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from dataset_tools.encoders import text_encoder
from dataset_tools.encoders.clip_model import ClipEncoder
from dataset_tools.encoders.encoder import Encoder
from dataset_tools.encoders.open_clip_model import OpenClipEncoder
from dataset_tools.encoders.text_encoder import SentenceEncoder
from recbole_tema.device import find_device
from recbole_tema.errors import DataError, TemaError

BATCH_SIZE = 64
KINDS = {  # kind: (specification, packages that it needs, class)
    "minilm": ("minilm", text_encoder.PACKAGES, SentenceEncoder),
    "clip": ("clip:FOLDER_OR_NAME", ("transformers", "PIL", "torchvision"), ClipEncoder),
    "open_clip": ("open_clip:MODEL:TAG_OR_FILE", ("open_clip", "PIL"), OpenClipEncoder),
    "sentence": ("sentence:FOLDER_OR_NAME", ("sentence_transformers",), SentenceEncoder),
}
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")


def load_encoder(spec: str, device: str = "auto", batch_size: int = BATCH_SIZE) -> Encoder:
    """The encoder that `spec` names (see the head of this module).

    Args:
        spec: The specification.
        device: See `find_device`.
        batch_size: Texts or images at once.

    Raises:
        ConfigError: there is no such device.
        DataError: the specification is unknown, a package or the model is missing, or its files
            are unsafe or of another architecture.
    """
    kind, _, where = spec.partition(":")
    if kind not in KINDS or (spec != "minilm" and (kind == "minilm" or not where)):
        raise DataError(f"encoder {spec!r} is unknown; {_nearest(spec)}")
    if batch_size < 1:
        raise DataError(f"batch_size is {batch_size}; use 1 or more")
    _, packages, encoder = KINDS[kind]
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        how = text_encoder.HOW_TO_GET
        raise DataError(f"{spec} needs {', '.join(missing)}, not installed here; run: {how}")
    chosen = find_device(device)
    with _one_line_errors(spec):
        if kind == "minilm":
            label, source = text_encoder.MODEL_NAME, str(text_encoder.model_folder())
        else:  # kind and model without the folders of this machine
            parts = [(part, Path(part).expanduser()) for part in where.split(":")]
            names = [path.name if path.exists() else part for part, path in parts]
            label, source = " ".join([kind, *names]), _find_source(kind, where)
        # What transformers asks the hub for, it does not ask where this is a folder.
        options = {"trust_remote_code": False, "local_files_only": Path(source).is_dir()}
        return encoder(label, source, options, chosen, batch_size)


def _find_source(kind: str, where: str) -> str:
    """Folder, name on the hub or, of open_clip, specification of a model.

    Raises:
        DataError: no such folder and no possible name, another kind, or no safetensors.
    """
    folder = Path(where.partition(":")[0] if kind == "open_clip" else where).expanduser()
    if folder.is_dir():
        kinds = _kinds_of(folder)
        if kind not in kinds:
            hint = "name the folder of a model, which has config.json or modules.json"
            hint = f"use {kinds[0]}:{folder}" if kinds else hint
            raise DataError(f"{folder} holds no model of the kind {kind}; {hint}")
        bare = kind != "open_clip" and not (folder / "modules.json").is_file()
        if bare and not any(folder.glob("*.safetensors")):
            raise DataError(
                f"{folder} has no .safetensors file, and pickled weights are not loaded; save the "
                "model with save_pretrained, or get it in that format"
            )
    elif kind != "open_clip" and folder.exists():
        raise DataError(f"{folder} is a file; name the folder that holds the model")
    elif kind != "open_clip" and not HUB_NAME.fullmatch(where):
        raise DataError(f"no folder {folder}; name a model's folder, or one on the hub")
    return where if kind == "open_clip" or not folder.is_dir() else str(folder)


def _kinds_of(folder: Path) -> list[str]:
    """Kinds of encoder that a folder may be loaded as, by its files, likeliest first."""
    markers = {"open_clip": "open_clip_config.json", "sentence": "modules.json"}
    kinds = [kind for kind, name in markers.items() if (folder / name).is_file()]
    if (folder / "config.json").is_file():
        config = (folder / "config.json").read_text(encoding="utf-8", errors="replace")
        is_clip = re.search(r'"model_type"\s*:\s*"clip"', config)
        kinds += ["clip"] if is_clip or "sentence" in kinds else ["clip", "sentence"]
    return kinds


@contextmanager
def _one_line_errors(spec: str) -> Iterator[None]:
    """Turn whatever a library raises over foreign model files into a DataError of one line.

    What the libraries tell the log of each step of loading is left out.
    """
    from huggingface_hub import is_offline_mode

    disabled = logging.root.manager.disable
    logging.disable(max(disabled, logging.INFO))
    try:
        yield
    except TemaError as error:
        raise DataError(f"{spec}: {error}") from error
    except MemoryError:
        raise
    except Exception as error:  # model files are foreign: KeyError, OSError, SafetensorError, ...
        reason = " ".join(str(error).split())[:400] or "no reason given"
        hint = " (HF_HUB_OFFLINE is set)" if is_offline_mode() else ""
        raise DataError(
            f"{spec}: cannot be loaded{hint}: {type(error).__name__}: {reason}; check the model's "
            "files and its name"
        ) from error
    finally:
        logging.disable(disabled)


def _nearest(spec: str) -> str:
    """What the user may have meant."""
    folder = Path(spec).expanduser()
    if spec and folder.is_dir():
        return f"for this folder use {next(iter(_kinds_of(folder)), 'clip')}:{spec}"
    kind = spec.partition(":")[0].strip().lower().replace("-", "_")
    near = difflib.get_close_matches(kind, KINDS, n=1, cutoff=0.5)
    forms = [KINDS[name][0] for name in near or KINDS]
    return f"use {'' if near else 'one of '}{', '.join(forms)}"
