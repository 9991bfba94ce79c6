"""Stages that learn locally: exactness, what travels between them, and what is refused."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdecouple as jd
from jaxdecouple import schedules
from jaxdecouple.schedules import ScheduleError
from tests.oracles import naive_local
from tests.oracles.problems import problem, start, weights_of
from tests.oracles.sharing import sharing

PLAIN = {"learning_rate": 0.3}
FULL = {"learning_rate": lambda s: 0.2 / (1 + 0.1 * s), "momentum": 0.9, "weight_decay": 0.05}
WIDTHS = {1: (), 2: (4,), 3: (5, 5), 4: (5, 4, 4)}  # of the outputs of the stages of `problem`, but the last


class Predictor(nn.Module):
    """One linear layer of activations and one-hot labels."""

    @nn.compact
    def __call__(self, given):
        x, labels = given
        return nn.Dense(x.shape[-1], param_dtype=x.dtype)(jnp.hstack([x, jax.nn.one_hot(labels, 3, dtype=x.dtype)]))


def auxiliaries(num_stages, synthetic):
    rng = np.random.default_rng(3)
    sizes = [(width + 3, width) if synthetic else (width, 3) for width in WIDTHS[num_stages]]
    return tuple((0.3 * rng.normal(size=size), 0.1 * rng.normal(size=size[1])) for size in sizes)


def pipeline_for(task, schedule, rate=None, **options):
    """Those that differ in their weights policy alone share what is compiled."""
    names = "boundaries", "accumulate", "learning_rate", "momentum", "weight_decay"
    return _pipeline(schedule, *(getattr(task, name) for name in names), rate, **options)


@sharing
def _pipeline(schedule, boundaries, accumulate, learning_rate, momentum, weight_decay, rate, **options):
    def sgd(rate):
        transform = optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(rate, momentum=momentum or None))
        return jd.stagewise(transform, accumulate=accumulate)

    synthetic = schedule.learning == "synthetic"
    return jd.Pipeline(
        jd.partition(
            jd.models.mlp(3, hidden=(5, 4, 5, 4), activation=nn.tanh, param_dtype=np.float64),
            boundaries=boundaries,
        ),
        schedule,
        optimizer=sgd(learning_rate),
        auxiliary=Predictor() if synthetic else nn.Dense(3, param_dtype=np.float64),
        auxiliary_optimizer=sgd(rate) if rate else None,
        **options,
    )


def begin(pipeline, task, networks):
    """The initial state with the problem's weights, and these auxiliary networks."""
    state = start(pipeline, task)
    stages = []
    for k, stage in enumerate(state.stages):
        if k < len(networks):
            a, c = networks[k]
            params = {"kernel": a, "bias": c}
            params = {"Dense_0": params} if "Dense_0" in stage.auxiliary.params else params
            auxiliary = stage.auxiliary.replace(params=pipeline.placement.own(params, k))
            stage = stage.replace(auxiliary=auxiliary)
        stages.append(stage)
    return state.replace(stages=tuple(stages))


def auxiliary_weights(state):
    found = []
    for stage in state.stages[:-1]:
        params = stage.auxiliary.params
        params = params.get("Dense_0", params)
        found.append((np.asarray(params["kernel"]), np.asarray(params["bias"])))
    return found


def run(pipeline, task, networks):
    state = begin(pipeline, task, networks)
    parameters, theirs, losses, local, ticks = [], [], {}, [], []

    def record(state, metrics):
        parameters.append(weights_of(state))
        theirs.append(auxiliary_weights(state))
        if metrics.batch is not None:
            losses[metrics.batch] = float(metrics.loss)
        local.append({k: float(loss) for k, loss in metrics.auxiliary.items()})
        ticks.append(len(ticks))

    for batch in task.batches:
        state, metrics = pipeline.step(state, batch)
        record(state, metrics)
    state = pipeline.flush(state, on_tick=record)
    assert all(not jax.tree.leaves(flight) for flight in state.in_flight)
    return parameters, theirs, losses, local


