"""The README is short, and its table of methods says what the schedules are. Its code runs in test_pages.py."""

import pathlib
import re

from jaxdecouple import schedules

ROOT = pathlib.Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


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
        "paci(K)": schedules.paci(3),
        "dsp(p, m)": schedules.dsp((1, 1, 0), (4, 2, 0)),
        "dni(K)": schedules.dni(3),
        "dgl(K)": schedules.dgl(3),
    }
    rows = {
        name: [cell.strip() for cell in rest.split("|")] for name, rest in re.findall(r"^\| `(.*?)`(.*)", README, re.M)
    }
    rows = {name: cells[1:4] for name, cells in rows.items()}
    assert rows.pop("gpipe(K, M)")[2] == schedules.gpipe(3, 4).weights
    assert rows.pop("one_forward_one_backward(K, M)")[2] == schedules.one_forward_one_backward(3, 4).weights
    assert set(rows) == set(built)
    given = {"dsp(p, m)": ["given", "from m, the staleness"], "dgl(K)": ["1", "-"]}
    for name, schedule in built.items():
        delays = given.get(name, [str(schedule.p[0]), str(schedule.q[0])])
        weights = "-" if name in ("backprop(K)", "dgl(K)") else schedule.weights
        assert rows[name] == [*delays, weights], name
    first = {name.partition("(")[0] for name, schedule in built.items() if schedule.order == "backward_first"}
    choosing = (ROOT / "docs" / "tutorials" / "choosing_a_method.md").read_text()
    (said,) = re.findall(r"does its forward first; under (.*?), its backward", choosing)
    assert set(re.findall(r"`(\w+)`", said)) == first
