"""RecBole-CDR's model classes, from a source checkout: the package on PyPI has left them out."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recbole_tema.errors import ConfigError

PACKAGE = "recbole_cdr"
MODELS = "model/cross_domain_recommender"
HOW_TO_GET = (
    "git clone https://github.com/RUCAIBox/RecBole-CDR, then --recbole_cdr_path=RecBole-CDR"
)


def library_class(name: str, path: str | None = None) -> type:
    """The class of a model of RecBole-CDR.

    Args:
        name: one of ``names.CDR_MODELS``.
        path: folder of a RecBole-CDR checkout; None: the RecBole-CDR that Python finds.

    Raises:
        ConfigError: there is no such checkout, none is importable, or it lacks a package.
    """
    module = f"{PACKAGE}.{MODELS.replace('/', '.')}.{name.lower()}"
    try:
        with _on_path(path):
            return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith(PACKAGE):
            raise ConfigError(
                f"model '{name}' needs the package '{error.name}', which is not installed"
            ) from error
        raise ConfigError(
            f"model '{name}' is one of RecBole-CDR's, whose package on PyPI has no models: "
            f"{HOW_TO_GET}"
        ) from error


@contextmanager
def _on_path(path: str | None) -> Iterator[None]:
    """Let Python find RecBole-CDR in ``path`` first, and nothing else there for longer."""
    if path is None:
        yield
        return
    root = Path(path).expanduser().resolve()
    if not (root / PACKAGE / MODELS).is_dir():
        raise ConfigError(
            f"recbole_cdr_path '{path}' is no checkout of RecBole-CDR: it has no folder "
            f"{PACKAGE}/{MODELS}; get one: {HOW_TO_GET}"
        )
    loaded = sys.modules.get(PACKAGE)
    if loaded is not None and Path(str(loaded.__file__)).resolve().parent != root / PACKAGE:
        for name in [n for n in sys.modules if n == PACKAGE or n.startswith(f"{PACKAGE}.")]:
            del sys.modules[name]
    sys.path.insert(0, str(root))
    try:
        yield
    finally:
        sys.path.remove(str(root))
