"""The README's code runs as it stands, and its tables say what the code does."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

from jaxdecouple import data, schedules
from jaxdecouple.planning import Times, timeline

ROOT = pathlib.Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PIECES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_quickstart_trains_and_is_saved(tmp_path):
    """And restored, exported, and loaded without this library."""
    quickstart, _, saving, loading = PIECES[:4]
    assert len(quickstart.strip().splitlines()) < 15
    check = "assert abs(logits - pipeline.predict(state, digits.x_test / 255.0)).max() < 1e-4"
    code = f"{quickstart}{saving}{loading}{check}\nprint(jd.checkpoints.metadata('checkpoint'))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    loss, accuracy, examples = re.search(r"loss=([\d.]+), accuracy=([\d.]+), examples=(\d+)", done.stdout).groups()
    assert float(loss) < 3 and 0 < float(accuracy) <= 1 and int(examples) == 360
    assert done.stdout.endswith("{'epoch': 1}\n")
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint", "model.msgpack"}


def test_the_drawn_schedule():
    drawn = schedules.draw(schedules.fdg(3), num_batches=5)
    assert "\n".join(f"    {line}" for line in drawn.splitlines()) in README


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


def test_the_timeline_example(tmp_path):
    code = "import jaxdecouple as jd\n" + PIECES[5]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("3.47") and "3.48 times one device" in code
    assert {path.name for path in tmp_path.iterdir()} == {"ddg.png", "ddg.json"}


def test_the_example_of_local_learning():
    quickstart, local = PIECES[:2]
    before, after = quickstart.split("state = pipeline.init")
    code = f"{before}{local}state = pipeline.init{after}\nprint(sorted(metrics.auxiliary))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("[0]\n")


def test_the_asynchronous_example(capsys):
    code = PIECES[4]
    digits = data.load("digits")
    exec(code, {"x": digits.x_train / 255.0, "y": digits.y_train})
    gap, delay = capsys.readouterr().out.split()
    assert abs(float(gap)) < 1e-2 and int(delay) > 3


def test_the_table_of_predicted_speeds():
    rows = {
        "| `ddg`, `pipedream` |": lambda K: schedules.ddg(K),
        "| `fdg`, backward first |": lambda K: schedules.fdg(K),
        "| `fdg`, forward first |": lambda K: schedules.fdg(K, order="forward_first"),
    }
    for label, schedule in rows.items():
        (row,) = (line for line in README.splitlines() if line.startswith(label))
        given = [float(cell) for cell in row[len(label) :].strip(" |").split("|")]
        expected = []
        for K in (4, 8):
            for transfer in (0.0, 0.3):
                links = [transfer] * (K - 1)
                times = Times(forward=[1] * K, backward=[2] * K, up=links, down=links)
                expected.append(timeline(schedule(K), times).speedup)
        assert given == pytest.approx(expected, abs=0.006)
