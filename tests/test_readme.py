"""The README's code runs as it stands, and its tables say what the code does."""

import pathlib
import re
import subprocess
import sys

from jaxdecouple import schedules

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_quickstart_trains():
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    assert len(code.strip().splitlines()) < 15
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    loss, accuracy, examples = re.search(r"loss=([\d.]+), accuracy=([\d.]+), examples=(\d+)", done.stdout).groups()
    assert float(loss) < 3 and 0 < float(accuracy) <= 1 and int(examples) == 360


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
    assert rows["gpipe(K, M)"][3] == schedules.gpipe(3, 4).weights
    dsp = schedules.dsp((1, 1, 0), (4, 2, 0))
    assert rows["dsp(p, m)"][2:] == [dsp.order.replace("_", " "), dsp.weights]


def _cells(line):
    cells = line.split("|")
    return cells if len(cells) == 8 and cells[1].startswith(" `") else None
