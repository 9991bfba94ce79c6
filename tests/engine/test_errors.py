"""Bad input gets one error that says what was given, what was expected, and what to write."""

import re
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdecouple as jd
from jaxdecouple import schedules
from jaxdecouple.engine.state import State

X = np.zeros((4, 5), np.float32)
Y = np.zeros(4, np.int32)


def pipeline(num_stages=2, schedule=None, **arguments):
    layers = jd.models.mlp(3, hidden=(6, 6, 6))
    arguments = {"optimizer": optax.sgd(0.1), **arguments}
    return jd.Pipeline(jd.partition(layers, num_stages), schedule or schedules.fdg(num_stages), **arguments)


def started(**arguments):
    p = pipeline(**arguments)
    return p, p.init(jax.random.key(0), X)


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: pipeline(2, schedules.fdg(3)), "2 stages, but the schedule 'fdg' is for 3"),
        (lambda: jd.Pipeline([nn.Dense(1)] * 5, schedules.fdg(5), optimizer=None), "5 devices, but JAX sees 4"),
        (lambda: pipeline(devices=jax.devices()[:1]), "1 devices for 2 stages"),
        (lambda: pipeline(optimizer=0.1), "optimizer of stage 0 is a float"),
        (lambda: pipeline(optimizer=optax.sgd), r"the function optax.sgd; call it, as in optax.sgd\(0.1\)"),
        (lambda: pipeline(optimizer=jd.stagewise(optax.adam, beta=0.5)), "the function optax.adam; call it"),
        (lambda: pipeline(optimizer=lambda stage, stages: None), "optimizer of stage 0 is a NoneType"),
        (lambda: pipeline(optimizer=optax.MultiSteps(optax.sgd(1.0), 2)), r"write jd.stagewise\(transform, accumulate"),
        (lambda: pipeline(optimizer=lambda stage: optax.sgd(0.1)), "cannot be called with a stage.*a function"),
        (lambda: pipeline(optimizer=optax.cosine_decay_schedule(0.1, 9)), r"learning rates, optax.adam\(schedule\)"),
        (lambda: pipeline(loss="ce"), "the loss is 'ce'; write a function of outputs and targets"),
        (lambda: pipeline(devices="cpu"), r"devices is 'cpu'; write one for each stage"),
        (lambda: pipeline(devices=jax.devices()[0]), r"devices is .*for all: \[device\] \* 2"),
        (lambda: pipeline(weights="stashed"), "'stashed'; write one of stash, remat, replay, latest"),
        (lambda: pipeline(run_ahead=0), "run_ahead is 0"),
        (lambda: pipeline(2, "fdg"), r"the schedule is 'fdg'; write jaxdecouple.schedules.fdg\(2\)"),
        (lambda: pipeline(2, "ddq"), r"the schedule is 'ddq'; did you mean 'ddg'\? write"),
        (lambda: pipeline(2, schedules.adl), r"the schedule is <function adl .*; write jaxdecouple.schedules.adl\(2\)"),
        (lambda: jd.partition([nn.Sequential([nn.relu])], 2), r"list the layers of layer 0 \(Sequential\)"),
        (lambda: jd.stagewise(optax.sgd(0.1), beta=0.0), r"beta is 0.0; write a shrinking factor in \(0, 1\]"),
        (lambda: jd.stagewise(optax.sgd(0.1), beta=1.5), "beta is 1.5"),
        (lambda: jd.stagewise(optax.sgd(0.1), accumulate=0), "accumulate is 0"),
        (lambda: pipeline(2, schedules.TableSchedule(name="mine", num_stages=2, table=(((schedules.FORWARD, 1, 0),),))),
         "its input does not exist yet: stage 0 has not forwarded batch 0"),
    ],
)  # fmt: skip
def test_refused_before_training(build, says):
    with pytest.raises(ValueError, match=says):
        build()


