import jax
import pytest

from tests.oracles.saving import pipeline_like, train


@pytest.fixture(scope="module")
def fdg():
    """A pipeline that keeps old states usable, and one of its states."""
    pipeline = pipeline_like(devices=jax.devices()[:1] * 2, donate=False)
    return pipeline, train(pipeline)
