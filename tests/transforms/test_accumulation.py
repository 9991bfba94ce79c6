"""Shrinking, accumulation and stagewise optimizers equal the papers' updates written in NumPy, and optax's own."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdecouple as jd
from jaxdecouple.transforms import Accumulation, accumulate_gradients, shrink_gradients, stagewise
from tests.oracles.layerwise import assert_close


def tree(rng, dtype=np.float64):
    return {"b": rng.normal(size=3).astype(dtype), "w": rng.normal(size=(2, 3)).astype(dtype)}


def gradients(count, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return [tree(rng, dtype) for _ in range(count)]


def train(transform, params, grads, **extra):
    """Parameters after each gradient, all of them from one trace."""
    chex.clear_trace_counter()  # it takes functions of one source for the same

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(params, state, grad):
        updates, state = transform.update(grad, state, params, **extra)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.asarray, params)
    state, history = transform.init(params), []
    for grad in grads:
        params, state = step(params, state, grad)
        history.append(params)
    return history


@pytest.mark.parametrize("distance", [0, 1, 3])
@pytest.mark.parametrize("beta", [1.0, 0.7, 0.25])
def test_shrinking_multiplies_by_beta_to_the_distance(beta, distance, x64):
    (grad,) = gradients(1)
    transform = shrink_gradients(beta, distance)
    updates, _ = transform.update(grad, transform.init(grad))
    assert_close(updates, jax.tree.map(lambda g: beta**distance * g, grad), atol=1e-15)
    assert shrink_gradients(beta).update(1.0, optax.EmptyState())[0] == beta


NUMPY_BETA = pytest.param(np.float64(0.5), id="numpy")


@pytest.mark.parametrize("beta", [0.5, NUMPY_BETA])
def test_shrinking_keeps_the_dtype(beta):
    grad = jnp.ones(3, jnp.bfloat16)
    updates, _ = shrink_gradients(beta, 2).update(grad, optax.EmptyState())
    assert updates.dtype == jnp.bfloat16


def test_stagewise_is_beta_at_every_boundary(x64):
    """FDG eq. 15 against eq. 17: three stages, and a boundary that multiplies the gradient that passes down."""
    beta, rng = 0.7, np.random.default_rng(0)
    stages = [rng.normal(size=(4, 4)) for _ in range(3)]
    x = rng.normal(size=(5, 4))

    def loss(stages, boundary):
        y = x
        for k, w in enumerate(stages):
            y = jnp.tanh((boundary(y) if k else y) @ w)
        return jnp.sum(y**2)

    @jax.custom_vjp
    def shrink(y):
        return y

    shrink.defvjp(lambda y: (y, None), lambda _, g: (beta * g,))
    plain = jax.grad(loss)(stages, lambda y: y)
    shrunk = jax.grad(loss)(stages, shrink)
    for k in range(3):
        transform = stagewise(optax.sgd(1.0), beta=beta)(k, 3)
        updates, _ = transform.update(plain[k], transform.init(stages[k]), stages[k])
        np.testing.assert_allclose(-updates, shrunk[k], rtol=0, atol=1e-12)
    assert np.abs(plain[0] - shrunk[0]).max() > 0.01


@pytest.mark.parametrize("M", [1, 3])
def test_stagewise_shrinks_before_weight_decay_and_momentum(M, x64):
    K, beta, decay, momentum, rate = 3, 0.6, 0.1, 0.9, 0.2
    optimizer = optax.chain(optax.add_decayed_weights(decay), optax.sgd(rate, momentum=momentum))
    grads, start = gradients(7), gradients(1, seed=1)[0]
    for k in range(K):
        history = train(stagewise(optimizer, beta=beta, accumulate=M)(k, K), start, grads)
        w, buffer = {name: value.copy() for name, value in start.items()}, {name: 0.0 for name in start}
        for n, params in enumerate(history):
            if (n + 1) % M == 0:
                for name in w:
                    mean = sum(grad[name] for grad in grads[n + 1 - M : n + 1]) / M
                    buffer[name] = momentum * buffer[name] + beta ** (K - 1 - k) * mean + decay * w[name]
                    w[name] = w[name] - rate * buffer[name]
            assert_close(params, w)


def test_stagewise_may_choose_the_optimizer_by_stage(x64):
    asked = []

    def choose(stage, num_stages):
        asked.append((stage, num_stages))
        return optax.sgd(float(stage + 1))

    grad = gradients(1)[0]
    for_stage = stagewise(choose, beta=0.5)
    for k in range(3):
        transform = for_stage(k, 3)
        updates, _ = transform.update(grad, transform.init(grad), grad)
        assert_close(updates, jax.tree.map(lambda g, k=k: -(k + 1) * 0.5 ** (2 - k) * g, grad))
    assert asked == [(0, 3), (1, 3), (2, 3)]


INNER = {
    "momentum": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": lambda: optax.adam(0.1),
    "adamw": lambda: optax.adamw(0.1, weight_decay=0.1),
    "schedule": lambda: optax.sgd(lambda count: 0.5 / (1 + count)),  # counts updates, not gradients
    "clip": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)),  # of the mean, not of each
}


def multi_steps(inner, every):
    return optax.MultiSteps(inner, every, accumulator_dtype=jnp.float64)


@pytest.mark.parametrize(("name", "every"), [*((name, 3) for name in INNER), ("adam", 1), ("adam", 2)])
def test_accumulation_equals_multisteps(name, every, x64):
    start, grads = gradients(1, seed=1)[0], gradients(8)
    ours = train(accumulate_gradients(INNER[name](), every), start, grads)
    theirs = train(multi_steps(INNER[name](), every), start, grads)
    for got, want in zip(ours, theirs, strict=True):
        assert_close(got, want)


def test_accumulation_is_the_mean_and_nothing_happens_in_between(x64):
    start, grads, M, rate = gradients(1, seed=1)[0], gradients(8), 3, 0.5
    w = start
    for n, params in enumerate(train(accumulate_gradients(optax.sgd(rate), M), start, grads)):
        if n % M == M - 1:
            w = {name: w[name] - rate * np.mean([grad[name] for grad in grads[n - 2 : n + 1]], axis=0) for name in w}
        assert_close(params, w)


def test_add_and_finish_by_hand_are_update(x64):
    start, grads = gradients(1, seed=1)[0], gradients(6)
    transform = accumulate_gradients(optax.adamw(0.1), 3)
    assert isinstance(transform, Accumulation) and transform.every == 3
    add, finish = jax.jit(transform.add), jax.jit(transform.finish)
    params, state = start, transform.init(start)
    for n, want in enumerate(train(transform, start, grads)):
        if n % 3 == 2:
            updates, state = finish(grads[n], state, params)
            params = optax.apply_updates(params, updates)
        else:
            state = add(grads[n], state)
        assert int(state.count) == (n + 1) % 3
        assert_close(params, want)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(state.total))


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_state_keeps_its_types(dtype):
    grad = gradients(1, dtype=np.float32)[0]
    transform = accumulate_gradients(optax.adam(0.1), 2, dtype=dtype)
    state = first = transform.init(grad)
    for _ in range(3):
        _, state = transform.update(grad, state, grad)
        chex.assert_trees_all_equal_shapes_and_dtypes(state, first)


def test_extra_arguments_of_the_last_call_reach_the_inner_transform(x64):
    def update(grads, state, params=None, *, factor):
        return jax.tree.map(lambda g: factor * g, grads), state

    inner = optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
    grads = gradients(2)
    for transform in (accumulate_gradients(inner, 2), stagewise(inner, accumulate=2)(0, 1)):
        state = transform.init(grads[0])
        _, state = transform.update(grads[0], state, grads[0], factor=100.0)
        updates, _ = transform.update(grads[1], state, grads[0], factor=3.0)
        assert_close(updates, jax.tree.map(lambda a, b: 3 * (a + b) / 2, *grads))
    updates, _ = accumulate_gradients(inner, 1).update(grads[0], optax.EmptyState(), factor=2.0)
    assert_close(updates, jax.tree.map(lambda g: 2 * g, grads[0]))
    for every in (1, 2):  # a transform that takes none does not see them
        ignoring = accumulate_gradients(optax.scale(-0.1), every)
        ignoring.update(grads[0], ignoring.init(grads[0]), factor=2.0)


@pytest.mark.parametrize("by_hand", [False, True])
def test_half_precision_is_summed_in_single(by_hand):
    # In bfloat16 256 + 1 is 256: with any of the three sums rounded, the mean would be 64.
    grads = [jnp.full(3, value, jnp.bfloat16) for value in (256, 0.5, 0.5, 1)]
    transform = accumulate_gradients(optax.sgd(1.0), 4)
    params = jnp.zeros(3, jnp.bfloat16)
    state = transform.init(params)
    assert state.total.dtype == jnp.float32
    for grad in grads[:-1]:
        state = transform.add(grad, state) if by_hand else transform.update(grad, state, params)[1]
    updates, state = (transform.finish if by_hand else transform.update)(grads[-1], state, params)
    assert updates.dtype == jnp.bfloat16
    np.testing.assert_array_equal(updates.astype(np.float32), -64.5)
    assert accumulate_gradients(optax.sgd(1.0), 4, dtype=jnp.bfloat16).init(params).total.dtype == jnp.bfloat16


@pytest.mark.parametrize(("params", "dtype"), [(None, jnp.bfloat16), (np.zeros(3, np.float32), jnp.float32)])
def test_updates_are_like_the_parameters_or_else_the_gradients(params, dtype):
    transform = accumulate_gradients(optax.sgd(1.0), 2)
    grad = jnp.full(3, 2.0, jnp.bfloat16)
    first, state = transform.update(grad, transform.init(grad), params)
    second, _ = transform.update(grad, state, params)
    assert first.dtype == second.dtype == dtype
    assert not first.any() and (second == -2).all()


def test_gradients_may_be_of_higher_precision_than_parameters():
    params = jnp.zeros(3, jnp.bfloat16)
    history = train(accumulate_gradients(optax.sgd(1.0, momentum=0.5), 2), params, [np.ones(3, np.float32)] * 4)
    np.testing.assert_array_equal(np.asarray(history[-1], np.float32), -2.5)


def test_one_gradient_per_update_is_the_inner_transform():
    inner, grad = optax.adam(0.1), gradients(1, dtype=np.float32)[0]
    transform = accumulate_gradients(inner, 1)
    assert not isinstance(transform, Accumulation)
    assert jax.tree.structure(transform.init(grad)) == jax.tree.structure(inner.init(grad))
    assert isinstance(stagewise(inner, accumulate=2)(0, 2), Accumulation)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: shrink_gradients(0.0), r"beta is 0.0; write a shrinking factor in \(0, 1\]"),
        (lambda: shrink_gradients(1.1), "beta is 1.1"),
        (lambda: shrink_gradients(0.5, -1), "distance is -1; write the number of stages"),
        (lambda: accumulate_gradients(optax.sgd(1.0), 0), "accumulate is 0; write how many gradients"),
        (lambda: jd.stagewise(optax.sgd(1.0), beta=-0.5), "beta is -0.5"),
        (lambda: jd.stagewise(optax.sgd(1.0), accumulate=-1), "accumulate is -1"),
        (
            lambda: jd.stagewise(optax.sgd)(0, 2),
            r"the optimizer is the function optax.sgd; call it, as in optax.sgd\(0.1\)",
        ),
        (lambda: jd.stagewise(jd.lars)(0, 2), r"the function jaxdecouple.lars; call it, as in jaxdecouple.lars\(0.1\)"),
    ],
)
def test_refuses_and_says_what_to_write(build, message):
    with pytest.raises(ValueError, match=message):
        build()
