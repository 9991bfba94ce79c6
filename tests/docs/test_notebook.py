"""The notebook runs from its first cell to its last, with this Python and without anything installed for it."""

import json
import os
import pathlib
import re

import nbclient
import nbformat
import pytest
from ipykernel.kernelspec import write_kernel_spec
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager

ROOT = pathlib.Path(__file__).parents[2]
PATH = ROOT / "notebooks" / "quickstart.ipynb"
CONTENT = json.loads(PATH.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_every_cell_runs(tmp_path, monkeypatch):
    for variable in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable.lower()))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel's own draws into the notebook
    before = sorted(PATH.parent.rglob("*"))

    outputs = execute(nbformat.read(PATH, as_version=4), tmp_path / "kernels")

    assert sorted(PATH.parent.rglob("*")) == before
    assert len(images(outputs["timelines"])) == 2 and len(images(outputs["curves"])) == 1
    assert text(outputs["cut"]).count("ConvBlock") == 4
    assert re.search(r"stage 0 +F0 +F1 +B0 F2", text(outputs["schedules"]))
    assert text(outputs["staleness"]).split("\n")[:2] == ["backprop: [0, 0]", "fdg: [1, 0]"]
    errors = re.findall(r"(\w+): training loss [\d.]+, test error ([\d.]+) %", text(outputs["train"]))
    assert [name for name, _ in errors] == ["backprop", "fdg"] and all(float(error) < 8 for _, error in errors)
    assert "arrays are equal" in text(outputs["restore"])
    assert f"plain Flax: test error {errors[1][1]} %" in text(outputs["export"])


def execute(notebook, kernels):
    """The outputs of each code cell, by its id; raises what a cell raises."""
    write_kernel_spec(str(kernels / "python3"))  # of the running Python
    manager = AsyncKernelManager(
        kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[str(kernels)])
    )
    folder = {"metadata": {"path": str(PATH.parent)}}
    nbclient.NotebookClient(notebook, km=manager, resources=folder, timeout=300).execute(env=dict(os.environ))
    return {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}


def images(outputs):
    return [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]


def text(outputs):
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")


def test_it_is_kept_without_outputs():
    cells = [cell for cell in CONTENT["cells"] if cell["cell_type"] == "code"]
    assert cells and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    assert set(CONTENT["metadata"]) == {"kernelspec", "language_info"}
    assert set(CONTENT["metadata"]["language_info"]) == {"name"}


def test_it_is_installed_from_the_address_that_the_pages_have():
    """Once the repository has one: in mkdocs.yml, and as SOURCE here."""
    found = re.search(r"^repo_url: (\S+)", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    (setup,) = ("".join(cell["source"]) for cell in CONTENT["cells"] if cell["id"] == "setup")
    expected = f'SOURCE = "git+{found[1]}"' if found else "SOURCE = pathlib.Path.cwd().parent.as_uri()"
    assert expected in setup


def test_its_links_lead_somewhere():
    prose = "\n".join("".join(cell["source"]) for cell in CONTENT["cells"] if cell["cell_type"] == "markdown")
    links = re.findall(r"\]\(([^)]+)\)", prose)
    assert len(links) >= 4 and all((PATH.parent / link).is_file() for link in links)