@pytest.mark.parametrize(
    ("batch", "says"),
    [
        ((X[:, :3], Y), r"float32\[4, 3\], but this run was initialised with float32\[4, 5\]"),
        ((X.astype(np.int32), Y), r"int32\[4, 5\], but this run was initialised with float32\[4, 5\]"),
        ((X, Y[:3]), r"targets have shape \[3\] and logits \[4, 3\]; write integer labels \[4\]"),
        ((X[:0], Y[:0]), "at least 1"),
        ((X, Y + 3), "labels from 3 to 3, but the network has 3 outputs; write labels of 0..2"),
        ((X, Y - 1), "labels from -1 to -1"),
        ((X, np.eye(3)[Y] * 2 - 1), "targets from -1 to 1 that sum to -1 to -1, .* write a loss"),
        ((X, np.full((4, 3), 0.6)), "sum to 1.8 to 1.8, but cross entropy"),
        (X, r"a batch is a pair, but got ndarray; write step\(state, \(inputs, targets\)\)"),
        ((X.tolist(), Y), r"inputs that are a list of numbers; write arrays, \[B, ...\]: numpy.asarray\(inputs\)"),
        ((X, Y.tolist()), "targets that are a list of numbers"),
    ],
)
def test_a_batch_that_does_not_fit(batch, says):
    p, state = started()
    state, _ = p.step(state, (X, Y))
    with pytest.raises(ValueError, match=says):
        p.step(state, batch)
    p.step(state, (X, Y))  # the run goes on


def test_a_layer_that_cannot_take_the_output_before_it_is_named():
    layers = [nn.Dense(4), lambda x: x.reshape(-1, 3), nn.Dense(2)]
    with pytest.raises(ValueError, match=re.escape("layer 1 (<lambda>) cannot take float32[4, 4]")):
        jd.partition(layers, 2, sample=X)
    p = jd.Pipeline(jd.partition(layers, 2), schedules.fdg(2), optimizer=optax.sgd(0.1))
    with pytest.raises(ValueError, match=re.escape("layer 1 (<lambda>) cannot take float32[4, 4]")):
        p.init(jax.random.key(0), X)


def test_probabilities_are_targets_and_rows_of_zeros_count_for_nothing():
    p, state = started(schedule=schedules.backprop(2))
    _, metrics = p.step(state, (X, np.array([[0.2, 0.3, 0.5], [1, 0, 0], [0, 0, 0], [0, 0, 0]], np.float32)))
    np.testing.assert_allclose(metrics.loss, np.log(3) / 2, rtol=1e-6)


def test_a_state_of_another_schedule():
    p, state = started()
    for _ in range(3):
        state, _ = p.step(state, (X, Y))
    for other in (schedules.ddg(2), schedules.backprop(2)):  # nothing is dispatched
        with pytest.raises(ValueError, match="batch 1 in flight at stage 0, .* of another schedule; flush it with"):
            p.with_schedule(other).step(state, (X, Y))
    p.flush(state)
    p, state = started(schedule=schedules.ddg(2))
    state, _ = p.step(state, (X, Y))
    with pytest.raises(ValueError, match="does not have what the .* it is of another schedule than 'fdg'; use a state"):
        p.with_schedule(schedules.fdg(2)).step(state, (X, Y))


