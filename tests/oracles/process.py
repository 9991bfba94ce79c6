"""One of two processes that train `grouped` networks together.

    python -m tests.oracles.process INDEX PORT DIRECTORY PRESET ...

Each has two devices, a group for its stage. For every preset, a checkpoint is saved in mid-run, the run is finished and
its weights are written, and what is found in testing; then a checkpoint of a single process is gone on with.
"""

import json
import pathlib
import sys

import jax

INDEX, PORT, DIRECTORY = int(sys.argv[1]), int(sys.argv[2]), pathlib.Path(sys.argv[3])
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_cross_host_transfer_socket_address", f"127.0.0.1:{PORT + 1 + INDEX}")
jax.config.update("jax_cross_host_transport_addresses", "127.0.0.1:0")
jax.distributed.initialize(f"127.0.0.1:{PORT}", 2, INDEX)

import jaxdecouple as jd  # noqa: E402
from tests.oracles.grouped import PRESETS, SAVED_AFTER, batches, data, pipeline  # noqa: E402


def read_here(inputs, targets):
    """Of a batch, what this process reads: the first has no use for targets, nor the last for inputs."""
    return (inputs, targets) if INDEX == 0 else (None, targets)


def go_on(pipe, state, rest):
    for batch in rest:
        state, metrics = pipe.step(state, read_here(*batch))
        assert metrics.loss is None or INDEX == 1
    return pipe.flush(state)


for name in sys.argv[4:]:
    pipe = pipeline(PRESETS[name], [jax.devices()[:2], jax.devices()[2:]])
    assert [pipe.placement.owns(k) for k in range(2)] == [INDEX == 0, INDEX == 1]
    state = pipe.init(jax.random.key(0), data()[0][0])
    for batch in data()[:SAVED_AFTER]:
        state, _ = pipe.step(state, read_here(*batch))
    jd.save(DIRECTORY / name, state, {"of": INDEX})
    if name != "dni" and name != "dgl":
        state = pipe.measure_gradient_norms(state, batches(1)[0])
    state = go_on(pipe, state, data()[SAVED_AFTER:])
    variables, found = jd.export_variables(pipe, state), pipe.evaluate(state, (read_here(*b) for b in batches(3)))
    resumed = jd.restore(DIRECTORY / f"single-{name}", pipe, data()[0][0])
    again = jd.export_variables(pipe, go_on(pipe, resumed, data()[SAVED_AFTER:]))
    (DIRECTORY / f"{name}-{INDEX}.json").write_text(json.dumps(found._asdict()))
    if INDEX == 1:
        jd.write_variables(DIRECTORY / f"{name}.msgpack", variables)
        jd.write_variables(DIRECTORY / f"{name}-resumed.msgpack", again)
jax.distributed.shutdown()
