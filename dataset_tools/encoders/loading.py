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
import json
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
    "open_clip": ("open_clip:MODEL:TAG_OR_FILE", ("open_clip",), OpenClipEncoder),
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
            kind, where, label = (
                "sentence",
                str(text_encoder.model_folder()),
                text_encoder.MODEL_NAME,
            )
        else:  # kind and model without the folders of this machine
            parts = [Path(part) for part in where.split(":")]
            parts = [part.name if part.expanduser().exists() else str(part) for part in parts]
            label = " ".join([kind, *parts])
        source, options = _find_source(kind, where)
        return encoder(label, source, options, chosen, batch_size)


def _find_source(kind: str, where: str) -> tuple[str, dict[str, bool]]:
    """Folder, file or name on the hub of a model, and the options with which transformers loads it.

    Raises:
        DataError: no such folder and no possible name, another kind, or no safetensors.
    """
    options = {"trust_remote_code": False, "local_files_only": True}
    folder = Path(where.partition(":")[0] if kind == "open_clip" else where).expanduser()
    if folder.is_dir():
        kinds = _kinds_of(folder)
        if kind not in kinds:
            hint = "name the folder of a model, which has config.json or modules.json"
            hint = f"use {kinds[0]}:{folder}" if kinds else hint
            raise DataError(f"{folder} holds no model of the kind {kind}; {hint}")
        if kind == "open_clip":
            return where, {}
        if not (folder / "modules.json").is_file() and not any(folder.glob("*.safetensors")):
            raise DataError(
                f"{folder} has no .safetensors file, and pickled weights are not loaded; save the "
                "model with save_pretrained, or get it in that format"
            )
        return str(folder), options
    if kind == "open_clip":
        return where, {}
    if folder.exists():
        raise DataError(f"{folder} is a file; name the folder that holds the model")
    if not HUB_NAME.fullmatch(where):
        raise DataError(f"no folder {folder}; name a model's folder, or one on the hub")
    return where, options | {"local_files_only": _hub_is_offline()}


def _kinds_of(folder: Path) -> list[str]:
    """Kinds of encoder that a folder may be loaded as, by its files, likeliest first."""
    markers = {"open_clip": "open_clip_config.json", "sentence": "modules.json"}
    kinds = [kind for kind, name in markers.items() if (folder / name).is_file()]
    if (folder / "config.json").is_file():
        kinds.append("clip")
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if "sentence" not in kinds and config.get("model_type") != "clip":
            kinds.append("sentence")
    return kinds


def _hub_is_offline() -> bool:
    """Whether the environment (HF_HUB_OFFLINE) keeps the hub's library off the network."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


@contextmanager
def _one_line_errors(spec: str) -> Iterator[None]:
    """Turn whatever a library raises over foreign model files into a DataError of one line.

    open_clip tells the root logger each step, which is left out of the log.
    """
    root = logging.getLogger()

    def warnings_only(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING

    root.addFilter(warnings_only)
    try:
        yield
    except TemaError as error:
        raise DataError(f"{spec}: {error}") from error
    except MemoryError:
        raise
    except Exception as error:  # model files are foreign: KeyError, OSError, SafetensorError, ...
        reason = " ".join(str(error).split())[:400] or "no reason given"
        hint = " (HF_HUB_OFFLINE is set)" if _hub_is_offline() else ""
        raise DataError(
            f"{spec}: cannot be loaded{hint}: {type(error).__name__}: {reason}; check the model's "
            "files and its name"
        ) from error
    finally:
        root.removeFilter(warnings_only)


def _nearest(spec: str) -> str:
    """What the user may have meant."""
    folder = Path(spec).expanduser()
    if spec and folder.is_dir():
        return f"for this folder use {next(iter(_kinds_of(folder)), 'clip')}:{spec}"
    kind = spec.partition(":")[0].strip().lower().replace("-", "_")
    near = difflib.get_close_matches(kind, KINDS, n=1, cutoff=0.5)
    return (
        f"use {KINDS[near[0]][0]}"
        if near
        else f"use one of {', '.join(k[0] for k in KINDS.values())}"
    )
