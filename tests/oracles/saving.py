"""What is saved in tests of checkpoints, and how the disk comes to be full."""

import contextlib
import resource

import flax.linen as nn
import jax
import optax

import jaxdecouple as jd
from jaxdecouple import schedules
from tests.oracles.pipelines import assert_equal, batch

BATCHES = [batch(n) for n in range(9)]
X = BATCHES[0][0]
DOCUMENT = "_CHECKPOINT_METADATA"


def train(pipeline, state=None, *, start=0, stop=5, batches=BATCHES):
    state = pipeline.init(jax.random.key(0), batches[0][0]) if state is None else state
    for given in batches[start:stop]:
        state, _ = pipeline.step(state, given)
    return state


def assert_same(state, other):
    assert_equal(state, other)
    leaves = zip(jax.tree.leaves(state), jax.tree.leaves(other), strict=True)
    assert all(getattr(a, "dtype", None) == getattr(b, "dtype", None) for a, b in leaves)


def pipeline_like(schedule=None, layers=(4, 3), optimizer=None, **options):
    stages = jd.partition([nn.Dense(width) for width in layers], 2, boundaries=options.pop("boundaries", None))
    optimizer = optimizer or optax.sgd(0.1, momentum=0.9)
    return jd.Pipeline(stages, schedule or schedules.fdg(2), optimizer=optimizer, **options)


@contextlib.contextmanager
def full_disk(size=200):
    """No file may grow beyond ``size`` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def restored_from(checkpoints, pipeline):
    return checkpoints.restore(lambda path: jd.restore(path, pipeline, X))
