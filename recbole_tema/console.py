"""What a run shows on the screen, and what goes to its log file alone.

RecBole logs everything to the root logger, whose two handlers its ``init_logger`` makes: the screen
and a file. The file keeps all of it. The screen gets what the loggers ``recbole_tema`` and
``dataset_tools`` say, and the warnings of RecBole and of the calling program. The configuration,
the model's layers, RecBole's lines and the warnings of other libraries are in the file. With
``verbose`` the screen gets them too, with ``quiet`` the table and errors alone.

Where the calling program has set up logging itself, its handlers get everything and nothing is
added, as in RecBole.
"""

import logging
import os
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from recbole_tema.config.presets import of_preset
from recbole_tema.errors import ConfigError, TemaError

if TYPE_CHECKING:
    from recbole_tema.config.tema_config import TemaConfig
    from recbole_tema.data.cross_domain import CrossDomainMixin

SCREEN = logging.getLogger("recbole_tema")  # its messages are shown, those of the root logger not
SHOWN = ("recbole_tema", "dataset_tools")
# Libraries whose warnings are for the log file: what they say is of their own affairs.
MUTED = {
    *("py", "torch", "transformers", "sentence_transformers", "open_clip", "huggingface_hub"),
    *("tensorboard", "tensorflow", "absl", "matplotlib", "PIL", "urllib3", "httpx", "openai"),
    *("filelock", "fsspec", "optuna", "asyncio", "numexpr", "h5py"),
}
_LIBRARIES = tuple(map(sysconfig.get_path, ("stdlib", "purelib", "platlib")))
OFF_SCREEN = {"off_screen": True}  # ``extra`` of a record that is on the screen in another way
# Keys that say how a run is shown, or that the line of the run has anyway.
NOT_IN_HEADLINE = {
    *("model", "dataset", "seed", "verbose", "quiet", "show_progress", "state", "use_gpu"),
    *("nproc", "world_size", "offset", "group_offset", "ip", "port", "local_rank", "gpu_id"),
}
LONGEST = 60  # characters of a value in the line of the run
MOST_NAMES = 5  # domains that it names


class _Kept(logging.Handler):
    """Keeps records until there is a log to write them to."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


class _OnScreen(logging.Filter):
    """Lets through what the screen shows."""

    def __init__(self, verbose: bool) -> None:
        super().__init__()
        self.verbose = verbose

    def filter(self, record: logging.LogRecord) -> bool:
        if getattr(record, "off_screen", False):
            return False
        if self.verbose or record.levelno >= logging.ERROR:
            return True
        package = record.name.partition(".")[0]
        if package in SHOWN:
            return True
        return package not in MUTED and record.levelno >= logging.WARNING


@contextmanager
def captured() -> Iterator[None]:
    """Within, warnings and log records are the run's: kept until `start_log`, then logged.

    An error that leaves it is written to the log file, as the caller tells it on the screen.
    """
    root = logging.getLogger()
    _end_log(root)
    if root.handlers:  # the program's own, or this very function's in a caller
        yield
        return
    root.addHandler(_Kept())
    before, warnings.showwarning = warnings.showwarning, _log_warning
    try:
        yield
    except Exception as error:
        if any(_is_ours(handler) for handler in root.handlers):
            trace = not isinstance(error, TemaError)
            root.error(f"error: {error}", exc_info=trace, extra=OFF_SCREEN)
        raise
    finally:
        warnings.showwarning = before
        _take_kept(root)
        _end_log(root)  # what the calling program logs or sets up later is its own


def _log_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """In place of ``warnings.showwarning``: what Python and the libraries warn of is logged.

    Warnings of the calling program's own code, as in a callback, stay on the screen.
    """
    text = warnings.formatwarning(message, category, filename, lineno, line)
    installed = Path(filename).resolve().is_relative_to(Path(sys.prefix).resolve())
    library = installed or filename.startswith(("<", *_LIBRARIES))
    name = "py.warnings" if library else "warnings"
    logging.getLogger(name).warning("%s", text.rstrip())


def start_log(config: "TemaConfig") -> None:
    """Make the handlers of a run: the screen and a file in ``log/MODEL/``.

    Raises:
        ConfigError: the file cannot be written.
    """
    from recbole.utils import init_logger

    root = logging.getLogger()
    kept = _take_kept(root)
    before = set(root.handlers)
    try:
        # RecBole looks whether the folder is there, then makes it: of two processes one fails.
        Path("log", config["model"]).mkdir(parents=True, exist_ok=True)
        init_logger(config)
    except OSError as error:
        raise ConfigError(
            f"the log cannot be written ({error.strerror}: {error.filename}); start in a folder "
            f"that you may write to"
        ) from error
    made = [handler for handler in root.handlers if handler not in before]
    for handler in made:
        handler.recbole_tema = True  # type: ignore[attr-defined]  # our mark
        if not isinstance(handler, logging.FileHandler):
            handler.addFilter(_OnScreen(config["verbose"]))
            if config["quiet"]:
                handler.setLevel(max(handler.level, logging.ERROR))
    for record in kept:
        for handler in made:
            if record.levelno >= handler.level:
                handler.handle(record)


def _is_ours(handler: logging.Handler) -> bool:
    return getattr(handler, "recbole_tema", False)


def _take_kept(root: logging.Logger) -> list[logging.LogRecord]:
    """The records that were kept; from now on none are."""
    kept = [handler for handler in root.handlers if isinstance(handler, _Kept)]
    for handler in kept:
        root.removeHandler(handler)
    return [record for handler in kept for record in handler.records]


def _end_log(root: logging.Logger) -> None:
    # RecBole adds its handlers on every call: a second run would log twice.
    for handler in filter(_is_ours, list(root.handlers)):
        root.removeHandler(handler)
        handler.close()


def log_file() -> str | None:
    """The path of this run's log file, from the current folder; None where there is none."""
    for handler in filter(_is_ours, logging.getLogger().handlers):
        if isinstance(handler, logging.FileHandler):
            return os.path.relpath(handler.baseFilename)
    return None


