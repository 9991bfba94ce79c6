"""Bytes in flight equal hand-worked cases, and what lies there when every stage and batch is asked."""

import numpy as np
import pytest

from jaxdecouple import schedules
from jaxdecouple.planning import Sizes, Times, bytes_over_time, peak_bytes, timeline
from jaxdecouple.schedules import BACKWARD, FORWARD, Op

SIZES = Sizes(inputs=[1, 10], residuals=[100, 1000], params=[10_000, 7])


def uniform(K):
    return Times(forward=[1] * K, backward=[2] * K)


def test_bytes_in_flight_by_hand():
    times = Times(forward=[1, 1], backward=[1, 1], up=[0.5], down=[0.25])
    run = timeline(schedules.pipedream(2), times, num_batches=2, sizes=SIZES)
    # F0.0 0-1, F0.1 1-2, F1.0 1.5-3.5, B0.0 3.75-4.75, F1.1 3.5-5.5, B0.1 5.75-6.75. At stage 0: the input of the
    # forward that runs (1), residuals of batch 0 (1..4.75) and 1 (2..6.75), gradients (3.75..4.75 and 5.75..6.75), and
    # the first weights, replaced at 4.75, until batch 1 has used them.
    seconds, sizes = bytes_over_time(run, 0)
    steps = {0: 1, 1: 101, 2: 200, 3.75: 210, 4.75: 10_100, 5.75: 10_110, 6.75: 0}
    assert dict(zip(seconds.tolist(), sizes.tolist(), strict=True)) == steps
    # At stage 1: activations from 1.5 to 3.5 and from 2.5 to 5.5, and its own residuals.
    seconds, sizes = bytes_over_time(run, 1)
    steps = {0: 0, 1.5: 1010, 2.5: 1020, 3.5: 1010, 5.5: 0}
    assert dict(zip(seconds.tolist(), sizes.tolist(), strict=True)) == steps
    assert peak_bytes(run) == (10_110, 1020)
    assert peak_bytes(run, accumulate=2) == (210, 1020)  # nothing is replaced while it is referred to


def bytes_at(run, device, moment, accumulate):
    """What lies on ``device`` at ``moment``, asked of every stage and batch."""
    at = {Op(r.kind, r.stage, r.batch): (r.start, r.end, arrival) for r, arrival in zip(run, run.arrival, strict=True)}
    last, sizes, weights, found = run.schedule.loss_stage, run.sizes, run.schedule.weights, 0
    order = [Op(r.kind, r.stage, r.batch) for r in run]
    for k in (k for k in range(last + 1) if run.devices[k] == device):
        queue = [op for op in order if op.stage == k]
        used, updates = {}, 0  # batch -> version of its forward
        for op in queue:
            used.setdefault(op.batch, updates)
            updates += op.kind is BACKWARD and (op.batch + 1) % accumulate == 0
        done = [n for n in used if run.schedule.has_backward(k) and at[Op(BACKWARD, k, n)][1] <= moment]
        current = sum((n + 1) % accumulate == 0 for n in done)
        referred = set()
        for n in used:
            start, forwarded, arrived = at[Op(FORWARD, k, n)]
            if k == last or run.schedule.learning != "gradient":
                found += (arrived <= moment < forwarded) * sizes.inputs[k]
                found += (start <= moment < forwarded) * sizes.residuals[k]
                if k < last and run.schedule.learning == "synthetic":  # the output, and its gradient
                    _, taught, above = at[Op(BACKWARD, k, n)]
                    found += (forwarded <= moment < taught) * sizes.inputs[k + 1]
                    found += (above <= moment < taught) * sizes.inputs[k + 1]
                continue
            _, finished, above = at[Op(BACKWARD, k, n)]
            found += (arrived <= moment < (finished if weights == "replay" else forwarded)) * sizes.inputs[k]
            found += (weights != "replay" and forwarded <= moment < finished) * sizes.residuals[k]
            found += (above <= moment < finished) * sizes.inputs[k + 1]
            if weights == "stash" and moment < finished and used[n] < current:
                referred.add(used[n])
        found += len(referred) * sizes.params[k]
    return found


