"""A network with batch statistics and randomness under every method, to be run on single devices, groups, processes."""

import flax.linen as nn
import jax
import numpy as np
import optax

import jaxdecouple as jd
from jaxdecouple import schedules
from tests.oracles.sharing import sharing

PRESETS = {
    "backprop": schedules.backprop(2),
    "gpipe": schedules.gpipe(2, 2),
    "zero_bubble": schedules.zero_bubble(2, 2),
    "ddg": schedules.ddg(2),
    "features_replay": schedules.features_replay(2),
    "fdg": schedules.fdg(2),
    "adl": schedules.adl(2),
    "dsp": schedules.dsp((1, 0), (2, 0)),
    "pipedream": schedules.pipedream(2),
    "dgl": schedules.dgl(2),
    "dni": schedules.dni(2),
}
CLASSES = 3


class Block(nn.Module):
    """Parameters, statistics over the batch, and randomness."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(8, param_dtype=np.float64)(x)
        x = nn.BatchNorm(use_running_average=not train, param_dtype=np.float64)(x)
        return nn.Dropout(0.3, deterministic=not train)(nn.tanh(x))


def stages():
    return jd.partition([Block(), Block(), nn.Dense(CLASSES, param_dtype=np.float64)], boundaries=(1,))


def batches(count, size=8):
    rng = np.random.default_rng(0)
    return [(rng.normal(size=(size, 4)), rng.integers(0, CLASSES, size)) for _ in range(count)]


def pipeline(schedule, devices, **arguments):
    """On these devices; those that differ in their schedule alone share what is compiled."""
    groups = tuple(tuple(group) if isinstance(group, list) else group for group in devices)
    return _shared(schedule, groups, **arguments)


def fresh(schedule, devices, **arguments):
    """The same, with programs of its own."""
    auxiliary = {
        "greedy": jd.models.MLPClassifier(CLASSES, param_dtype=np.float64),
        "synthetic": jd.models.GradientPredictor(CLASSES, param_dtype=np.float64),
    }.get(schedule.learning)
    optimizer = jd.stagewise(optax.sgd(0.1, momentum=0.9), accumulate=2)
    return jd.Pipeline(stages(), schedule, optimizer=optimizer, devices=devices, auxiliary=auxiliary, **arguments)


@sharing
def _shared(schedule, groups, **arguments):
    return fresh(schedule, [list(group) if isinstance(group, tuple) else group for group in groups], **arguments)


def trained(pipeline, data):
    state = pipeline.init(jax.random.key(0), data[0][0])
    for batch in data:
        state, _ = pipeline.step(state, batch)
    return pipeline.flush(state)


SAVED_AFTER = 5


def data():
    """The batches of a run; the last is one that a group does not divide."""
    return [*batches(7), *batches(1, size=5)]