@pytest.mark.parametrize("schedule", [schedules.gpipe(2, 4), schedules.one_forward_one_backward(2, 4)])
def test_updates_within_a_round_are_no_back_propagation(schedule):
    with pytest.warns(jd.CutWarning, match="accumulate=2, stage 0 updates .* write jd.stagewise.*accumulate=4"):
        pipeline(schedule=schedule, optimizer=jd.stagewise(optax.sgd(0.1), accumulate=2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for every in (4, 8):
            pipeline(schedule=schedule, optimizer=jd.stagewise(optax.sgd(0.1), accumulate=every))


def test_a_loss_that_is_not_a_scalar():
    p, state = started(loss=lambda logits, targets: jnp.zeros(4), schedule=schedules.backprop(2))
    with pytest.raises(ValueError, match=r"the loss returns float32\[4\]; write one that returns a scalar"):
        p.step(state, (X, Y))


def test_targets_that_the_loss_cannot_take_are_refused_before_they_travel():
    p, state = started()
    state, _ = p.step(state, (X, Y))
    with pytest.raises(ValueError, match=r"targets int32\[4, 1\]: .*write integer labels \[4\].*targets\[:, 0\]"):
        p.step(state, (X, Y[:, None]))
    p.step(state, (X, Y))


def test_a_loss_of_several_values():
    p, state = started(loss=lambda logits, targets: (logits.mean(), {}), schedule=schedules.backprop(2))
    with pytest.raises(ValueError, match=r"the loss returns a tuple of float32\[\]; write one that returns a scalar"):
        p.step(state, (X, Y))


@pytest.mark.parametrize(
    "call",
    [
        lambda p, state: p.step((X, Y), state),
        lambda p, state: p.step((state, None), (X, Y)),  # what step returns, not taken apart
        lambda p, state: p.flush(None),
        lambda p, state: p.predict(X, state),
        lambda p, state: p.evaluate([(X, Y)], state),
        lambda p, state: jd.export_variables(state, p),
    ],
)
def test_what_is_no_state(call):
    with pytest.raises(ValueError, match="the state is a .*; write pipeline.init"):
        call(*started(schedule=schedules.backprop(2)))


@pytest.mark.parametrize("x", [(4, 5), [[0.0] * 5] * 4])
def test_inputs_that_are_numbers(x):
    with pytest.raises(ValueError, match=r"the inputs are a (tuple|list) of numbers; write arrays"):
        pipeline().init(jax.random.key(0), x)


def test_a_batch_in_place_of_its_inputs():
    with pytest.raises(
        ValueError, match=r"cannot take float32\[4, 5\], int32\[4\], .*give inputs alone, without targets"
    ):
        pipeline().init(jax.random.key(0), (X, Y))


def test_masks_and_labels_of_the_whole_network_are_functions():
    labels = {f"00{n}_Dense": "all" for n in (0, 2, 4, 6)}
    for optimizer in (optax.adamw(0.1, mask=labels), optax.partition({"all": optax.sgd(0.1)}, labels)):
        with pytest.raises(ValueError, match="stage 0 cannot take the stage's parameters .*as functions of parameters"):
            started(optimizer=optimizer)


def test_a_state_that_was_used_up():
    p, state = started()
    old = p.step(state, (X, Y))[0]
    for _ in range(4):
        state, _ = p.step(old if _ == 0 else state, (X, Y))
    with pytest.raises(ValueError, match="this state was given to step or flush before.*donate=False"):
        p.step(old, (X, Y))
    for use in (p.flush, State.copy):
        with pytest.raises(ValueError, match="this state was given to step or flush before"):
            use(old)


def test_interrupting_the_wait_leaves_the_state_usable(monkeypatch):
    p, state = started(run_ahead=1)
    for _ in range(4):
        state, _ = p.step(state, (X, Y))

    def interrupt(array):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(jax, "block_until_ready", interrupt)
        with pytest.raises(KeyboardInterrupt):
            p.step(state, (X, Y))
    state, _ = p.step(state, (X, Y))
    p.flush(state)


def test_a_module_that_cannot_be_cut():
    for network in (nn.Dense(3), "resnet20", nn.relu):
        with pytest.raises(TypeError, match="which cannot be cut; write its layers as a list"):
            jd.partition(network, 2)


@pytest.mark.parametrize("key", [0, np.int32(3), None, 1.5])
def test_a_key_that_is_none(key):
    with pytest.raises(ValueError, match=rf"the key is .*; write init\(jax.random.key\({3 if key == 3 else 0}\), x\)"):
        pipeline().init(key, X)


def test_a_key_in_the_inputs_place():
    with pytest.raises(ValueError, match=r"the key is an array float32\[4, 5\]; write init\(.*, the key first"):
        pipeline().init(X, jax.random.key(0))


@pytest.mark.parametrize("stages", [nn.Dense(3), nn.Sequential([nn.Dense(3), nn.Dense(3)]), "resnet20"])
def test_stages_that_are_none(stages):
    with pytest.raises(ValueError, match=r"stages is a .*; write jaxdecouple.partition\(layers, num_stages\)"):
        jd.Pipeline(stages, schedules.fdg(2), optimizer=optax.sgd(0.1))


def test_evaluate_without_batches():
    p, state = started()
    for batches in ((X, Y), [X, Y]):
        with pytest.raises(ValueError, match=r"evaluate takes batches, but got arrays; write evaluate\(state, \[\("):
            p.evaluate(state, batches)
    with pytest.raises(ValueError, match="a batch is a pair, but got ndarray"):
        p.evaluate(state, iter([X]))
    with pytest.raises(ValueError, match="evaluate got no batches"):
        p.evaluate(state, [])
