"""What a user installs and reads: wheel, pins, the Makefile's environment, commands, links."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = (".*", "build", "dist", "site", "*.egg-info", "__pycache__", "saved")
LEFT_OUT += ("log", "log_tensorboard")


def run(command, cwd, **variables):
    """Run a command to its end; its output, stderr included, is in `stdout`."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    env |= {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", **variables}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.run(command, cwd=cwd, env=env, text=True, check=False, timeout=300, **pipes)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the checkout, so that building leaves nothing in the real one."""
    copy = tmp_path_factory.mktemp("source") / "checkout"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*LEFT_OUT, "results"))
    return copy


@pytest.fixture(scope="module")
def wheel(checkout, tmp_path_factory):
    """The wheel that pip builds from the checkout."""
    out = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    done = run([*pip, "-w", str(out), str(checkout)], out)
    assert done.returncode == 0, done.stdout
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return Parser().parsestr(archive.read(name).decode())


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder that pip installed the wheel into, and nothing else."""
    target = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index"]
    done = run([*pip, "--target", str(target), str(wheel)], target)
    assert done.returncode == 0, done.stdout
    return target


def pins():
    """The constraints, name -> Requirement."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    parsed = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonical(pin.name): pin for pin in parsed}


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_wheel_holds_the_properties_and_no_tests(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        for path in (ROOT / "properties").rglob("*.yaml"):
            inside = f"recbole_tema/properties/{path.relative_to(ROOT / 'properties').as_posix()}"
            assert archive.read(inside) == path.read_bytes()
        data = [
            p for kind in ("prompts", "shipped") for p in (ROOT / "dataset_tools" / kind).rglob("*")
        ]
        assert len([path for path in data if path.is_file()]) > 8
        for path in filter(Path.is_file, data):
            assert archive.read(path.relative_to(ROOT).as_posix()) == path.read_bytes()
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "recbole_tema").rglob("*.py")}
    modules |= {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "dataset_tools").rglob("*.py")
    }
    assert {name for name in names if name.endswith(".py")} == modules
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "recbole_tema",
        "dataset_tools",
    }


def test_sdist_builds_the_same_wheel(checkout, wheel, tmp_path):
    hook = "from setuptools import build_meta as b; print(b.build_sdist({!r}))"
    done = run([sys.executable, "-c", hook.format(str(tmp_path))], checkout)
    assert done.returncode == 0, done.stdout
    (archive,) = tmp_path.glob("*.tar.gz")
    shutil.unpack_archive(archive, tmp_path)
    (source,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    hook = "from setuptools import build_meta as b; print(b.build_wheel({!r}))"
    done = run([sys.executable, "-c", hook.format(str(tmp_path))], source)
    assert done.returncode == 0, done.stdout
    (again,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(again) as mine, zipfile.ZipFile(wheel) as theirs:
        assert set(mine.namelist()) == set(theirs.namelist())


def test_installed_wheel_trains_from_another_directory(installed, tiny_root, tmp_path):
    program = installed / "bin" / "recbole-tema"
    where = "import recbole_tema, dataset_tools; print(recbole_tema.__file__)"
    found = run([sys.executable, "-c", where], tmp_path, PYTHONPATH=str(installed))
    assert Path(found.stdout.strip()).parent == installed / "recbole_tema"

    usage = run([program, "--help"], tmp_path, PYTHONPATH=str(installed))
    assert usage.returncode == 0, usage.stdout
    assert usage.stdout.startswith("usage: recbole-tema ")
    arguments = ["--model=TEMA", "--dataset=tiny", "--epochs=1", "--verbose"]
    arguments += [f"--data_path={tiny_root}", "--hidden_size=16"]
    done = run([program, *arguments], tmp_path, PYTHONPATH=str(installed))
    assert done.returncode == 0, done.stdout
    assert "test result" in done.stdout
    # A default that only our properties give.
    assert re.search(r"candidates.* = .*in_domain", done.stdout)


def test_console_script_and_file_are_the_same_program(installed, tmp_path):
    script = run(
        [installed / "bin" / "recbole-tema", "--model=TEMMA"], tmp_path, PYTHONPATH=str(installed)
    )
    file = run([sys.executable, ROOT / "run_recbole_tema.py", "--model=TEMMA"], tmp_path)
    assert script.stdout == file.stdout
    assert script.returncode == file.returncode == 2
    assert len(script.stdout.splitlines()) == 1
    assert "TEMA" in script.stdout


def test_every_direct_requirement_is_pinned_inside_its_range(metadata):
    chosen = pins()
    asked = [Requirement(text) for text in metadata.get_all("Requires-Dist")]
    asked = [requirement for requirement in asked if "dev" not in str(requirement.marker)]
    assert len(asked) > 20
    for requirement in asked:
        (pin,) = chosen[canonical(requirement.name)].specifier
        assert pin.operator in ("==", "===")
        assert requirement.specifier.contains(pin.version), f"{requirement} excludes {pin}"


@pytest.mark.parametrize(
    ("package", "works", "fails"),
    [
        ("numpy", ("1.26.4", "2.4.6"), "3.0.0"),
        # Under pandas 3 RecBole's agg(len) gets whole columns, its fillna(inplace=True) a copy.
        ("pandas", ("2.2.0", "2.3.3"), "3.0.0"),
        ("scipy", ("1.12.0", "1.17.1"), "2.0.0"),
        ("torch", ("2.6.0", "2.14.1"), "2.15.0"),
    ],
)
def test_ranges(metadata, package, works, fails):
    asked = [Requirement(text) for text in metadata.get_all("Requires-Dist")]
    (requirement,) = [one for one in asked if one.name == package and one.marker is None]
    assert all(map(requirement.specifier.contains, works))
    assert not requirement.specifier.contains(fails)


def test_what_recbole_asks_for_is_asked_for_but_what_nothing_here_imports(metadata):
    asked = {canonical(Requirement(t).name) for t in metadata.get_all("Requires-Dist")}
    theirs = [Requirement(text) for text in distribution("recbole").requires]
    theirs = {canonical(one.name): one for one in theirs if one.marker is None}
    assert theirs.keys() - asked == {"ray", "thop", "plotly"}
    for name in theirs.keys() & pins().keys():
        (pin,) = pins()[name].specifier
        assert theirs[name].specifier.contains(pin.version)


def test_pythons(metadata):
    pythons = SpecifierSet(metadata["Requires-Python"])
    versions = ("3.10", "3.11", "3.12", "3.13", "3.14", "3.15")
    assert [version in pythons for version in versions] == [False, True, True, True, True, False]


def make(*words, cwd=ROOT, **variables):
    if shutil.which("make") is None:
        pytest.skip("GNU make is not installed")
    return run(["make", "--no-print-directory", *words], cwd, **variables)


def test_make_help_names_every_target():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.search(r"^\.PHONY: (.*)$", text, re.M).group(1).split()) - {"help"}
    listed = set(re.findall(r"^make ([\w-]+)", make().stdout, re.M))
    assert listed == targets == set(re.findall(r"^([\w-]+):", text, re.M)) - {"help"}


def test_make_without_a_fitting_python_says_what_to_install(tmp_path):
    done = make("install", f"VENV={tmp_path / 'venv'}", "PYTHON=no-such-python")
    assert done.returncode == 2
    start = "error: no Python 3.11 to 3.14 among: no-such-python (found: none); install"
    assert done.stdout.startswith(start)
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize("version", [(3, 10, 13), (3, 15, 0)])
def test_make_with_another_python_names_its_version(tmp_path, version):
    """A Python that says it is older or newer: the same test of versions, another answer."""
    python = tmp_path / "python"
    said = ".".join(map(str, version))
    python.write_text(
        f"#!{sys.executable}\nimport sys, platform\nsys.version_info = {version}\n"
        f"platform.python_version = lambda: '{said}'\nexec(sys.argv[2])\n",
        encoding="utf-8",
    )
    python.chmod(0o755)
    done = make("install", f"VENV={tmp_path / 'venv'}", f"PYTHON={python}")
    assert done.returncode == 2
    assert done.stdout.startswith("error: no Python 3.11 to 3.14 among:")
    assert f"(found: {said});" in done.stdout
    assert not (tmp_path / "venv").exists()


def test_python_without_ensurepip_is_told_what_debian_ships_apart(tmp_path):
    # As on a Debian machine without python3-venv: the import fails.
    text = "raise ImportError('No module named ensurepip', name='ensurepip')"
    (tmp_path / "ensurepip.py").write_text(text, encoding="utf-8")
    words = ("install", f"VENV={tmp_path / 'venv'}", f"PYTHON={sys.executable}")
    done = make(*words, PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    assert "cannot make virtual environments (no ensurepip)" in done.stdout
    assert f"apt install {version}-venv" in done.stdout
    assert not (tmp_path / "venv").exists()


def make_venv(checkout, venv):
    """Run tools/make_venv.py where no server of packages can be reached."""
    command = [sys.executable, "tools/make_venv.py", str(venv)]
    nobody = "http://127.0.0.1:9/simple"
    nowhere = {
        "PIP_INDEX_URL": nobody,
        "PIP_FIND_LINKS": str(venv.parent),
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_RETRIES": "0",
        "UV_DEFAULT_INDEX": nobody,
        "UV_HTTP_RETRIES": "0",
        "UV_NO_CACHE": "1",
    }
    return run(command, checkout, **nowhere)


@pytest.mark.parametrize("stale", ["pins", "place", "packages"])
def test_current_environment_is_reused_and_a_stale_one_is_not(checkout, tmp_path, stale):
    venv = tmp_path / "venv"
    venv.mkdir()
    script = "import json, make_venv as m; print(json.dumps(m.wanted_stamp()))"
    stamp = json.loads(run([sys.executable, "-c", script], checkout / "tools").stdout)
    package = venv / "lib" / "python3" / "site-packages" / "numpy-2.4.6.dist-info"
    package.mkdir(parents=True)
    stamp["packages"] = [package.name]
    (venv / "installed.json").write_text(json.dumps(stamp), encoding="utf-8")
    assert make_venv(checkout, venv).returncode == 0
    assert sorted(path.name for path in venv.iterdir()) == ["installed.json", "lib"]

    if stale == "pins":
        stamp["pins"]["constraints.txt"] = "0" * 64
    elif stale == "place":
        stamp["base"][-1] = "/moved/from/here"
    else:  # another program put another version there
        package.rename(package.with_name("numpy-2.5.0.dist-info"))
    (venv / "installed.json").write_text(json.dumps(stamp), encoding="utf-8")
    done = make_venv(checkout, venv)  # it sets out to install, and finds no package
    assert done.returncode == 1
    said, error = done.stdout.splitlines()
    assert said.startswith("installing into ")
    assert error.startswith("error: could not install the packages: no package index could be")
    assert str(venv / "install.log") in error
    assert not list(venv.glob("installed*")), "a failed install must not pass for a finished one"
    assert (stale != "place") or (venv / "bin" / "python").exists()


def test_cut_off_stamp_counts_as_none(checkout, tmp_path):
    (tmp_path / "installed.json").write_text('{"base": ["3.11"], "pi', encoding="utf-8")
    script = "import make_venv as m, pathlib, sys; print(m.read_stamp(pathlib.Path(sys.argv[1])))"
    command = [sys.executable, "-c", script, str(tmp_path / "installed.json")]
    assert run(command, checkout / "tools").stdout == "None\n"


PROGRAM = "from recbole_tema.cli import main; raise SystemExit(main(['--model=TEMA']))"


def test_without_recbole_one_line_says_what_to_install(tmp_path):
    hide = "import importlib.util as u; find = u.find_spec; " + (
        "u.find_spec = lambda name, *a: None if name == 'recbole' else find(name, *a); "
    )
    for script in (PROGRAM, "from recbole_tema import TEMA"):
        done = run([sys.executable, "-c", hide + script], tmp_path)
        last = done.stdout.splitlines()[-1]
        assert "RecBole is not installed; run: pip install --no-deps recbole==1.2.1" in last
    done = run([sys.executable, "-c", hide + PROGRAM], tmp_path)
    assert (done.returncode, len(done.stdout.splitlines())) == (2, 1)


def test_another_recbole_is_told_which_one_it_takes(tmp_path):
    old = "import importlib.metadata as m; get = m.version; " + (
        "m.version = lambda name: '1.1.1' if name == 'recbole' else get(name); "
    )
    done = run([sys.executable, "-c", old + PROGRAM], tmp_path)
    assert (done.returncode, len(done.stdout.splitlines())) == (2, 1)
    assert "RecBole 1.1.1 is installed, this package works with 1.2.1" in done.stdout
    assert "pip install --no-deps recbole==1.2.1" in done.stdout


def test_recbole_without_metadata_is_told_apart(tmp_path):
    (tmp_path / "recbole").mkdir()
    (tmp_path / "recbole" / "__init__.py").write_text("")
    bare = "import importlib.metadata as m; get = m.version\n" + (
        "def version(name):\n    if name == 'recbole': raise m.PackageNotFoundError(name)\n"
        "    return get(name)\nm.version = version\n"
    )
    done = run([sys.executable, "-c", bare + PROGRAM], tmp_path)
    assert (done.returncode, len(done.stdout.splitlines())) == (2, 1)
    assert "RecBole of an unknown version (a folder without metadata) is installed" in done.stdout


def test_only_what_an_installer_says_is_read_for_its_reason(checkout):
    """The command lines of the log hold addresses and names that look like reasons."""
    script = (
        "import sys, make_venv as m; print([bool(m.NO_NETWORK.search(t)) for t in sys.argv[1:]])"
    )
    texts = [
        "$ pip install --proxy=http://proxy error\nERROR: No space left on device",
        "$ uv pip install x\nerror: error sending request for url (https://pypi.org/simple/)",
        "$ pip install x\nERROR: No matching distribution found for x (from versions: none)",
        "$ pip install timed out\nsyntax error in setup.py",
    ]
    done = run([sys.executable, "-c", script, *texts], checkout / "tools")
    assert done.stdout == "[False, True, True, False]\n"
