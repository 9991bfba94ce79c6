"""Parameters that layers share: one parameter, with one gradient, wherever the network is cut."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdecouple as jd
from jaxdecouple import models, schedules
from jaxdecouple.engine.workspace import Observer
from jaxdecouple.network.layer import walk

RNG = np.random.default_rng(2)
BATCHES = [(RNG.normal(size=(6, 5)), RNG.integers(0, 5, 6)) for _ in range(8)]
DOUBLE = {"param_dtype": jnp.float64}


class Transposed(nn.Module):
    """x W^T + b, with W as of a dense layer the other way round: [B, 4] -> [B, 5]."""

    features: int = 5

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.normal(1.0), (self.features, x.shape[-1]), jnp.float64)
        return x @ kernel.T + self.param("bias", nn.initializers.zeros, (self.features,), jnp.float64)


def layers(share=jd.shared):
    """A dense layer, one between, one that has the first's matrix as well, and the head that has it, turned."""
    between = [nn.tanh, nn.Dense(5, **DOUBLE), nn.tanh]
    again = share(nn.Dense(4, **DOUBLE, use_bias=False), w="kernel")
    return [share(nn.Dense(4, **DOUBLE), w="kernel"), *between, again, share(Transposed(), w="kernel")]


def pipeline_for(schedule, boundaries, optimizer, accumulate=1):
    stages = jd.partition(layers(), len(boundaries) + 1, boundaries=boundaries or None)
    optimizer = jd.stagewise(optimizer, accumulate=accumulate)
    return jd.Pipeline(stages, schedule, optimizer=optimizer, devices=jax.devices()[: len(stages)])


def parameters(state):
    return {name: params for stage in state.stages for name, params in jax.device_get(stage.params).items()}


def kernels(found):
    return [found[name]["kernel"] for name in ("000_Dense", "004_Dense", "005_Transposed")]


def loss_of(params, batch):
    """Of the network in one piece; the shared matrix is the first layer's."""
    x, y = batch
    first, middle = params["000_Dense"], params["002_Dense"]
    x = jnp.tanh(x @ first["kernel"] + first["bias"])
    x = jnp.tanh(x @ middle["kernel"] + middle["bias"])
    return jd.softmax_cross_entropy(x @ first["kernel"] @ first["kernel"].T + params["005_Transposed"]["bias"], y)


def own(found):
    """Without copies."""
    return {**found, "004_Dense": {}, "005_Transposed": {"bias": found["005_Transposed"]["bias"]}}


@pytest.mark.parametrize(
    ("schedule", "boundaries", "accumulate"),
    [
        (schedules.backprop(1), (), 1),
        (schedules.gpipe(2, 4), (3,), 4),  # once in the lower, twice in the upper
        (schedules.one_forward_one_backward(3, 2), (2, 5), 2),  # in all three stages
        (schedules.zero_bubble(3, 2), (2, 5), 2),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_synchronous_training_is_that_of_one_piece(schedule, boundaries, accumulate, x64):
    optimizer = optax.adamw(0.05, weight_decay=0.1)
    pipeline = pipeline_for(schedule, boundaries, optimizer, accumulate)
    state = pipeline.init(jax.random.key(0), BATCHES[0][0])
    params, plain = own(parameters(state)), jd.accumulate_gradients(optimizer, accumulate)
    assert len({kernel.tobytes() for kernel in kernels(parameters(state))}) == 1
    opt_state = plain.init(params)
    for batch in BATCHES:
        updates, opt_state = plain.update(jax.grad(loss_of)(params, batch), opt_state, params)
        params = optax.apply_updates(params, updates)
        state, _ = pipeline.step(state, batch)
    found = parameters(pipeline.flush(state))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-10), own(found), params)
    assert len({kernel.tobytes() for kernel in kernels(found)}) == 1


def test_gradients_meet_where_the_owner_has_its_own(x64):
    """DDG, K = 2: what the upper stage found waits a tick; the owner's staleness is the shared parameter's."""
    optimizer = optax.adam(0.05)
    pipeline = pipeline_for(schedules.ddg(2), (3,), optimizer)
    state = pipeline.init(jax.random.key(0), BATCHES[0][0])
    params = own(parameters(state))
    late = {"000_Dense": "late", "002_Dense": "late", "004_Dense": "now", "005_Transposed": "now"}
    plain = optax.partition({"late": jd.delay_gradients(optimizer, 1), "now": optimizer}, late)
    opt_state = plain.init(params)
    for n, batch in enumerate(BATCHES):
        updates, opt_state = plain.update(jax.grad(loss_of)(params, batch), opt_state, params)
        params = optax.apply_updates(params, updates)
        state, _ = pipeline.step(state, batch)
        found = parameters(state)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-10), own(found), params)
        assert len({kernel.tobytes() for kernel in kernels(found)}) == 1
        assert [list(flight.ties) for flight in state.in_flight] == [[n], []]


