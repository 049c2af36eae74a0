"""The notebooks run from the first cell to the last, in an empty folder, and show what they promise."""

import os

import pytest

from tests.commands import ROOT

nbformat = pytest.importorskip("nbformat", reason="the notebooks run by nbclient: pip install '.[test]'")
nbclient = pytest.importorskip("nbclient", reason="the notebooks run by nbclient: pip install '.[test]'")
pytest.importorskip("ipykernel", reason="the notebooks need ipykernel: pip install '.[test]'")

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
SHOWN = {
    "first_steps": {"image/png": 2, "text/html": 2},
    "train_a_controller": {"image/png": 2, "text/html": 3},
}
"""How many figures, and tables or records, a notebook shows."""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert cells
    assert [(cell.outputs, cell.execution_count) for cell in cells] == [([], None)] * len(cells)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    kinds = [kind for output in outputs for kind in output.get("data", ())]
    assert {kind: kinds.count(kind) for kind in SHOWN[path.stem]} == SHOWN[path.stem]
    assert "Traceback" not in "".join(output.get("text", "") for output in outputs)
