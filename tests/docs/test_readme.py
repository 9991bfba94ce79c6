"""The README is short, and its table of methods says what the schedules are. Its code runs in test_pages.py."""

import pathlib
import re

from jaxdecouple import schedules

README = (pathlib.Path(__file__).parents[2] / "README.md").read_text()


def test_it_is_short():
    assert len(README.split()) <= 900
    first = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]
    assert len(first.strip().splitlines()) <= 15


def test_each_picture_is_drawn_by_the_command_beside_it():
    from experiments.gallery import PICTURES

    shown = re.findall(r"!\[[^\]]+\]\(docs/gallery/(\w+)\.png\)", README)
    assert len(shown) == 2 and set(shown) <= set(PICTURES)
    assert "python -m experiments.gallery" in README
    assert all(draw().axes for draw in PICTURES.values())


def test_the_method_table():
    built = {
        "backprop(K)": schedules.backprop(3),
        "ddg(K)": schedules.ddg(3),
        "features_replay(K)": schedules.features_replay(3),
        "fdg(K)": schedules.fdg(3),
        "adl(K)": schedules.adl(3),
        "pipedream(K)": schedules.pipedream(3),
    }
    cells = [row for row in map(_cells, README.splitlines()) if row]
    rows = {row[1].strip("` "): [cell.strip() for cell in row[2:6]] for row in cells}
    for name, schedule in built.items():
        order = schedule.order.replace("_", " ")
        weights = "-" if name == "backprop(K)" else schedule.weights
        assert rows[name] == [str(schedule.p[0]), str(schedule.q[0]), order, weights]
    assert rows["dgl(K)"] == ["1", "-", "every stage learns in its forward", "-"]
    dni = schedules.dni(3)
    assert rows["dni(K)"][:2] == [str(dni.p[0]), str(dni.q[0])] and rows["dni(K)"][3] == dni.weights
    assert rows["gpipe(K, M)"][3] == schedules.gpipe(3, 4).weights
    dsp = schedules.dsp((1, 1, 0), (4, 2, 0))
    assert rows["dsp(p, m)"][2:] == [dsp.order.replace("_", " "), dsp.weights]


def _cells(line):
    cells = line.split("|")
    return cells if len(cells) == 8 and cells[1].startswith(" `") else None
