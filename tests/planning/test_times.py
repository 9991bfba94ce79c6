"""Times and sizes: what follows from them by hand, and what they refuse."""

import math
import re
import subprocess
import sys

import numpy as np
import pytest

from jaxdecouple.planning import Sizes, Times
from jaxdecouple.schedules import BACKWARD, FORWARD, WEIGHT, Kind

MEASURED = Times(forward=[1, 2, 4], backward=[3, 5, 6], up=[0.5, 8], down=[7, 0.25], joined=[3.5, 7.5])


def test_defaults_and_conversions():
    times = Times(forward=np.array([1, 2]), backward=(3, np.float32(4)))
    assert times == Times(forward=(1.0, 2.0), backward=(3.0, 4.0), up=(0.0,), down=[0])
    assert all(type(second) is float for second in times.forward + times.backward + times.up)
    assert (times.num_stages, times.joined, times.host, times.slowdown) == (2, None, 0.0, ())
    assert hash(times) == hash(Times(forward=[1, 2], backward=[3, 4]))
    assert Times(forward=[1], backward=[2]).up == ()


def test_the_last_forward_contains_its_backward_and_replay_redoes_forwards_below():
    durations = {
        weights: [MEASURED.duration(kind, k, weights) for k in range(2) for kind in (FORWARD, BACKWARD)]
        for weights in ("stash", "latest", "replay")
    }
    assert durations == {"stash": [1, 3, 2, 5], "latest": [1, 3, 2, 5], "replay": [1, 4, 2, 7]}
    assert MEASURED.duration(FORWARD, 2, "stash") == MEASURED.duration(FORWARD, 2, "replay") == 10


def test_a_split_backward_is_as_long_as_one_in_one_piece():
    times = Times(forward=[1, 2], backward=[3, 5], weight=[1, 4])
    parts = {kind: [times.duration(kind, k, "latest", split=True) for k in range(2)] for kind in Kind}
    assert parts == {FORWARD: [1, 3], BACKWARD: [2, 3], WEIGHT: [1, 4]}  # the last forward contains its backward
    assert times.duration(BACKWARD, 0, "replay", split=True) == 3
    assert times.duration(BACKWARD, 0, "latest") == 3
    assert Times(forward=[1], backward=[3]).duration(WEIGHT, 0, "latest") == 1.5


def test_work_takes_the_joined_time_where_it_is_less():
    assert [MEASURED.work(k, "stash") for k in range(3)] == [3.5, 7, 10]
    assert [MEASURED.work(k, "replay") for k in range(3)] == [3.5, 7.5, 10]


def test_serial_and_bounds():
    assert MEASURED.serial == 21  # every forward and backward once
    assert MEASURED.bound("stash") == 10  # the last stage
    link = Times(forward=[1, 1], backward=[1, 1], up=[3], down=[5])
    assert link.bound("stash") == 5
    assert Times(forward=[1, 1], backward=[1, 1]).bound("replay") == 3  # stage 0 redoes its forward
    # The host: F, B and the last F; or, joined, two dispatches.
    assert Times(forward=[1, 1], backward=[1, 1], host=2).bound("stash") == 6
    assert Times(forward=[1, 1], backward=[1, 1], host=2, joined=[2]).bound("stash") == 4


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"forward": []}, "forward is empty"),
        ({"weight": [1, 9]}, "weight = (1.0, 9.0) exceeds backward"),
        ({"weight": [1]}, "weight has 1 entries; write 2: seconds, one per stage"),
        ({"forward": None}, "forward = None must hold finite numbers"),
        ({"forward": [1, None]}, "none may be missing"),
        ({"forward": [1, "2"]}, "must hold finite numbers"),
        ({"forward": [1, math.nan]}, "finite numbers of at least 0"),
        ({"backward": [1, math.inf]}, "backward = [1, inf]"),
        ({"backward": [1, -1]}, "finite numbers of at least 0"),
        ({"backward": [1]}, "backward has 1 entries; write 2"),
        ({"forward": [0, 0], "backward": [0, 0]}, "forward and backward are all 0"),
        ({"up": [1, 1]}, "up has 2 entries; write 1"),
        ({"down": []}, "down has 0 entries; write 1: seconds, one per gradient"),
        ({"joined": [1, 2]}, "joined has 2 entries"),
        ({"joined": [-1]}, "joined = [-1]"),
        ({"host": -1}, "host is -1"),
        ({"host": None}, "host is None"),
        ({"slowdown": [1.1, 2]}, "must start with 1"),
        ({"slowdown": [1, 0]}, "be positive"),
    ],
)
def test_times_that_make_no_sense(changed, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Times(**{"forward": [1, 2], "backward": [1, 2]} | changed)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"inputs": []}, "inputs is empty"),
        ({"residuals": [1, 2, 3]}, "residuals has 3 entries, but inputs has 2"),
        ({"residuals": []}, "residuals has 0 entries"),
        ({"params": [1]}, "params has 1 entries"),
        ({"params": [1, -2]}, "at least 0"),
    ],
)
def test_sizes_that_make_no_sense(changed, message):
    with pytest.raises(ValueError, match=message):
        Sizes(**{"inputs": [1, 2], "residuals": [1], "params": [1, 2]} | changed)


def test_the_last_residual_may_be_left_out():
    assert Sizes(inputs=[1, 2], residuals=[3], params=[4, 5]).residuals == (3, 0)


def test_planning_needs_no_jax():
    program = "import sys, jaxdecouple.planning; sys.exit('jax' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