def assert_same(actual, expected, lag):
    parameters, theirs, losses, local = actual
    for mine, oracle in ((parameters, expected.parameters), (theirs, expected.auxiliary)):
        assert len(mine) == len(oracle)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-10), mine, oracle)
    assert losses.keys() == expected.losses.keys()
    np.testing.assert_allclose([losses[n] for n in losses], [expected.losses[n] for n in losses], rtol=0, atol=1e-10)
    found = {(k, t - k - lag): loss for t, tick in enumerate(local) for k, loss in tick.items()}
    assert found == pytest.approx(expected.local, abs=1e-10)


@pytest.mark.parametrize(
    ("settings", "rate", "accumulate"), [(PLAIN, None, 1), (FULL, 0.05, 3)], ids=["plain-1", "full-3"]
)
@pytest.mark.parametrize("num_stages", [1, 2, 3, 4])
def test_dgl_equals_the_naive_loop(num_stages, accumulate, settings, rate, x64):
    task = problem(num_stages, accumulate=accumulate, **settings)
    networks = auxiliaries(num_stages, synthetic=False)
    expected = naive_local.dgl(task, networks, rate=rate)
    assert_same(run(pipeline_for(task, schedules.dgl(num_stages), rate), task, networks), expected, lag=0)


@pytest.mark.parametrize("weights", ["replay", "stash", "remat"])
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("num_stages", [2, 3, 4])
def test_dni_equals_the_naive_loop(num_stages, accumulate, weights, x64):
    task = problem(num_stages, accumulate=accumulate, **FULL)
    networks = auxiliaries(num_stages, synthetic=True)
    expected = naive_local.dni(task, networks, weights=weights, rate=0.05)
    pipeline = pipeline_for(task, schedules.dni(num_stages, weights=weights), 0.05)
    assert_same(run(pipeline, task, networks), expected, lag=2)


def test_predictors_of_old_and_of_new_weights_differ(x64):
    task, networks = problem(3, **PLAIN), auxiliaries(3, synthetic=True)
    replay, stash = (naive_local.dni(task, networks, weights=w, rate=0.05) for w in ("replay", "stash"))
    assert np.abs(replay.auxiliary[-1][0][0] - stash.auxiliary[-1][0][0]).max() > 1e-6


@pytest.mark.parametrize("donate", [True, False])
@pytest.mark.parametrize("preset", [schedules.dgl, schedules.dni])
def test_a_state_can_be_copied_and_gone_on_with_in_mid_flight(preset, donate, x64):
    task = problem(3, accumulate=2, **FULL)
    networks = auxiliaries(3, preset is schedules.dni)
    pipeline = pipeline_for(task, preset(3), donate=donate)
    state = begin(pipeline, task, networks)
    for batch in task.batches[:5]:
        state, _ = pipeline.step(state, batch)
    copy = jax.tree.map(np.array, jax.device_get(state.replace(stages=_without_keys(state))))
    again = copy.replace(stages=tuple(s.replace(key=o.key) for s, o in zip(copy.stages, state.stages, strict=True)))
    other = pipeline_for(task, preset(3), donate=donate)
    for batch in task.batches[5:]:
        again, _ = other.step(_placed(other, again), batch)
        state, _ = pipeline.step(state, batch)
    for mine, theirs in zip(weights_of(pipeline.flush(state)), weights_of(other.flush(again)), strict=True):
        jax.tree.map(np.testing.assert_array_equal, mine, theirs)


def _without_keys(state):
    return tuple(stage.replace(key=None) for stage in state.stages)


def _placed(pipeline, state):
    stages = tuple(pipeline.placement.put(stage, k) for k, stage in enumerate(state.stages))
    flight = tuple(pipeline.placement.put(flight, k) for k, flight in enumerate(state.in_flight))
    return state.replace(stages=stages, in_flight=flight)


