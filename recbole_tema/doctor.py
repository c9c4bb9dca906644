"""`recbole-tema doctor`: what is installed, found and writable here, and what is wrong with it."""

import importlib
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from recbole_tema.errors import TemaError
from recbole_tema.paths import DATA_VARIABLE, default_data_path, recbole_dir

EXTRAS = ("features", "convert", "benchmark", "docs", "test")
LEAST_FREE = 2 << 30  # bytes; ml-100k-genre, a checkpoint and its log take less than a tenth
NAMED = ("recbole-tema", "torch", "numpy", "pandas", "scipy", "transformers", "duckdb")
# Packages whose import shows a broken installation: of another build, or without a library.
IMPORTED = ("torch", "torchvision", "sklearn", "pandas", "recbole_tema.compat")


def run() -> int:
    """Print one screen; return the exit code: 0, or 1 where something has to be mended."""
    faults = 0
    for subject, text, remedy in findings():
        print(f"{'!!' if remedy else 'ok'}  {subject:<12} {text}")
        if remedy:
            print(f"    {'':<12} {remedy}")
            faults += 1
    print("nothing to mend" if not faults else f"{faults} to mend, marked by !!")
    return 1 if faults else 0


def findings() -> Iterator[tuple[str, str, str]]:
    """(subject, what was found, how to mend it or nothing) of each check."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    where = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GB"
    yield "Python", f"{platform.python_version()} ({sys.executable}), {where}", ""
    yield "versions", ", ".join(filter(None, map(_named, NAMED))), ""
    recbole, remedy = _recbole()
    yield "RecBole", recbole, remedy
    yield "packages", *_packages("")
    for extra in EXTRAS:
        yield f"[{extra}]", *_packages(extra)
    for name in IMPORTED if not remedy else IMPORTED[:-1]:
        if (found := _import_fault(name)) is not None:
            yield name.partition(".")[0], *found
    yield "GPU", _gpu(), ""
    yield "datasets", *_folder(default_data_path(), f"set {DATA_VARIABLE} to another folder")
    yield "results", *_folder(Path.cwd(), "start from another folder, or set --checkpoint_dir")
    hub = os.path.expanduser(os.environ.get("HF_HOME", "~/.cache/huggingface"))
    yield "models", *_folder(Path(hub), "set HF_HOME to another folder")


def _named(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return ""


def _recbole() -> tuple[str, str]:
    try:
        folder = recbole_dir()
        return f"{version('recbole')} ({folder})", ""
    except TemaError as error:
        what, _, remedy = str(error).partition("; ")
        return what, remedy


def _packages(extra: str) -> tuple[str, str]:
    """The packages that this one asks for, of an extra or always, and those out of their range."""
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(line) for line in requires("recbole-tema") or []]
    except PackageNotFoundError:
        return "recbole-tema is not installed: run from a checkout", "run: pip install ."
    inside = [
        one
        for one in wanted
        if (one.marker.evaluate({"extra": extra}) if one.marker else not extra)
        and (not extra or (one.marker and not one.marker.evaluate({"extra": ""})))
    ]
    absent, wrong = [], []
    for one in inside:
        try:
            found = version(one.name)
        except PackageNotFoundError:
            absent.append(one.name)
            continue
        if not one.specifier.contains(found, prereleases=True):
            wrong.append(f"{one.name} {found} (not {one.specifier})")
    package = f"recbole-tema[{extra}]" if extra else "recbole-tema"
    remedy = f"run: pip install '{package}'"
    if wrong:
        return f"outside the tested ranges: {', '.join(wrong)}", remedy
    if absent and not extra:
        return f"not installed: {', '.join(absent)}", remedy
    if absent:  # an extra that is not wanted is no fault
        return f"not installed: {', '.join(absent)} ({remedy.removeprefix('run: ')})", ""
    return f"all {len(inside)} within the tested ranges", ""


def _import_fault(name: str) -> tuple[str, str] | None:
    """None where a package is absent or can be imported."""
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name:
            return None
        return f"does not import: {error}", "run: pip install recbole-tema"
    except Exception as error:  # whatever a broken installation raises is what is told
        words = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        again = "torch and torchvision from one index" if name.startswith("torch") else name
        return f"does not import ({words})", f"install {again} again"
    return None


def _gpu() -> str:
    try:
        import torch
    except (ImportError, OSError):
        return "not looked for, torch does not import"
    if not torch.cuda.is_available():
        built = f"torch {torch.__version__} is built for CUDA {torch.version.cuda}"
        return f"none: models train on the CPU ({built if torch.version.cuda else 'torch for CPU'})"
    found = []
    for number in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(number)
        found.append(f"{number}: {card.name}, {card.total_memory / 2**30:.0f} GB")
    return "; ".join(found)


def _folder(path: Path, remedy: str) -> tuple[str, str]:
    """Whether files can be written into a folder, or into the nearest one that is there."""
    there = path
    try:
        while not there.exists() and there != there.parent:
            there = there.parent
        made = "" if there == path else ", made when it is needed"
        with tempfile.TemporaryFile(dir=there):
            free = shutil.disk_usage(there).free
    except OSError as error:
        return f"{path} cannot be written: {error.strerror or error}", remedy
    text = f"{path}{made}, {free / 2**30:.0f} GB free"
    if free < LEAST_FREE:
        return text, f"less than {LEAST_FREE >> 30} GB: make room, or {remedy}"
    return text, ""
