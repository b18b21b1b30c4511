"""The notebooks run as they are, on a small real grid."""

import re
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


def test_the_study_runs_on_its_stored_results(tmp_path: Path) -> None:
    output = tmp_path / "out.ipynb"
    papermill.execute_notebook(
        NOTEBOOKS / "factorisation_gap.ipynb",
        output,
        {"figures": str(tmp_path)},
        progress_bar=False,
        kernel_name="python3",
        cwd=str(NOTEBOOKS.parent),
    )
    cells = nbformat.read(output, as_version=4).cells
    text = "\n".join(
        str(out.get("data", {}).get("text/markdown", "")) for cell in cells for out in cell.get("outputs", [])
    )
    assert "108 language models on 36 codecs" in text
    assert re.search(r"parallel \| closed form, 0.5 \| evaluate.gap \| 6 \| 0.4132 \| 0.2146 \| -0.1986", text)
    assert {path.stem.split("_")[-1] for path in tmp_path.glob("*.png")} == {"quality", "likelihoods", "sound"}


@pytest.mark.parametrize("name", ["report", "compare_seeds", "factorisation_gap"])
def test_notebooks_are_kept_without_their_output(name: str) -> None:
    cells = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4).cells
    assert [cell for cell in cells if cell.cell_type == "code" and (cell.outputs or cell.execution_count)] == []
    assert "parameters" in cells[1].metadata["tags"]
