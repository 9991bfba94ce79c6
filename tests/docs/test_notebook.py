"""The notebooks run from their first cell to their last, with this Python and without anything installed for them."""

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
NOTEBOOKS = ROOT / "notebooks"
NAMES = ["quickstart", "language_model"]


def path_of(name):
    return NOTEBOOKS / f"{name}.ipynb"


def content(name):
    return json.loads(path_of(name).read_text(encoding="utf-8"))


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """Where kernels are; and no settings of the user's."""
    for variable in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable.lower()))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel's own draws into the notebook
    before = sorted(NOTEBOOKS.rglob("*"))
    yield tmp_path / "kernels"
    assert sorted(NOTEBOOKS.rglob("*")) == before


@pytest.mark.slow
def test_the_quick_start(kernel):
    outputs = execute(nbformat.read(path_of("quickstart"), as_version=4), kernel)
    assert len(images(outputs["timelines"])) == 2 and len(images(outputs["curves"])) == 1
    assert text(outputs["cut"]).count("ConvBlock") == 4
    assert re.search(r"stage 0 +F0 +F1 +B0 F2", text(outputs["schedules"]))
    assert text(outputs["staleness"]).split("\n")[:2] == ["backprop: [0, 0]", "fdg: [1, 0]"]
    errors = re.findall(r"(\w+): training loss [\d.]+, test error ([\d.]+) %", text(outputs["train"]))
    assert [name for name, _ in errors] == ["backprop", "fdg"] and all(float(error) < 8 for _, error in errors)
    assert "residuals 8, 9; gradients 8" in outputs["save"][0].data["text/html"]  # of stage 0
    assert "arrays are equal" in text(outputs["restore"])
    assert f"plain Flax: test error {errors[1][1]} %" in text(outputs["export"])


@pytest.mark.slow
def test_the_language_model_with_fewer_updates(kernel):
    notebook = nbformat.read(path_of("language_model"), as_version=4)
    (cell,) = (cell for cell in notebook.cells if cell.id == "devices")
    fewer = cell.source.replace("= 4, 64, 16, 300, 3e-3", "= 4, 16, 4, 12, 3e-3")
    assert fewer != cell.source
    cell.source = fewer
    outputs = execute(notebook, kernel)
    assert len(images(outputs["curves"])) == 1
    assert text(outputs["model"]).count("stage ") == 4 and text(outputs["model"]).count("SelfAttention") == 4
    assert text(outputs["schedules"]).splitlines() == [
        "plain: 1.00 times one device; updates in between: [0, 0, 0, 0]",
        "asynchronous: 4.00 times one device; updates in between: [3, 2, 1, 0]",
    ]
    losses = re.findall(r"(\w+): test loss ([\d.]+) nats per token, .*bits_per_byte", text(outputs["train"]))
    assert [name for name, _ in losses] == ["plain", "asynchronous"] and all(float(loss) < 5.6 for _, loss in losses)
    assert text(outputs["sample"]).startswith("The statement ")


def execute(notebook, kernels):
    """The outputs of each code cell, by its id; raises what a cell raises."""
    write_kernel_spec(str(kernels / "python3"))  # of the running Python
    manager = AsyncKernelManager(
        kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[str(kernels)])
    )
    folder = {"metadata": {"path": str(NOTEBOOKS)}}
    nbclient.NotebookClient(notebook, km=manager, resources=folder, timeout=300).execute(
        env=dict(os.environ), cleanup_kc=True
    )
    return {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}


def images(outputs):
    return [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]


def text(outputs):
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")


@pytest.mark.parametrize("name", NAMES)
def test_it_is_kept_without_outputs(name):
    cells = [cell for cell in content(name)["cells"] if cell["cell_type"] == "code"]
    assert cells and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    assert set(content(name)["metadata"]) == {"kernelspec", "language_info"}
    assert set(content(name)["metadata"]["language_info"]) == {"name"}


@pytest.mark.parametrize("name", NAMES)
def test_it_is_installed_from_the_address_that_the_pages_have(name):
    """Once the repository has one: in mkdocs.yml, and as SOURCE here."""
    found = re.search(r"^repo_url: (\S+)", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    (setup,) = ("".join(cell["source"]) for cell in content(name)["cells"] if cell["id"] == "setup")
    expected = f'SOURCE = "git+{found[1]}"' if found else "SOURCE = pathlib.Path.cwd().parent.as_uri()"
    assert expected in setup


@pytest.mark.parametrize("name", NAMES)
def test_its_links_lead_somewhere(name):
    prose = "\n".join("".join(cell["source"]) for cell in content(name)["cells"] if cell["cell_type"] == "markdown")
    links = re.findall(r"\]\(([^)]+)\)", prose)
    assert len(links) >= 2 and all((NOTEBOOKS / link).is_file() for link in links)
