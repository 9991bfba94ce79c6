"""Two processes, each with a stage on a group of its devices, compute what one process computes."""

import json
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

import jaxdecouple as jd
from jaxdecouple import checkpoints
from tests.oracles.grouped import PRESETS, SAVED_AFTER, batches, data, pipeline, trained
from tests.oracles.transfers import needs_transfers

NAMES = "fdg", "features_replay", "dni", "zero_bubble"  # one of each kind of stage program, and a split backward
pytestmark = needs_transfers


def single(name):
    return pipeline(PRESETS[name], jax.devices()[:2])


@pytest.fixture(scope="module")
def joint(tmp_path_factory):
    """The directory in which two processes have left what they found."""
    directory = tmp_path_factory.mktemp("joint")
    with jax.enable_x64(True):
        for name in NAMES:
            made = single(name)
            state = made.init(jax.random.key(0), data()[0][0])
            for batch in data()[:SAVED_AFTER]:
                state, _ = made.step(state, batch)
            jd.save(directory / f"single-{name}", state)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tests.oracles.process"]
    both = [
        subprocess.Popen([*command, str(i), str(port), str(directory), *NAMES], stderr=subprocess.PIPE, text=True)
        for i in range(2)
    ]
    said = [process.communicate(timeout=300)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], "\n".join(text[-3000:] for text in said)
    return directory


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_equal_one(name, joint, x64):
    alone = single(name)
    state = trained(alone, data())
    wanted = jd.export_variables(alone, state)
    for run in (name, f"{name}-resumed"):
        found = jd.read_variables(joint / f"{run}.msgpack")
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12), found, wanted)
    for index in range(2):  # both know what testing found
        found = json.loads((joint / f"{name}-{index}.json").read_text())
        here = alone.evaluate(state, batches(3))._asdict()
        assert found.pop("metrics") == pytest.approx(here.pop("metrics"), abs=1e-12)
        assert found == pytest.approx(here, abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_one_process_goes_on_with_the_checkpoint_of_two(name, joint, x64):
    alone = single(name)
    state = jd.restore(joint / name, alone, data()[0][0])
    assert state.tick == SAVED_AFTER
    assert checkpoints.metadata(joint / name) == {"of": 1}  # of the process that has the losses
    for batch in data()[SAVED_AFTER:]:
        state, _ = alone.step(state, batch)
    found, wanted = jd.export_variables(alone, alone.flush(state)), jd.export_variables(alone, trained(alone, data()))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12), found, wanted)
