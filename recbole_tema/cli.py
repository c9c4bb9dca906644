"""The command line: ``recbole-tema`` and ``run_recbole_tema.py``, in RecBole's style.

Arguments are checked before torch and RecBole are imported, which takes seconds; a wrong one ends
the program with one line on stderr and exit code 2.
"""

import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from recbole_tema.config.files import config_files, merged_arguments
from recbole_tema.config.presets import model_of
from recbole_tema.config.registry import (
    DEFAULT_DATASET,
    DEFAULT_MODEL,
    check_model,
)
from recbole_tema.config.rules import BOOL, RULES
from recbole_tema.config.validation import check_arguments
from recbole_tema.console import captured
from recbole_tema.errors import ConfigError, TemaError
from recbole_tema.paths import default_data_path
from recbole_tema.trainer.processes import launch_keys, torchrun_keys

SHORT = {"-m": "--model", "-d": "--dataset", "-h": "--help"}
FLAGS = ("help", "version")
# Arguments of RecBole's own command line that start several processes.
WHAT = {"models", "ablation", "overlap"}  # of a benchmark
OF_BENCHMARKS = ("seeds", "jobs", "results_dir", "tune")
GROUP = ("nproc", "world_size", "ip", "port", "group_offset", "offset")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 0, 2 (wrong input) or 130 (interrupted).

    ``doctor`` returns 1 where something has to be mended.
    """
    arguments: dict[str, Any] = {}
    try:
        words = sys.argv[1:] if argv is None else list(argv)
        if words[:1] == ["doctor"]:
            if words[1:]:
                raise ConfigError(f"doctor takes no arguments, and got '{words[1]}'")
            from recbole_tema.doctor import run as doctor

            return doctor()
        named = words[:1] == ["benchmark"]
        arguments = parse_arguments(words[1:] if named else words)
        if "help" in arguments:
            return _print_help(arguments)
        if "version" in arguments:
            print(f"recbole-tema {_version('recbole-tema')}, RecBole {_version('recbole')}")
            return 0
        many = _many(arguments)
        if (named or many) and not WHAT & set(arguments):
            raise ConfigError(
                "benchmark needs --models=A,B,C, --ablation=MODEL or --overlap=SHARES"
                + (", as those that were trained" if many else "")
            )
        if not many and (first := next((key for key in arguments if key in OF_BENCHMARKS), None)):
            model = arguments.get("model")
            instead = f"={model} in place of --model" if model else ", one or more"
            raise ConfigError(f"--{first} is of benchmarks: give --models{instead}")
        if many:
            from recbole_tema.benchmark.command import run

            return run(arguments)
        return _train(arguments)
    except TemaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever reads the output has seen enough, as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        pass
    # Behind the except block the frames of the run are gone, and progress bars have written last.
    if _many(arguments):
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        return 130
    again = [f"--{key}={text}" for key, text in {**arguments, "resume": True}.items()]
    command = f"{_started()} {shlex.join(again)}"
    print(f"\ninterrupted; go on from the last finished epoch: {command}", file=sys.stderr)
    return 130


def _many(arguments: Mapping[str, str | bool]) -> bool:
    """Whether a benchmark is asked for: many runs and one report."""
    return not {*WHAT, "trained"}.isdisjoint(arguments)


def parse_arguments(argv: list[str]) -> dict[str, Any]:
    """Split ``--key=value`` and ``--key value`` words into ``{key: text}``.

    A boolean key without a value is True, as in ``--resume``. Values may contain ``=``.

    Raises:
        ConfigError: a word that belongs to no key, a key without value, or one key given twice
            with different values.
    """
    arguments: dict[str, str | bool] = {}
    words = list(argv)
    while words:
        word = words.pop(0)
        short, equals, rest = word.partition("=")
        word = SHORT.get(short, short) + equals + rest
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not name:
            raise ConfigError(f"unexpected argument '{word}'; write --key=value (see --help)")
        if name in FLAGS:
            value = True
        elif not equals:
            value = _next_value(name, words)
        if name in arguments and arguments[name] != value:
            raise ConfigError(f"--{name} is given twice: '{arguments[name]}' and '{value}'")
        arguments[name] = value
    return arguments


def _next_value(name: str, words: list[str]) -> str | bool:
    following = words[0] if words else "--"
    if RULES.get(name) is BOOL and following.lower() not in ("true", "false"):
        return True
    if following.startswith("--"):
        raise ConfigError(f"--{name} has no value; write --{name}=VALUE")
    return words.pop(0)


def _train(arguments: Mapping[str, str | bool]) -> int:
    keys = dict(arguments)
    files = config_files(str(keys.pop("config_files", "")))
    cmd = {key: text for key, text in keys.items() if key not in ("model", "dataset")}
    group = {key: cmd.pop(key) for key in GROUP if key in cmd}
    values, sources = merged_arguments(files, cmd)
    model = str(keys.get("model", values.get("model") or model_of(values) or DEFAULT_MODEL))
    dataset = str(keys.get("dataset", values.get("dataset") or DEFAULT_DATASET))
    check_arguments(model, dataset, values, sources)

    started = torchrun_keys()
    several = started or launch_keys(group)
    if several and not started:
        from recbole_tema.trainer.distributed import launch

        launch(_train_one, several, model, dataset, files, cmd)
    else:
        _train_one(started, model, dataset, files, cmd)
    return 0


def _train_one(
    keys: dict[str, Any], model: str, dataset: str, files: list[str], cmd: dict[str, Any]
) -> None:
    """Train in this process, one of several where ``keys`` says so."""
    with captured():  # torch and RecBole may warn while they are imported
        from recbole_tema.quick_start import run_recbole_tema
        from recbole_tema.trainer.distributed import leave_group

        cmd = {**cmd, **keys}
        try:
            run_recbole_tema(
                model=model, dataset=dataset, config_file_list=files, cmd_config_dict=cmd
            )
        finally:
            leave_group()


def _print_help(arguments: Mapping[str, Any]) -> int:
    from recbole_tema.help_text import help_text

    model = arguments.get("model")
    if model is not None:
        check_model(model)
    data_path = os.path.expanduser(arguments.get("data_path") or default_data_path())
    dataset = arguments.get("dataset") or DEFAULT_DATASET
    text = help_text(_program(), DEFAULT_MODEL, DEFAULT_DATASET, data_path, model, dataset)
    print(text, flush=True)
    return 0


def _program() -> str:
    """This program's name, for help."""
    name = Path(sys.argv[0]).name
    return f"python {name}" if name.endswith(".py") else name


def _started() -> str:
    """How this program was started, to type it again where its environment is not active."""
    program = Path(sys.argv[0])
    found = shutil.which("python" if program.suffix == ".py" else program.name)
    if found and Path(found).parent == Path(sys.executable).parent:
        return _program()
    bin_folder = os.path.relpath(Path(sys.executable).parent)
    if bin_folder.startswith(".."):
        bin_folder = str(Path(sys.executable).parent)
    words = ["python", program.name] if program.suffix == ".py" else [program.name]
    return shlex.join([os.path.join(bin_folder, words[0]), *words[1:]])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed, run from a checkout)"