def headline(config: "TemaConfig", dataset: "CrossDomainMixin", n_processes: int = 1) -> str:
    """One line for what runs: model, data, the keys that differ from their defaults, log file."""
    domains = dataset.domain_names
    named = f"domains {', '.join(domains)}"
    parts = [
        f"{dataset.user_num - 1:,} users, {dataset.item_num - 1:,} items, "
        f"{len(dataset.sequences.items):,} events, "  # RecBole counts rows of targets
        f"{named if len(domains) <= MOST_NAMES else f'{len(domains)} domains'}"
    ]
    keys = [*_changed(config), f"seed={config['seed']}", _device(config)]
    if n_processes > 1:
        keys.append(f"{n_processes} processes")
    parts.append(", ".join(keys))
    if log_file():
        parts.append(f"log: {log_file()}")
    return f"{config['model']} on {config['dataset']}: {'; '.join(parts)}"


def _changed(config: "TemaConfig") -> list[str]:
    """``key=value`` of the user's keys that differ from their defaults."""
    changed = []
    for key in config.sources:
        value = config.external_config_dict.get(key)
        default = config.internal_config_dict.get(key)
        if key in NOT_IN_HEADLINE or config[key] == default:
            continue
        if of_preset(config.sources[key]):
            continue  # its name says it
        text = ",".join(value or ()) if key == "preset" else str(value)
        changed.append(f"{key}={text if len(text) <= LONGEST else text[: LONGEST - 3] + '...'}")
    return changed


def _device(config: "TemaConfig") -> str:
    import torch

    if config["device"].type == "cuda":
        return torch.cuda.get_device_name(config["device"])
    threads = torch.get_num_threads()
    return f"cpu ({threads} thread{'s' * (threads > 1)})"


def show_table(table: str, config: "TemaConfig", main: bool = True) -> None:
    """Print a run's table to standard output, unless ``state`` silences it, and log it."""
    logging.getLogger().info("\n" + table, extra=OFF_SCREEN)
    if main and config["state"].lower() in ("debug", "info"):
        print(f"\n{table}" if not config["quiet"] else table, file=sys.stdout, flush=True)
