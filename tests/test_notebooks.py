"""The notebooks run as they are, on a small real grid."""

from pathlib import Path

import nbformat
import papermill
import pytest

pytestmark = pytest.mark.slow

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


@pytest.mark.parametrize("name", ["report", "compare_seeds"])
def test_a_notebook_runs(name: str, debug_grid: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.ipynb"
    parameters = {"grid": "compression.debug", "root": str(debug_grid / "outputs"), "by": ["losses.mmd"]}
    papermill.execute_notebook(
        NOTEBOOKS / f"{name}.ipynb", output, parameters, progress_bar=False, kernel_name="python3", cwd=str(tmp_path)
    )
    notebook = nbformat.read(output, as_version=4)
    shown = [data for cell in notebook.cells for out in cell.get("outputs", []) for data in out.get("data", {})]
    assert "image/png" in shown and "text/markdown" in shown


@pytest.mark.parametrize("name", ["report", "compare_seeds"])
def test_notebooks_are_kept_without_their_output(name: str) -> None:
    cells = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4).cells
    assert [cell for cell in cells if cell.cell_type == "code" and (cell.outputs or cell.execution_count)] == []
    assert "parameters" in cells[1].metadata["tags"]
