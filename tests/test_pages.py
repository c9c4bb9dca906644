"""README, CONTRIBUTING, docs and workflows: commands that exist, links that lead somewhere."""

import os
import re
import shlex
import sys

import pytest
import yaml

from recbole_tema.benchmark.command import parse as benchmark_of
from recbole_tema.cli import parse_arguments
from recbole_tema.config.keys import check_keys
from recbole_tema.config.registry import check_model
from recbole_tema.help_text import help_text
from tests.support.tiny_dataset import make_dataset
from tests.test_packaging import ROOT, run

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not (ROOT / ".ci").is_dir(), reason="an unpacked sdist has not all of it"),
]


def shown_commands(*pages):
    """The commands in the pages' shell blocks, continued lines joined, comments left out."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    lines = "\n".join(re.findall(r"^ *```(?:bash|sh)\n(.*?)^ *```", text, re.M | re.S))
    commands = [shlex.split(line, comments=True) for line in lines.replace("\\\n", " ").split("\n")]
    return list({tuple(command): command for command in commands if command}.values())


EXTRAS = "features,convert,benchmark"


def test_readme_shows_both_ways_to_start():
    commands = [" ".join(command) for command in shown_commands(ROOT / "README.md")]
    wanted = ("make run ARGS=--epochs=2", "make test", "pip install .", f"pip install .[{EXTRAS}]")
    for command in wanted:
        assert command in commands


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 250


@pytest.mark.parametrize("command", shown_commands(*PAGES), ids=" ".join)
def test_shown_command_is_one_that_exists(command, tmp_path):
    while "=" in command[0]:  # VARIABLE=value before the program
        command = command[1:]
    program, *words = command
    if program in ("git", "cd", "pip", "source"):
        return
    if program == "torchrun":
        program, words = "python", words[1:]
    if program == ".ci/run":
        assert os.access(ROOT / program, os.X_OK)
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
        assert {word for word in words if "=" not in word} <= set(targets)
    elif words[:1] == ["doctor"]:
        assert "doctor" in help_text("recbole-tema", "TEMA", "ml-100k-genre", tmp_path)
    elif program == "recbole-tema" or words[0] == "run_recbole_tema.py":
        check_arguments(words if program == "recbole-tema" else words[1:], tmp_path)
    elif words[:2] == ["-m", "dataset_tools"]:
        check_dataset_tools(words[2:])
    else:
        assert program == "python"
        assert (ROOT / words[0]).is_file()


def check_arguments(words, folder):
    keys = parse_arguments(words)
    if {"models", "ablation", "overlap"} & set(keys):
        # The reader's own, or what the command would make first.
        make_dataset(folder, keys.get("dataset", "ml-100k-genre"))
        keys["data_path"] = str(folder)
        spec, _, _ = benchmark_of(keys)
        assert spec.entries
        return
    model = keys.pop("model", "TEMA")
    check_model(model)
    for own in ("dataset", "config_files", "help", "version"):
        keys.pop(own, None)
    assert check_keys(dict.fromkeys(keys, "README"), model) == []


def check_dataset_tools(words):
    from dataset_tools.__main__ import main

    command = main.get_command(None, words[0])
    assert command is not None, words[0]
    # The reader's own folders are not here.
    folders = [i for i, word in enumerate(words) if word == "--images"]
    words = [word for i, word in enumerate(words) if i not in folders and i - 1 not in folders]
    command.make_context(words[0], words[1:])


def anchors(page):
    """What links into a page can name: its headings, spelled as GitHub and the site spell them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_point_at_files(page):
    links = re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", page.read_text(encoding="utf-8"))
    for target, anchor in links:
        if not target.startswith("http"):
            path = page.parent / target if target else page
            assert path.exists(), target
            assert not anchor or anchor in anchors(path), f"{target}#{anchor}"


def test_ci_runs_the_readmes_commands():
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    for target in ("test", "docs", "lint"):
        assert f"make {target}" in lines
    assert ["make", "test"] in shown_commands(ROOT / "README.md")


def test_the_workflow_checks_every_python_that_is_admitted():
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    jobs = yaml.safe_load(text)["jobs"]
    steps = [step for job in jobs.values() for step in job["steps"]]
    made = {step["run"].split()[1] for step in steps if step.get("run", "").startswith("make ")}
    assert made >= {"lint", "test", "test-lowest", "docs"}
    classifiers = re.findall(
        r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    )
    assert jobs["tests"]["strategy"]["matrix"]["python-version"] == classifiers


def test_the_hooks_run_tools_of_the_environment():
    text = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    (repository,) = yaml.safe_load(text)["repos"]
    hooks = {hook["id"]: hook for hook in repository["hooks"]}
    assert set(hooks) >= {"ruff", "ruff-format", "codespell", "end-of-file-fixer"}
    for hook in hooks.values():
        if hook["language"] == "system":
            python, *words = hook["entry"].split()
            assert python == ".venv/bin/python"
            done = run([sys.executable, *words, "--help"], ROOT)
            assert done.returncode == 0, done.stdout