def test_greedy_stages_are_told_nothing_from_above(x64):
    """The first stage does the same under any network above it."""
    task, networks = problem(3, **FULL), auxiliaries(3, synthetic=False)
    other = naive_local.replace(task, layers=(task.layers[0], *((2 * w, b) for w, b in task.layers[1:])))
    first, second = (run(pipeline_for(t, schedules.dgl(3)), t, networks)[0][-1] for t in (task, other))
    jax.tree.map(np.testing.assert_array_equal, first[0], second[0])
    assert np.abs(first[1][0] - second[1][0]).max() > 1e-3


def test_one_function_is_compiled_for_each_kind_of_batch():
    images = np.random.default_rng(0).random((8, 8, 8, 1), np.float32)
    labels = np.arange(8, dtype=np.int32) % 3
    for preset, network in (
        (schedules.dgl, jd.models.MLPClassifier(3)),
        (schedules.dni, jd.models.GradientPredictor(3)),
    ):
        layers = [nn.Conv(4, (3, 3)), nn.relu, nn.Conv(4, (3, 3)), jd.models.Head(3)]
        pipeline = jd.Pipeline(
            jd.partition(layers, boundaries=(2,)), preset(2), optimizer=optax.sgd(0.1), auxiliary=network
        )
        state, seen = pipeline.init(jax.random.key(0), images), []
        for _ in range(6):
            state, metrics = pipeline.step(state, (images, labels))
            seen.append(metrics.auxiliary)
        state = pipeline.flush(state)
        assert all(function._cache_size() == 1 for function in pipeline.programs[0].functions.values())
        assert set(seen[-1]) == {0} and np.isfinite(float(seen[-1][0]))
        assert pipeline.evaluate(state, [(images, labels)]).examples == 8


def test_a_predictor_may_know_no_labels():
    """Thesis, section 6.5.1, and DSP; section 5.5.1 tells it the labels."""
    x, labels = jnp.ones((2, 4, 4, 3)), jnp.array([0, 2])
    told, not_told = (jd.models.GradientPredictor(classes) for classes in (3, None))
    embedded = [name for name in told.init(jax.random.key(0), (x, labels))["params"] if "Embed" in name]
    variables = not_told.init(jax.random.key(0), (x, labels))
    assert embedded and not any("Embed" in name for name in variables["params"])
    params = jax.tree.map(jnp.ones_like, variables["params"])  # the output's kernel is zero at first
    outputs = [not_told.apply({**variables, "params": params}, (x, y)) for y in (labels, labels[::-1])]
    np.testing.assert_array_equal(*outputs)
    assert outputs[0].shape == x.shape and np.abs(outputs[0]).max() > 0


@pytest.mark.parametrize("preset", [schedules.dgl, schedules.dni])
def test_a_stage_may_end_within_a_block(preset):
    """Such a stage puts out two arrays; each has its part of the network, and both of them teach the stage."""
    images = np.random.default_rng(0).random((8, 8, 8, 1), np.float32)
    labels = np.arange(8, dtype=np.int32) % 3
    network = jd.models.MLPClassifier(3) if preset is schedules.dgl else jd.models.GradientPredictor(3)
    layers = jd.models.resnet8(num_classes=3, split_blocks=True)
    stages = jd.partition(layers, boundaries=(2,), sample=images)
    how = {"optimizer": optax.sgd(0.1), "auxiliary": network, "auxiliary_optimizer": optax.adam(3e-5)}
    pipeline = jd.Pipeline(stages, preset(2), **how)
    state = pipeline.init(jax.random.key(0), images)
    first = jax.tree.map(np.asarray, (state.stages[0].params, state.stages[0].auxiliary.params))
    outputs = jax.tree.leaves(pipeline.programs[0].output_shape(state.stages[0], images))
    assert len(outputs) == 2
    for _ in range(6):
        state, _ = pipeline.step(state, (images, labels))
    state = pipeline.flush(state)
    last = jax.tree.map(np.asarray, (state.stages[0].params, state.stages[0].auxiliary.params))
    stage, auxiliary = jax.tree.map(lambda a, b: bool(np.abs(a - b).max() > 0), first, last)
    assert all(jax.tree.leaves(stage))
    # The output layers of both predictors, which begin as zero, are the first to learn.
    convolutions = {"Conv_2", "Conv_5"} if preset is schedules.dni else {f"Conv_{i}" for i in range(6)}
    assert all(auxiliary[name]["kernel"] for name in convolutions)