@pytest.mark.parametrize("seed", range(20))
def test_bytes_in_flight_equal_what_lies_there(seed):
    rng = np.random.default_rng(seed)
    K, accumulate, weights = int(rng.integers(1, 5)), int(rng.integers(1, 4)), ("stash", "stash", "replay", "latest")
    p, q = rng.integers(0, 3, K - 1), rng.integers(1, 3, K - 1)
    schedule = (schedules.delays(p, q, order="backward_first"), schedules.gpipe(K, 3))[int(rng.random() < 0.3)]
    schedule = schedule.with_weights(str(rng.choice(weights)))
    if rng.random() < 0.4:
        schedule = [schedules.dgl(K), schedules.dni(K), schedules.delays(p, q, learning="synthetic")][seed % 3]
    parts = {name: rng.random(K) for name in ("forward", "backward")}
    parts |= {name: rng.random(K - 1) for name in ("up", "down", "teach")}
    parts |= {"joined": rng.random(K - 1)} if rng.random() < 0.5 else {}
    sizes = Sizes(inputs=rng.integers(1, 99, K), residuals=rng.integers(1, 99, K), params=rng.integers(1, 99, K))
    run = timeline(schedule, Times(**parts), num_batches=9, sizes=sizes, devices=[k // 2 for k in range(K)])
    for device in range(run.num_devices):
        seconds, counted = bytes_over_time(run, device, accumulate)
        # Between two changes, so that rounding decides nothing.
        middles = (seconds[:-1] + np.diff(seconds) / 2)[np.diff(seconds) > 1e-9]
        expected = [bytes_at(run, device, moment, accumulate) for moment in middles]
        assert counted[:-1][np.diff(seconds) > 1e-9] == pytest.approx(expected)


def test_replay_keeps_inputs_and_latest_no_weights():
    times = Times(forward=[1, 1], backward=[1, 1])
    latest, replay = (
        timeline(schedules.pipedream(2, weights=weights), times, num_batches=20, sizes=SIZES)
        for weights in ("latest", "replay")
    )
    # Steady: one residual held, a gradient that is used at once, and a forward's input or one more residual.
    assert peak_bytes(latest)[0] == 2 * 100 + 10
    assert peak_bytes(replay)[0] == 2 * 1 + 10
    assert bytes_over_time(replay, 0)[1][-1] == bytes_over_time(latest, 1)[1][-1] == 0


@pytest.mark.parametrize("weights", ["latest", "stash", "replay"])
def test_zero_bubble_keeps_no_more_activations_than_1f1b(weights):
    """K at every stage; 1F1B has K - k at stage k (Qi et al. 2024, section 2.1)."""
    times, activations = (
        Times(forward=[1] * 4, backward=[2] * 4),
        Sizes(inputs=[0] * 4, residuals=[1] * 4, params=[9] * 4),
    )
    plain, split = (
        peak_bytes(timeline(preset(4, 8, weights=weights), times, num_batches=16, sizes=activations), accumulate=8)
        for preset in (schedules.one_forward_one_backward, schedules.zero_bubble)
    )
    if weights == "replay":  # recomputed by each backward
        assert plain == (0, 0, 0, 1) and split == (1, 2, 3, 4)
    else:
        assert plain == (4, 3, 2, 1) and split == (4, 4, 4, 4)
    kept = timeline(schedules.zero_bubble(2, 2), uniform(2), num_batches=2, sizes=SIZES)
    assert bytes_over_time(kept, 0)[1][-1] == bytes_over_time(kept, 1)[1][-1] == 0


def test_weights_that_no_batch_refers_to_are_not_kept():
    # GPipe without accumulation: four forwards with version 0, then four updates; versions 1, 2, 3 serve no forward.
    run = timeline(schedules.gpipe(2, 4, weights="stash"), uniform(2), num_batches=4, sizes=SIZES)
    seconds, sizes = bytes_over_time(run, 0)
    versions = sizes // 10_000
    ends = run.end[run.kind == "B"]
    assert versions.max() == 1
    assert seconds[np.flatnonzero(versions)[0]] == ends[0] and seconds[np.flatnonzero(versions)[-1] + 1] == ends[-1]


def test_bytes_need_sizes_a_device_and_a_group():
    with pytest.raises(ValueError, match="has no sizes"):
        peak_bytes(timeline(schedules.fdg(2), uniform(2)))
    run = timeline(schedules.fdg(2), uniform(2), sizes=SIZES)
    with pytest.raises(ValueError, match="device is 2"):
        bytes_over_time(run, 2)
    with pytest.raises(ValueError, match="accumulate is 0"):
        peak_bytes(run, accumulate=0)
    with pytest.raises(ValueError, match="sizes has 2 stages"):
        timeline(schedules.fdg(3), uniform(3), sizes=SIZES)


def test_stages_of_a_device_share_its_memory():
    run = timeline(schedules.fdg(2), uniform(2), sizes=SIZES, devices=[0, 0])
    own = timeline(schedules.fdg(2), uniform(2), sizes=SIZES)
    assert len(peak_bytes(run)) == 1 and peak_bytes(run)[0] > max(peak_bytes(own))
