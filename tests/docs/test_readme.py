"""The README's code runs as it stands, and its tables say what the code does."""

import pathlib
import re
import tomllib

import jax
import pytest

import jaxdecouple as jd
from jaxdecouple import schedules
from jaxdecouple.planning import Times, timeline

ROOT = pathlib.Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PIECES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_code_runs_in_order(few_digits, tmp_path, monkeypatch, capsys):
    """The quickstart trains and learns locally, is saved, restored, exported, and loaded without this library."""
    monkeypatch.chdir(tmp_path)
    names, said = {}, []
    assert len(PIECES) == 6 and len(PIECES[0].strip().splitlines()) < 15
    for piece in PIECES:
        if piece is PIECES[4]:  # which takes no time, and converges on all of them
            whole = few_digits("digits")
            names["x"], names["y"] = whole.x_train / 255.0, whole.y_train
        exec(compile(piece, "README.md", "exec"), names)
        said.append(capsys.readouterr().out)
    number, part = r"([\d.]+)", ", "
    loss, accuracy, examples = re.search(rf"loss={number}{part}accuracy={number}{part}examples=(\d+)", said[0]).groups()
    assert float(loss) < 4 and 0 < float(accuracy) <= 1 and int(examples) == 60
    state, pipeline, local = names["state"], names["pipeline"], names["local"]
    assert int(state.tick) == 3 and jd.checkpoints.metadata("checkpoint") == {"epoch": 1}
    assert abs(names["logits"] - pipeline.predict(state, names["digits"].x_test / 255.0)).max() < 1e-4
    batch = names["x"][:64], names["y"][:64]
    state, metrics = local.step(local.init(jax.random.key(0), batch[0]), batch)
    assert sorted(metrics.auxiliary) == [0]
    gap, delay = said[4].split()
    assert abs(float(gap)) < 1e-2 and int(delay) > 3
    assert said[5].startswith("3.47") and "3.48 times one device" in PIECES[5]
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint", "model.msgpack", "ddg.png", "ddg.json"}


def test_the_version_is_one():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert jd.__version__ == project["version"]


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
