"""A GPT computes what its papers say, has their numbers of parameters, and may be cut anywhere."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdecouple as jd
from jaxdecouple import models, schedules
from jaxdecouple.network.layer import walk

TOKENS = np.random.default_rng(5).integers(0, 11, (3, 7))
SMALL = {"layers": 1, "width": 8, "heads": 2, "context": 7, "param_dtype": jnp.float64}


def parameters(layers):
    """How many, of each layer, by shapes alone."""
    return [
        sum(leaf.size for leaf in jax.tree.leaves(shapes.params))
        for shapes in walk([jd.as_layer(each) for each in layers], TOKENS)
    ]


# Radford et al. (2019) and the published checkpoints, whose head has no matrix of its own.
@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("gpt2_small", 124_439_808),
        ("gpt2_medium", 354_823_168),
        ("gpt2_large", 774_030_080),
        ("gpt2_xl", 1_557_611_200),
    ],
)
def test_parameters_are_as_many_as_published(name, published):
    layers = models.by_name(name, 50257)
    assert sum(parameters(layers)) == published + 50257 * layers[0].width


def numpy_gpt(params, tokens, positions, activation, heads=2):
    """From the papers: Radford et al. (2019), Su et al. (2021) eq. 34, Shazeer (2020) eq. 6."""

    def norm(p, x):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * p["scale"] + p["bias"]

    def dense(p, x):
        return x @ p["kernel"] + p["bias"]

    def turned(x):  # complex numbers, turned by e^(i t theta)
        t, half = x.shape[0], x.shape[-1] // 2
        z = x[..., :half] + 1j * x[..., half:]
        z = z * np.exp(1j * np.arange(t)[:, None] * 10000.0 ** (-np.arange(half) / half))
        return np.concatenate([z.real, z.imag], -1)

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    def attention(p, x):
        queries, keys, values = np.split(dense(p["qkv"], x), 3, -1)
        mixed = []
        for q, k, v in zip(*(np.split(each, heads, -1) for each in (queries, keys, values)), strict=True):
            if positions == "rotary":
                q, k = turned(q), turned(k)
            for t in range(len(x)):
                weights = np.exp(q[t] @ k[: t + 1].T / np.sqrt(q.shape[-1]))
                mixed.append((weights / weights.sum()) @ v[: t + 1])
        mixed = np.concatenate(np.split(np.array(mixed), heads), -1)
        return dense(p["out"], mixed)

    def feed_forward(p, x):
        y = dense(p["in"], x)
        y = {"gelu": gelu, "relu": lambda y: y.clip(0), "swiglu": lambda y: y / (1 + np.exp(-y))}[activation](y)
        return dense(p["out"], y * dense(p["gate"], x) if activation == "swiglu" else y)

    first, *blocks, last = params
    logits = []
    for row in tokens:
        x = first["embedding"][row] + (first["positions"][: len(row)] if positions == "learned" else 0)
        for block in blocks:
            x = x + attention(block["attention"], norm(block["attention"]["norm"], x))
            x = x + feed_forward(block["feed_forward"], norm(block["feed_forward"]["norm"], x))
        logits.append(norm(last["norm"], x) @ last["embedding"].T)
    return np.array(logits)


@pytest.mark.parametrize(("positions", "activation"), [("learned", "gelu"), ("rotary", "swiglu")])
def test_logits_are_those_of_the_papers(positions, activation, x64):
    layers = models.gpt(11, **SMALL, positions=positions, activation=activation)
    stages, devices = jd.partition(layers, 2, sample=TOKENS), jax.devices()[:1] * 2
    pipeline = jd.Pipeline(stages, schedules.backprop(2), optimizer=optax.sgd(0.1), devices=devices)
    state = pipeline.init(jax.random.key(0), TOKENS)
    # Larger weights than the initial ones, so that every part of the network matters.
    stages = [s.replace(params=jax.tree.map(lambda p: 8 * p, s.params)) for s in state.stages]
    state = state.replace(stages=tuple(stages))
    params = [layer for stage in state.stages for layer in jax.tree.map(np.asarray, stage.params).values()]
    assert len(params) == 3
    expected = numpy_gpt(params, TOKENS, positions, activation)
    np.testing.assert_allclose(pipeline.predict(state, TOKENS), expected, rtol=1e-10, atol=1e-10)


def loss_of(layers, params, batch):
    x, targets = batch
    for layer, p in zip(layers, params, strict=True):
        x = layer.apply({"params": p}, x)
    return optax.softmax_cross_entropy_with_integer_labels(x, targets).mean()


def test_training_is_that_of_flax_and_optax(x64):
    """K = 1; and back-propagation over two stages, cut within a block, activations redone."""
    optimizer, batches = optax.adamw(1e-2), [(TOKENS, (TOKENS + shift) % 11) for shift in (1, 2, 3)]
    expected = None
    for boundaries in ((), (2,)):
        layers, num_stages = models.gpt(11, **SMALL, split_blocks=True, remat=bool(boundaries)), len(boundaries) + 1
        stages = jd.partition(layers, num_stages, sample=TOKENS, boundaries=boundaries or None)
        devices = jax.devices()[:1] * num_stages
        pipeline = jd.Pipeline(stages, schedules.backprop(num_stages), optimizer=optimizer, devices=devices)
        state, losses = pipeline.init(jax.random.key(0), TOKENS), []
        if expected is None:
            expected = plainly(layers, optimizer, list(state.stages[0].params.values()), batches)
        for batch in batches:
            state, metrics = pipeline.step(state, batch)
            losses.append(metrics.loss)
        found = [layer for stage in state.stages for layer in stage.params.values()], losses
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), found, expected)


def plainly(layers, optimizer, params, batches):
    """Parameters and losses of Flax and optax alone."""
    opt_state, step, losses = optimizer.init(params), jax.jit(jax.value_and_grad(loss_of, 1), static_argnums=0), []
    for batch in batches:
        loss, grads = step(tuple(layers), params, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        losses.append(loss)
    return params, losses


def test_a_token_sees_none_after_it():
    layers = models.gpt(11, **{**SMALL, "param_dtype": jnp.float32}, dropout=0.5)
    stage = jd.Stage(tuple(map(jd.as_layer, layers)))
    params, _ = stage.init(jax.random.key(0), TOKENS)

    @functools.partial(jax.jit, static_argnames="train")
    def logits(tokens, batch=0, train=False):
        return stage.apply(params, {}, tokens, key=jax.random.key(1), batch=batch, train=train)[0]

    other = TOKENS.copy()
    other[:, 4:] = (other[:, 4:] + 3) % 11
    before, after = logits(TOKENS), logits(other)
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert np.abs(before[:, 4:] - after[:, 4:]).max(axis=(0, 2)).min() > 0
    # Dropout is on in training alone, and another one for every batch.
    first, second = logits(TOKENS, train=True), logits(TOKENS, train=True, batch=1)
    assert not np.allclose(first, before) and not np.allclose(first, second)


@pytest.mark.parametrize(
    ("settings", "tokens", "message"),
    [
        ({"context": 6}, TOKENS, "sequences have 7 tokens, but there are 6 positions; .*rotary"),
        ({}, TOKENS / 2, "tokens have type float32; write integers of 0..10"),
        ({"heads": 3}, TOKENS, "width is 8 and heads is 3; write a width that is a multiple of the heads"),
        ({"heads": 8, "positions": "rotary"}, TOKENS, "an even multiple"),
        ({"layers": 0}, TOKENS, "layers is 0"),
        ({"activation": "tanh"}, TOKENS, "activation is 'tanh'; write one of gelu, relu, swiglu"),
        ({"positions": "none"}, TOKENS, "positions is 'none'; write one of learned, rotary"),
    ],
)
def test_what_cannot_be_is_refused(settings, tokens, message):
    with pytest.raises(ValueError, match=message):
        layers = models.gpt(11, **{**SMALL, "param_dtype": jnp.float32, **settings})
        jd.partition(layers, 1, sample=tokens)


def test_settings_of_language_models_are_theirs_alone():
    assert models.by_name("gpt_micro", 65, context=64, dropout=0.1) == models.gpt(
        65, layers=4, width=128, heads=4, context=64, dropout=0.1
    )
    assert models.gpt2_small(100, context=8) == models.by_name("gpt2_small", 100, context=8)
    with pytest.raises(ValueError, match="context is 64, but 'resnet20' has no such setting"):
        models.by_name("resnet20", context=64)
    with pytest.raises(ValueError, match="unknown size 'gpt3_small'; did you mean 'gpt2_small'"):
        models.gpt_of_size("gpt3_small")


def test_sampling_goes_on_where_the_network_would(x64):
    layers = models.gpt(11, **SMALL)
    stages, devices = jd.partition(layers, 2, sample=TOKENS), jax.devices()[:1] * 2
    pipeline = jd.Pipeline(stages, schedules.backprop(2), optimizer=optax.adam(0.05), devices=devices)
    state = pipeline.init(jax.random.key(0), TOKENS)
    counting = (np.arange(8) + np.arange(11)[:, None]) % 11  # each token is the one before it and one
    for _ in range(40):
        state, _ = pipeline.step(state, (counting[:, :-1], counting[:, 1:]))
    sampled = jd.sample_tokens(pipeline, state, [[3], [9]], 12, key=jax.random.key(0), context=7, temperature=0)
    np.testing.assert_array_equal(sampled, (np.arange(13) + np.array([[3], [9]])) % 11)
    hot = jd.sample_tokens(pipeline, state, [[3, 4]], 12, key=jax.random.key(0), context=7, temperature=50.0)
    assert hot.shape == (1, 14) and not np.array_equal(hot[0], (np.arange(14) + 3) % 11)
    with pytest.raises(ValueError, match="prompt is int64.2.; write integers, .B, T."):
        jd.sample_tokens(pipeline, state, [3, 4], 1, key=jax.random.key(0), context=7)
    for wrong in ([[3, 11]], [[-1, 4]]):
        with pytest.raises(ValueError, match="prompt has tokens from .*, but the network knows 11"):
            jd.sample_tokens(pipeline, state, wrong, 1, key=jax.random.key(0), context=7)
    with pytest.raises(ValueError, match="temperature nan"):
        jd.sample_tokens(pipeline, state, [[3, 4]], 1, key=jax.random.key(0), context=7, temperature=float("nan"))


def test_tokens_that_are_not_known_give_nan_and_no_other_tokens_vector():
    embedding = jd.models.TokenEmbedding(5, 4)
    params = embedding.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    found = embedding.apply(params, jnp.array([[0, 4, 5, -1]]))
    assert np.isnan(found).all(axis=-1).tolist() == [[False, False, True, True]]