def test_a_smaller_batch_in_between_has_all_its_gradients(x64):
    """FDG, K = 3: a backward and a forward of other shapes are dispatched one by one, at a stage that is no owner."""

    class Watching(Observer):
        def wants(self, n):
            return True  # so that no operations are joined

    data, ends = [*BATCHES[:4], tuple(part[:4] for part in BATCHES[4]), *BATCHES[5:]], []
    for observer in (None, Watching()):
        pipeline = pipeline_for(schedules.fdg(3), (2, 5), optax.sgd(0.1))
        state = pipeline.init(jax.random.key(0), BATCHES[0][0])
        for batch in data:
            state, _ = pipeline.step(state, batch, observer=observer)
        ends.append(parameters(pipeline.flush(state, observer=observer)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12), *ends)


def test_what_is_in_flight_is_saved(x64, tmp_path):
    pipeline = pipeline_for(schedules.fdg(3), (2, 5), optax.adam(0.05), accumulate=2)
    state = pipeline.init(jax.random.key(0), BATCHES[0][0])
    for batch in BATCHES[:4]:
        state, _ = pipeline.step(state, batch)
    jd.save(tmp_path / "state", state)
    restored = jd.restore(tmp_path / "state", pipeline, *BATCHES[0])
    assert jax.tree.leaves(state.in_flight[0].ties)
    for each in (state, restored):
        assert [stage.packed_params.arrays[0].devices() for stage in each.stages] == [{d} for d in jax.devices()[:3]]
    ends = []
    for each in (state, restored):
        for batch in BATCHES[4:]:
            each, _ = pipeline.step(each, batch)
        ends.append(parameters(pipeline.flush(each)))
    jax.tree.map(np.testing.assert_array_equal, *ends)


def test_gpts_head_is_its_embedding(x64):
    small = {"layers": 1, "width": 8, "heads": 2, "context": 7, "param_dtype": jnp.float64}
    tokens = RNG.integers(0, 11, (3, 7))
    stages = jd.partition(models.gpt(11, **small, tied=True), 2, sample=tokens, boundaries=(1,))
    pipeline = jd.Pipeline(stages, schedules.backprop(2), optimizer=optax.adam(0.05), devices=jax.devices()[:2])
    state = pipeline.init(jax.random.key(0), tokens)
    for _ in range(3):
        state, _ = pipeline.step(state, (tokens, (tokens + 1) % 11))
    tables = [parameters(state)[name]["embedding"] for name in ("000_TokenEmbedding", "002_LanguageHead")]
    np.testing.assert_array_equal(*tables)
    assert np.abs(tables[0]).max() > 0.1  # it began at 0.02


def test_gpt2_has_as_many_parameters_as_published():
    found = walk([jd.as_layer(each) for each in models.gpt2_small(tied=True)], np.zeros((1, 4), np.int32))
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(shapes.params)) for shapes in found]
    assert sum(sizes) - 50257 * 768 == 124_439_808


@pytest.mark.parametrize(
    ("network", "schedule", "message"),
    [
        ([jd.shared(nn.Dense(4), w="kernel"), nn.Dense(5)], schedules.fdg(2), "'w' is shared by one layer alone, 000_"),
        (
            [jd.shared(nn.Dense(4), w="kernel"), jd.shared(nn.Dense(5), w="kernel")],
            schedules.fdg(2),
            r"'w' is shared by 000_Dense/kernel, float32\[5, 4\], and 001_Dense/kernel, float32\[4, 5\]; write layers",
        ),
        (
            [jd.shared(nn.Dense(4), w="kernel"), jd.shared(nn.Dense(5), w="kernels")],
            schedules.fdg(2),
            "no parameter 001_Dense/kernels to share: under 001_Dense there are bias, kernel",
        ),
        (
            [jd.shared(nn.Dense(5), w="kernel"), jd.shared(nn.Dense(5), w="kernel")],
            schedules.dgl(2),
            "stage 0 has parameters that other layers share, but under 'dgl'",
        ),
    ],
)
def test_what_cannot_be_shared_is_refused(network, schedule, message):
    with pytest.raises(ValueError, match=message):
        auxiliary = jd.models.MLPClassifier(5) if schedule.is_local else None
        devices = jax.devices()[:1] * 2
        pipeline = jd.Pipeline(network, schedule, optimizer=optax.sgd(0.1), auxiliary=auxiliary, devices=devices)
        pipeline.init(jax.random.key(0), BATCHES[0][0])


def test_a_layer_says_what_it_shares():
    layer = jd.shared(nn.Dense(4), w="kernel", v="a/b")
    assert layer.shares == (("w", ("kernel",)), ("v", ("a", "b"))) and layer.identity is None
    with pytest.raises(ValueError, match="names no parameter"):
        jd.shared(nn.Dense(4))
    with pytest.raises(ValueError, match="shares w already"):
        jd.shared(layer, w="bias")
    assert dataclasses.replace(layer, shares=()).apply is layer.apply
