"""Code in pages runs as it stands, and what the pages say of schedules, speeds and names is so."""

import pathlib
import re

import pytest

import jaxdecouple as jd
from jaxdecouple import schedules
from jaxdecouple.planning import Times, timeline

ROOT = pathlib.Path(__file__).parents[2]
DOCS = ROOT / "docs"
OTHERS = ("asynchronous.md", "checkpoints/README.md", "local_learning.md", "transforms.md")  # have tests of their own


def pieces(page):
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


PAGES = {
    page.relative_to(ROOT).as_posix(): page
    for page in [*ROOT.glob("*.md"), *DOCS.rglob("*.md")]
    if pieces(page) and page not in [DOCS / name for name in OTHERS]
}


@pytest.mark.parametrize("name", PAGES)
def test_the_code_of_a_page_runs_in_order(name, few_digits, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    for piece in pieces(PAGES[name]):
        exec(compile(piece, name, "exec"), names)
    for accuracy in re.findall(r"accuracy[= ]([\d.]+)", capsys.readouterr().out):
        assert float(accuracy) > 0.5  # of 192 images


def test_pages_that_show_how_to_train_are_among_them():
    assert {"README.md", "docs/tutorials/first_pipeline.md", "docs/tutorials/own_model.md"} <= set(PAGES)


@pytest.mark.parametrize(
    "name, schedule, num_batches",
    [
        ("tutorials/first_pipeline.md", schedules.fdg(2), 4),
        ("explanation/staleness.md", schedules.fdg(3), 5),
    ],
)
def test_a_drawn_schedule(name, schedule, num_batches):
    drawn = schedules.draw(schedule, num_batches=num_batches)
    assert "\n".join(f"    {line}" for line in drawn.splitlines()) in (DOCS / name).read_text()


def test_the_formula_of_staleness():
    """That of explanation/staleness.md, for both orders."""
    for M in (1, 2, 4):
        for k, lag in enumerate((6, 4, 2, 0)):
            late = [max(0, -((j - lag) // M)) for j in range(M)]
            early = [max(0, -((j + 1 - lag) // M)) for j in range(M)]
            assert list(schedules.staleness(schedules.fdg(4, order="forward_first"), M)[k]) == late
            assert list(schedules.staleness(schedules.fdg(4, order="backward_first"), M)[k]) == early


def test_the_table_of_predicted_speeds():
    page = (DOCS / "explanation" / "no_barrier.md").read_text()
    rows = {
        "| `ddg`, `pipedream` |": lambda K: schedules.ddg(K),
        "| `fdg`, backward first |": lambda K: schedules.fdg(K, order="backward_first"),
        "| `fdg`, forward first |": lambda K: schedules.fdg(K, order="forward_first"),
    }
    for label, schedule in rows.items():
        (row,) = (line for line in page.splitlines() if line.startswith(label))
        given = [float(cell) for cell in row[len(label) :].strip(" |").split("|")]
        expected = []
        for K in (4, 8):
            for transfer in (0.0, 0.3):
                links = [transfer] * (K - 1)
                times = Times(forward=[1] * K, backward=[2] * K, up=links, down=links)
                expected.append(timeline(schedule(K), times).speedup)
        assert given == pytest.approx(expected, abs=0.006)


def test_every_public_name_has_an_entry_in_the_reference():
    pages = "".join(page.read_text() for page in DOCS.glob("reference/*.md"))
    entries = re.findall(r"^::: jaxdecouple\.(\S+)|`(schedules\.[A-Z]+)`", pages, re.MULTILINE)
    entries = [entry or constant for entry, constant in entries]
    rooms = {"asynchronous", "checkpoints", "data", "models", "schedules"}
    missing = set(jd.__all__) - rooms - set(entries)
    for room in rooms & set(jd.__all__):
        names = set(getattr(jd, room).__all__) - set(jd.__all__)
        missing |= {f"{room}.{name}" for name in names} - set(entries)
    assert missing == set() and len(entries) == len(set(entries)) > 40
