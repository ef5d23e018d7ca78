"""The notebooks, run as a reader runs them: every cell, in one kernel."""

import re
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest
from conftest import ROOT, devices_flags, program_environment

pytestmark = pytest.mark.slow

NOTEBOOKS = ROOT / "notebooks"


def output_of(cell: Any) -> str:
    """What a cell printed and showed, as text."""
    return "".join(
        output.get("text") or output.get("data", {}).get("text/plain", "")
        for output in cell.outputs
    )


def test_a_reader_pretrains_fine_tunes_and_predicts(
    tmp_path: Path, corpus_directory: Path, compiled_programs: Path
):
    notebook = nbformat.read(NOTEBOOKS / "pretrain_and_fine_tune.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs for cell in cells)  # what it shows is what a reader computes
    (parameters,) = [cell for cell in cells if "parameters" in cell.metadata.get("tags", ())]
    for name, value in [
        ("WORKDIR", str(tmp_path / "run")),
        ("STEPS", 4),
        ("CORPUS", str(corpus_directory)),
    ]:
        assert f"{name} = " in parameters.source
        parameters.source += f"\n{name} = {value!r}"
    client = nbclient.NotebookClient(
        notebook,
        resources={"metadata": {"path": str(NOTEBOOKS)}},
        # A busy machine fails no test.
        startup_timeout=300,
        iopub_timeout=300,
    )
    client.execute(env=program_environment(compiled_programs) | devices_flags(1))

    shown = "\n".join(output_of(cell) for cell in cells)
    for name in ("run", "run-classifier"):
        assert f"the report is {tmp_path / name}/report.html\n0" in shown  # main's result
    assert "HTML object" in shown
    (filled,) = (output_of(cell) for cell in cells if "fill-mask" in cell.source)
    assert filled.count("%") == 10
    (accuracy,) = re.findall(r"validation accuracy (\S+),", shown)
    assert float(accuracy) > 0.6  # the most frequent library has 0.36 of the rows
    (classified,) = (output_of(cell) for cell in cells if '"classify"' in cell.source)
    assert len(re.findall("^(?:arrays|plots|signals|statistics) .*%", classified, re.M)) == 4
    assert "float32" in output_of(cells[-1])
    figures = [out for cell in cells for out in cell.outputs if "image/png" in out.get("data", {})]
    assert len(figures) == 1
