"""What newer numpy and scipy took from RecBole is there again, before RecBole is."""

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from recbole.utils import get_model
from scipy.sparse import dok_matrix

from recbole_tema import compat, run_recbole_tema

PACKAGE = Path(compat.__file__).parent


def loaded_after(statement):
    """The names of the modules that a fresh Python has after a statement."""
    script = f"import sys; {statement}; print(*sys.modules)"
    command = [sys.executable, "-c", script]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def imports(path):
    """The modules that a file imports as it is loaded, in their order."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def test_nothing_imports_recbole_before_it_is_made_to_fit():
    """Whichever module is the first: itself or its folder imports `compat`, then RecBole."""
    checked = 0
    for path in sorted(PACKAGE.rglob("*.py")):
        order = [*imports(path.with_name("__init__.py")), *imports(path)]
        theirs = [i for i, name in enumerate(order) if name.split(".")[0] == "recbole"]
        if theirs:
            assert "recbole_tema.compat" in order[: theirs[0]], path
            checked += 1
    assert checked > 20


def test_what_recbole_does_not_need_is_not_loaded():
    loaded = loaded_after("from recbole_tema import run_recbole_tema, TEMA, LLM4CDSR")
    assert "recbole" in loaded
    assert not loaded & {"ray", "thop", "plotly", "pkg_resources", "recbole.quick_start"}


def test_a_file_of_that_name_is_not_recbole(tmp_path):
    (tmp_path / "recbole.py").touch()
    command = [sys.executable, "-c", "from recbole_tema.paths import recbole_dir; recbole_dir()"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "ConfigError: RecBole is not installed; run: pip install" in done.stderr


SINE = "from recbole.model.sequential_recommender import SASRec"
OURS = "from recbole_tema import TEMA"
BY_NAME = "from recbole_tema.config.registry import get_model_class; get_model_class('FDSA')"
NAMES = "import numpy as np; np.float_, np.complex_, np.unicode_ = float, complex, str"


@pytest.mark.parametrize(
    ("statements", "expected"),
    [
        ([BY_NAME, SINE], False),
        ([NAMES, SINE, "assert torch.is_anomaly_enabled()", OURS], False),
        (["torch.autograd.set_detect_anomaly(True)", OURS, SINE], True),
    ],
    ids=str,
)
def test_gradients_are_debugged_where_the_user_says_so(statements, expected):
    """RecBole's sequential models switch that on, whoever imports one of them."""
    code = ["import torch", *statements, "print(torch.is_anomaly_enabled())"]
    command = [sys.executable, "-c", "\n".join(code)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == f"{expected}\n", done.stderr


def test_names_and_a_library_that_has_them_is_left_alone(monkeypatch):
    assert (np.float_, np.complex_, np.unicode_) == (np.float64, np.complex128, np.str_)
    assert compat.restore_names() == []
    kept = object()
    monkeypatch.setattr(np, "float_", kept)
    monkeypatch.setattr(dok_matrix, "_update", kept)
    monkeypatch.delattr(np, "complex_")
    assert compat.restore_names() == ["complex_"]
    assert np.float_ is dok_matrix._update is kept


def test_a_graph_is_filled_by_update():
    matrix = dok_matrix((3, 3), dtype=np.float32)
    matrix._update({(0, 1): 2.0, (2, 0): 1.0})
    expected = [[0, 2, 0], [0, 0, 0], [1, 0, 0]]
    assert matrix.tocoo().toarray().tolist() == expected


@pytest.mark.parametrize("model", ["LightGCN", "NGCF", "GCMC", "SpectralCF"])
def test_graph_models_of_recbole_train(settings, model):
    assert "_update" in Path(sys.modules[get_model(model).__module__].__file__).read_text()
    keys = {key: settings[key] for key in settings if key != "hidden_size"} | {"epochs": 1}
    result = run_recbole_tema(model, "tiny", config_dict=keys)
    assert 0 <= result["test_result"]["ndcg@3"] <= 1
