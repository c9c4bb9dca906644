"""Which module may import which: data flow one way, and no import goes in a circle."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOOR = "recbole_tema.builtin"  # to dataset_tools
# Models read batches, not files; data know no model; a folder knows nothing that is built on it.
FORBIDDEN = {
    "recbole_tema.model": tuple(
        f"recbole_tema.data.{name}"
        for name in ("atomic", "cells", "feature_file", "reading", "schema")
    ),
    "recbole_tema.data": ("recbole_tema.model", "recbole_tema.benchmark"),
    "recbole_tema.evaluation": ("recbole_tema.model", "recbole_tema.benchmark"),
    **dict.fromkeys(
        ("dataset_tools.llm", "dataset_tools.images", "dataset_tools.dataset"),
        tuple(
            f"dataset_tools.{name}"
            for name in ("builtin", "convert", "describe", "encoders", "enrich", "tags")
        ),
    ),
    "dataset_tools.encoders": ("dataset_tools.enrich", "dataset_tools.tags", "dataset_tools.llm"),
}


def modules():
    """Dotted name -> file of every module of both packages."""
    found = {}
    for package in ("recbole_tema", "dataset_tools"):
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def graph(run=False):
    """Module -> the modules that it imports, as it is loaded or later, in a function.

    With ``run`` without those of ``if TYPE_CHECKING``, which no program ever imports.
    """
    files = modules()
    edges = {name: set() for name in files}
    for name, path in files.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if run:
            tree.body = [node for node in tree.body if not is_for_types(node)]
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                named = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                # A module of that name in the package, else what the package itself holds.
                inside = [f"{node.module}.{alias.name}" for alias in node.names]
                named = [one if one in files else node.module for one in inside]
            else:
                continue
            edges[name].update(one for one in named if one in files and one != name)
    return edges


def is_for_types(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def is_in(name, folder):
    return name == folder or name.startswith(f"{folder}.")


def test_no_import_goes_in_a_circle():
    edges = graph(run=True)
    assert len(edges) > 150 and sum(map(len, edges.values())) > 500
    tuple(TopologicalSorter(edges).static_order())  # else CycleError, with the circle


def test_one_door_leads_to_dataset_tools():
    doors = {
        name
        for name, imported in graph().items()
        if is_in(name, "recbole_tema") and any(is_in(one, "dataset_tools") for one in imported)
    }
    assert doors == {DOOR}


def test_no_folder_imports_what_is_built_on_it():
    edges = graph()
    for folder, forbidden in FORBIDDEN.items():
        inside = [name for name in edges if is_in(name, folder)]
        assert inside, folder
        for name in inside:
            wrong = [one for one in edges[name] if any(is_in(one, f) for f in forbidden)]
            assert not wrong, f"{name} imports {', '.join(wrong)}"


def test_nothing_imports_a_command_line():
    for name, imported in graph().items():
        for cli in ("recbole_tema.cli", "dataset_tools.cli"):
            if not is_in(name, cli) and name != "dataset_tools.__main__":
                assert not any(is_in(one, cli) for one in imported), name