def test_a_predictor_of_two_arrays_is_two_predictors():
    labels = np.arange(4) % 3
    pair = tuple(np.random.default_rng(k).random((4, 6, 6, 2 + k), np.float32) for k in range(2))
    both, alone = jd.models.GradientPredictor(3), jd.models.GradientPredictor(3)
    variables = both.init(jax.random.key(0), (pair, labels), False)
    variables = jax.tree.map(lambda leaf: leaf + 0.1, variables)  # outputs begin as zero
    predicted = both.apply(variables, (pair, labels), False)
    for k, x in enumerate(pair):
        sizes = {"Conv": 3, "BatchNorm": 2, "Embed": 1}
        own = {
            kind: {
                f"{module}_{i}": of_kind[f"{module}_{i + k * count}"]
                for module, count in sizes.items()
                for i in range(count)
                if f"{module}_{i + k * count}" in of_kind
            }
            for kind, of_kind in variables.items()
        }
        np.testing.assert_allclose(alone.apply(own, (x, labels), False), predicted[k], rtol=1e-6)


def test_batch_statistics_of_a_predictor_count_each_batch_once(x64):
    class Normed(nn.Module):
        @nn.compact
        def __call__(self, given, train):
            norm = nn.BatchNorm(use_running_average=not train, momentum=0.5, param_dtype=np.float64)
            return norm(given[0])

    task = problem(2, learning_rate=1e-12)  # the stage puts out the same for the same batch
    stages = jd.partition(jd.models.mlp(3, hidden=(5, 4, 5, 4), param_dtype=np.float64), boundaries=(2,))
    pipeline = jd.Pipeline(stages, schedules.dni(2), optimizer=optax.sgd(1e-12), auxiliary=Normed())
    state = pipeline.init(jax.random.key(0), task.batches[0][0])
    y = np.asarray(pipeline.programs[0].predict(state.stages[0], task.batches[0][0]))
    for _ in range(3):
        state, _ = pipeline.step(state, task.batches[0])
    state = pipeline.flush(state)
    mean = state.stages[0].auxiliary.model_state["batch_stats"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(mean, (1 - 0.5**3) * y.mean(axis=0), rtol=1e-6)


def test_a_function_of_the_stage_gives_each_its_network(x64):
    task = problem(3, **PLAIN)
    stages = jd.partition(jd.models.mlp(3, hidden=(5, 4, 5, 4), param_dtype=np.float64), boundaries=(1, 3))
    pipeline = jd.Pipeline(
        stages,
        schedules.dgl(3),
        optimizer=optax.sgd(0.1),
        auxiliary=lambda k, K: nn.Sequential([nn.Dense(7 + k, param_dtype=np.float64), nn.Dense(K)]),
    )
    state = pipeline.init(jax.random.key(0), task.batches[0][0])
    widths = [stage.auxiliary.params["layers_0"]["bias"].shape for stage in state.stages[:-1]]
    assert widths == [(7,), (8,)] and state.stages[2].auxiliary is None


@pytest.mark.parametrize(
    ("schedule", "options", "message"),
    [
        (schedules.dgl(2), {}, "needs an auxiliary network .*MLPClassifier"),
        (schedules.dni(2), {}, "needs an auxiliary network .*GradientPredictor"),
        (schedules.fdg(2), {"auxiliary": nn.Dense(3)}, "'fdg' has no auxiliary networks"),
        (schedules.dgl(2), {"auxiliary": 7}, "auxiliary gives 7 is no layer"),
        (
            schedules.dgl(2),
            {"auxiliary": nn.Dense(3), "auxiliary_optimizer": jd.stagewise(optax.sgd(0.1), accumulate=2)},
            "accumulates 1 batches, that of its auxiliary network 2",
        ),
    ],
)
def test_wrong_auxiliary_networks_are_refused_at_once(schedule, options, message):
    stages = jd.partition(jd.models.mlp(3, hidden=(5,)), boundaries=(1,))
    with pytest.raises(ValueError, match=message):
        jd.Pipeline(stages, schedule, optimizer=optax.sgd(0.1), **options)


@pytest.mark.parametrize(
    ("schedule", "network", "message"),
    [
        (schedules.dgl(2), nn.Dense(4), r"after layer 0 puts out float32\[7, 4\], but the network float32\[7, 3\]"),
        (schedules.dni(2), lambda k, K: _first, r"puts out float32\[7, 6\], but predicts the gradient of .*\[7, 5\]"),
        (schedules.dgl(2), nn.Conv(3, (3, 3)), "the auxiliary network after layer 0 .* cannot take"),
    ],
)
def test_an_output_of_the_wrong_shape_is_refused_before_training(schedule, network, message):
    stages = jd.partition(jd.models.mlp(3, hidden=(5,)), boundaries=(1,))
    pipeline = jd.Pipeline(stages, schedule, optimizer=optax.sgd(0.1), auxiliary=network)
    with pytest.raises(ValueError, match=message):
        pipeline.init(jax.random.key(0), np.zeros((7, 6), np.float32))


def _first(given):
    return jnp.pad(given[0], ((0, 0), (0, 1)))


def test_norms_of_single_examples_are_not_for_local_learning():
    stages = jd.partition(jd.models.mlp(3, hidden=(5,)), boundaries=(1,))
    pipeline = jd.Pipeline(stages, schedules.dgl(2), optimizer=optax.sgd(0.1), auxiliary=nn.Dense(3))
    x, y = np.zeros((7, 6), np.float32), np.zeros(7, np.int32)
    with pytest.raises(ValueError, match="objectives of their own"):
        pipeline.measure_gradient_norms(pipeline.init(jax.random.key(0), x), (x, y))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning": "greedy", "q": (1,)}, "greedy stages are sent no gradients"),
        ({"learning": "greedy", "q": (0,), "order": "backward_first"}, "write forward_first"),
        ({"learning": "synthetic", "q": (1,), "weights": "latest"}, "weights is 'latest'"),
        ({"learning": "hebbian", "q": (0,)}, "learning is 'hebbian'; write one of gradient, greedy, synthetic"),
    ],
)
def test_schedules_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ScheduleError, match=message):
        schedules.delays((1,), **options)


