"""A host that waits for each loss too soon starves the first stages; the default waits no sooner than it must."""

import pytest

from jaxdecouple import schedules
from jaxdecouple.planning import Times, least_run_ahead, timeline


@pytest.mark.core
@pytest.mark.parametrize(
    "schedule",
    [schedules.ddg(8), schedules.features_replay(16), schedules.gpipe(4, 8), schedules.delays((0, 1, 0), (1, 0, 1))],
    ids=lambda schedule: f"{schedule.name}-{schedule.num_stages}",
)
def test_costs_no_speed_and_one_less_would(schedule):
    K, least = schedule.num_stages, least_run_ahead(schedule)
    times = Times(forward=[1] * K, backward=[2] * K)
    free = timeline(schedule, times).seconds_per_batch
    assert timeline(schedule, times, run_ahead=least).seconds_per_batch == pytest.approx(free, rel=1e-3)
    assert least == 2 or timeline(schedule, times, run_ahead=least - 1).seconds_per_batch > 1.001 * free


@pytest.mark.parametrize("num_stages", [1, 2, 8])
def test_where_activations_wait_a_tick_two_are_enough(num_stages):
    for preset in (schedules.fdg, schedules.pipedream, schedules.adl, schedules.backprop):
        assert least_run_ahead(preset(num_stages)) == 2


def test_ddg_needs_more_the_more_stages_an_activation_crosses():
    assert [least_run_ahead(schedules.ddg(K)) for K in (2, 4, 8, 16)] == [2, 2, 4, 6]
