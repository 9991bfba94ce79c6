"""Pictures and traces show every dispatch once, where and when it ran."""

import builtins
import json

import numpy as np
import pytest

from jaxdecouple import schedules
from jaxdecouple.planning import Sizes, Times, bytes_over_time, peak_bytes, save_gantt, save_trace, timeline

MS = Times(forward=[1e-3, 1e-3, 2e-3], backward=[2e-3, 2e-3, 1e-3], up=[2e-4, 0], down=[0, 1e-4])
JOINED = Times(forward=[1, 1, 2], backward=[2, 2, 1], joined=[2.5, 2.5])


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved, in place of their files."""
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **options: figures.append(figure))
    return figures


def boxes(figure):
    """(left, right, row) of every box, as drawn."""
    (collection,) = figure.axes[0].collections
    found = [path.get_extents() for path in collection.get_paths()]
    return sorted((box.x0, box.x1, (box.y0 + box.y1) / 2) for box in found)


def test_the_picture_is_written(tmp_path):
    save_gantt(timeline(schedules.fdg(3), MS), tmp_path / "fdg.png")
    assert (tmp_path / "fdg.png").read_bytes().startswith(b"\x89PNG")


def test_a_box_per_dispatch_with_its_batch(drawn):
    run = timeline(schedules.pipedream(3), MS, num_batches=4)
    save_gantt(run, "unused.png")
    (figure,) = drawn
    axes = figure.axes[0]
    expected = sorted((1e3 * r.start, 1e3 * r.end, r.stage) for r in run)
    np.testing.assert_allclose(boxes(figure), expected)
    assert axes.get_xlabel() == "time (ms)"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["stage 0", "stage 1", "stage 2"]
    written = sorted((text.get_position()[1], text.get_text()) for text in axes.texts)
    assert written == sorted((r.stage, str(r.batch)) for r in run)
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert words == ["forward", "backward, update", "forward, loss, backward, update"]
    assert axes.get_title(loc="left") == f"pipedream, K = 3, stash; utilisation {1 - run.bubble:.0%} over 4 batches"


def test_the_title_tells_the_steady_state(drawn):
    save_gantt(timeline(schedules.fdg(3), JOINED), "unused.png")
    title = drawn[0].axes[0].get_title(loc="left")
    assert title == "fdg, K = 3, stash; 3.00 times as fast as one device; utilisation 89% in the steady state"


def test_joined_operations_are_one_box(drawn):
    run = timeline(schedules.fdg(3), JOINED, num_batches=8)
    save_gantt(run, "unused.png")
    assert len(boxes(drawn[0])) == run.dispatch[-1] + 1
    assert "0,4" in [text.get_text() for text in drawn[0].axes[0].texts]  # B0 with F4 at stage 0
    assert "backward joined with the next forward" in [text.get_text() for text in drawn[0].legends[0].get_texts()]


def test_gradients_of_weights_have_their_own_colour(drawn):
    run = timeline(schedules.zero_bubble(3, 4), Times(forward=[1] * 3, backward=[2] * 3), num_batches=4)
    save_gantt(run, "unused.png")
    assert boxes(drawn[0]) == sorted((r.start, r.end, r.stage) for r in run)
    words = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert words == ["forward", "backward", "forward, loss, backward", "gradient of the weights, update"]
    assert len({tuple(colour) for colour in drawn[0].axes[0].collections[0].get_facecolors()}) == 4


def test_parts_of_a_run(drawn):
    run = timeline(schedules.fdg(3), JOINED, num_batches=500)
    save_gantt(run, "unused.png", start=300, stop=310)
    assert drawn[0].axes[0].get_xlim() == (300, 310)
    assert all(left < 310 and right > 300 for left, right, _ in boxes(drawn[0]))
    save_gantt(run, "unused.png")
    filled = run.end[(run.batch == 0)].max()
    assert 2 * filled <= drawn[1].axes[0].get_xlim()[1] < run.makespan / 4
    save_gantt(run, "unused.png", start=0, stop=1e9)
    assert len(boxes(drawn[2])) <= 6000
    with pytest.raises(ValueError, match="nothing from 10000 s to"):
        save_gantt(run, "unused.png", start=1e4)


def test_a_long_run_of_many_stages_stays_a_picture(drawn):
    run = timeline(schedules.fdg(40), Times(forward=[1] * 40, backward=[2] * 40))
    save_gantt(run, "unused.png")
    assert len(boxes(drawn[0])) <= 6000 and drawn[0].get_figheight() < 20


def test_stages_of_one_device_share_a_row(drawn):
    run = timeline(schedules.fdg(3), JOINED, devices=[0, 0, 1], num_batches=6)
    save_gantt(run, "unused.png")
    axes = drawn[0].axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["device 0: stages 0, 1", "device 1: stage 2"]
    assert {row for _, _, row in boxes(drawn[0])} == {0, 1}
    assert "2:0" in [text.get_text() for text in axes.texts]
    assert len({tuple(colour) for colour in axes.collections[0].get_facecolors()}) == 7  # F, B, J, pale or not; L


@pytest.mark.parametrize("seconds, unit", [(1.0, "s"), (0.02, "ms"), (3e-5, "us"), (1e-8, "ns"), (1e-12, "ns")])
def test_units(drawn, seconds, unit):
    times = Times(forward=[seconds], backward=[0])
    save_gantt(timeline(schedules.adl(1), times, num_batches=2), "unused.png", stop=seconds)
    assert drawn[0].axes[0].get_xlabel() == f"time ({unit})"


def test_matplotlib_is_asked_for(monkeypatch):
    imported = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        save_gantt(timeline(schedules.fdg(3), MS), "unused.png")


def read_trace(run, path):
    save_trace(run, path)
    return json.loads(path.read_text())["traceEvents"]


def test_a_trace_holds_every_operation_and_transfer(tmp_path):
    run = timeline(schedules.pipedream(3), MS, num_batches=4)
    events = read_trace(run, tmp_path / "trace.json")
    slices = [event for event in events if event["ph"] == "X" and event["pid"] == 0]
    assert len(slices) == len(run.start)
    for event, record in zip(slices, run, strict=True):
        assert event["name"] == f"{record.kind.value}{record.batch}" and event["tid"] == record.stage
        assert event["ts"] == pytest.approx(1e6 * record.start)
        assert event["ts"] + event["dur"] == pytest.approx(1e6 * record.end)
        assert event["args"] == {"stage": record.stage, "batch": record.batch, "tick": record.tick}
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert names[0, 2] == "stage 2" and names[1, 0] == "activations 0 -> 1" and names[1, 3] == "gradients 2 -> 1"
    transfers = [(e["tid"], e["dur"]) for e in events if e["ph"] == "X" and e["pid"] == 1]
    expected = [(0, 200)] * 4 + [(3, 100)] * 4  # the two that take time
    assert sorted(transfers) == [(thread, pytest.approx(seconds)) for thread, seconds in expected]


def test_gradients_of_weights_travel_nowhere(tmp_path):
    run = timeline(
        schedules.zero_bubble(2, 2), Times(forward=[1] * 2, backward=[2] * 2, up=[1], down=[1]), num_batches=2
    )
    events = [event for event in read_trace(run, tmp_path / "trace.json") if event["ph"] == "X"]
    assert sorted(e["name"] for e in events if e["pid"] == 1) == ["batch 0", "batch 0", "batch 1", "batch 1"]
    assert sum(e["name"].startswith("W") for e in events) == 4


def test_a_trace_shows_joined_operations_as_one(tmp_path):
    run = timeline(schedules.fdg(3), JOINED, num_batches=8)
    slices = [event for event in read_trace(run, tmp_path / "trace.json") if event["ph"] == "X"]
    assert len(slices) == run.dispatch[-1] + 1
    (first,) = [event for event in slices if event["name"] == "B0 F4"]
    assert first["args"] == {"stage": 0, "batch": 0, "tick": 4, "joined_batch": 4} and first["dur"] == 2.5e6


def test_a_trace_counts_bytes(tmp_path):
    sizes = Sizes(inputs=[1, 2, 3], residuals=[4, 5], params=[6, 7, 8])
    run = timeline(schedules.fdg(3), MS, sizes=sizes, num_batches=5)
    events = [event for event in read_trace(run, tmp_path / "trace.json") if event["ph"] == "C"]
    for device in range(3):
        counted = [e["args"]["bytes"] for e in events if e["name"] == f"bytes in flight, device {device}"]
        assert counted == bytes_over_time(run, device)[1].tolist()
        assert max(counted) == peak_bytes(run)[device] and counted[-1] == 0