def test_schedules():
    dgl, dni = schedules.dgl(3), schedules.dni(3)
    assert (dgl.lag, dgl.drain, dni.lag, dni.drain) == ((0, 0, 0), 2, (2, 2, 0), 3)
    assert [list(map(str, dni.ops(4)))[3:]] == [["BACKWARD of batch 1 at stage 1", "BACKWARD of batch 2 at stage 0"]]
    assert not any("BACKWARD" in str(op) for _, ops in dgl.run(5) for op in ops)
    for schedule in (dgl, dni, schedules.dgl(1), schedules.dni(1)):
        schedules.validate(schedule)
        assert not any(map(any, schedules.staleness(schedule, 2)))
    longer = schedules.delays((2, 1), (3, 1), learning="synthetic")
    schedules.validate(longer)
    assert longer.lag == (5, 2, 0) and longer.drain == 5
    with pytest.raises(ScheduleError, match="a greedy stage's FORWARD includes its backward"):
        schedules.validate(_WithBackward(name="wrong", num_stages=2, p=(1,), q=(0,), learning="greedy"))


class _WithBackward(schedules.DelaySchedule):
    def ops(self, tick):
        return *super().ops(tick), *((schedules.Op(schedules.BACKWARD, 0, tick - 2),) if tick >= 2 else ())
