"""The programs that measure what diagnostics and checkpoints cost: every number is there, and means what it says."""

import pytest

from experiments.measure import checkpoint_cost, diagnostics_cost
from experiments.measure.workload import Workload

SMALL = Workload(model="mlp", num_stages=2, batch_size=8, image_size=8, repeats=2, seconds=0.01)


@pytest.mark.parametrize("with_training", [True, False])
def test_the_cost_of_checkpoints(with_training):
    cost = checkpoint_cost.measure(SMALL, "fdg", every=6, with_training=with_training)
    rounds = 2 * with_training
    assert [len(times) for times in (cost.plain, cost.saving, cost.ratios, cost.blocking)] == [rounds] * 4
    assert cost.ratios == [saving / plain for saving, plain in zip(cost.saving, cost.plain, strict=True)]
    assert len(cost.restoring) == 2 and min(cost.restoring) > 0 and cost.writing > 0 and cost.megabytes > 0.1
    assert ("a save in 6 ticks" in cost.line()) == with_training


def test_the_cost_of_diagnostics():
    cost = diagnostics_cost.measure(SMALL, "adl", every=3)
    assert cost.ratios == [plain / watched for plain, watched in zip(cost.plain, cost.watched, strict=True)]
    assert len(cost.ratios) == 2 and "adl, K = 2, a probe in 3 ticks" in cost.line()
