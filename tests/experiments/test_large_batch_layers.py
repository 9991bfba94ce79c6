"""Learning rates and gradient variance by layer: the numbers are checked by hand, and every file is written."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.large_batch import gradient_variance, layer_rates
from experiments.large_batch.gradient_variance import VarianceStudy
from experiments.large_batch.layer_rates import Outcome, RateStudy
from experiments.large_batch.network import Network, layers_of, order_of, rounded
from experiments.training.progress import NonFiniteLoss
from jaxdecouple import models

PNG = b"\x89PNG\r\n\x1a\n"
RATES = RateStudy(num_examples=256, epochs=2, rates=(0.01, 1.0, 1e5), target=2.2)


def tiny(momentum=0.9, count=24):
    """Two dense layers on three numbers, with sigmoid between."""
    network = Network(models.mlp(4, hidden=(5,), activation=jax.nn.sigmoid), momentum)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(count, 3)))
    return network, network.init(0, x[:1]), (x, jnp.arange(count, dtype=jnp.int32) % 4)


def gradients(params, examples):
    """Of every example, in NumPy: a dict from layer to (kernels' [n, ...], biases' [n, ...])."""
    (first, last), (x, labels) = params.values(), map(np.asarray, examples)
    (w1, b1), (w2, b2) = (
        [np.asarray(layer["Dense_0"][name]) for name in ("kernel", "bias")] for layer in (first, last)
    )
    hidden = 1 / (1 + np.exp(-(x @ w1 + b1)))
    logits = hidden @ w2 + b2
    top = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True) - np.eye(4)[labels]
    below = (top @ w2.T) * hidden * (1 - hidden)
    outer = "ni,nj->nij"
    return dict(zip(params, [(np.einsum(outer, x, below), below), (np.einsum(outer, hidden, top), top)], strict=True))


def test_variance_factors_are_those_of_numpy(x64, monkeypatch):
    monkeypatch.setattr(gradient_variance, "_CHUNK", 10)  # and a rest of 4
    network, params, examples = tiny()
    factors = gradient_variance.variance_factors(network, params, examples, chunk_size=5)
    assert list(factors) == list(network.names)
    for name, (kernels, biases) in gradients(params, examples).items():
        each = np.concatenate([kernels.reshape(len(biases), -1), biases], axis=1)
        expected = np.square(each).sum(axis=1).mean() / np.square(each.mean(axis=0)).sum()
        np.testing.assert_allclose(factors[name], expected, rtol=2e-6)  # parameters are float32


def test_the_factor_is_one_where_examples_agree():
    network, params, (x, labels) = tiny()
    same = (jnp.tile(x[:1], (8, 1)), jnp.tile(labels[:1], 8))
    factors = gradient_variance.variance_factors(network, params, same, chunk_size=8)
    np.testing.assert_allclose(list(factors.values()), 1.0, rtol=1e-5)


def test_a_rate_is_that_of_its_layer_alone(x64):
    network, params, examples = tiny()
    rates, count = dict(zip(network.names, (0.5, 0.02), strict=True)), len(examples[1])
    order = np.stack([np.arange(count), np.arange(count)])
    got, _, losses = network.epoch(params, network.optimizer(rates).init(params), rates, examples, order)

    # Equation 4.6 with v_0 = w_0: two steps of every layer with its own rate.
    expected, v = params, params
    for _ in range(2):
        means = {name: [each.mean(axis=0) for each in pair] for name, pair in gradients(expected, examples).items()}
        step = {
            name: {"Dense_0": {"kernel": rates[name] * kernel, "bias": rates[name] * bias}}
            for name, (kernel, bias) in means.items()
        }
        v_new = jax.tree.map(np.subtract, expected, step)
        expected = jax.tree.map(lambda new, old: new + 0.9 * (new - old), v_new, v)
        v = v_new
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), got, expected)
    np.testing.assert_allclose(losses[0], network.loss(params, examples), rtol=1e-6)
    assert losses[1] < losses[0]


def test_rates_do_not_compile_anew():
    network, params, examples = tiny()
    order = order_of(24, 8, seed=0, epoch=0)
    for rate in (0.01, 1.0, 100.0):
        rates = dict.fromkeys(network.names, rate)
        network.epoch(params, network.optimizer(rates).init(params), rates, examples, order)
    assert network._epoch._cache_size() == 1


def test_an_epoch_shows_every_example_once():
    order = order_of(30, 8, seed=1, epoch=2)
    assert order.shape == (3, 8) and len(set(order.ravel().tolist())) == 24
    np.testing.assert_array_equal(order, order_of(30, 8, seed=1, epoch=2))
    assert (order != order_of(30, 8, seed=1, epoch=3)).any()


def test_every_layer_with_weights_is_a_module():
    counts = {"fcn": (5, (8, 8, 1)), "cnn": (5, (28, 28, 1)), "resnet8": (8, (32, 32, 3))}
    for name, (count, shape) in counts.items():
        network = Network(layers_of(name, 10))
        params = jax.eval_shape(lambda network=network, shape=shape: network.init(0, jnp.zeros((1, *shape))))
        assert len(params) == count and list(params) == list(network.names)
        assert all(len(jax.tree.leaves(layer)) == 2 for layer in params.values())  # a kernel and a bias
    with pytest.raises(ValueError, match="no other state, as batch normalisation has"):
        Network(models.resnet8(10)).init(0, jnp.zeros((1, 8, 8, 1)))


def test_what_ends_a_run():
    network, params, examples = tiny()
    settings = RateStudy(batch_size=8, epochs=3, target=1e-3)
    run = layer_rates.train(network, params, examples, settings, dict.fromkeys(network.names, 0.01))
    assert len(run[0]) == 3 and run[1:] == (False, False)
    assert Outcome("a", 0.01, *run).text == ">3"
    easy = dataclasses.replace(settings, target=5.0)
    run = layer_rates.train(network, params, examples, easy, dict.fromkeys(network.names, 0.01))
    assert len(run[0]) == 1 and run[1:] == (True, False) and Outcome("a", 0.01, *run).text == "1"
    top = {network.names[0]: 0.01, network.names[1]: 1e5}
    run = layer_rates.train(network, params, examples, settings, top)
    assert run[1:] == (False, True) and run[0][-1] > 10 * math.log(4)
    assert Outcome("a", 1e5, *run).text == "*"
    images, labels = examples
    run = layer_rates.train(network, params, (math.inf * images, labels), settings, dict.fromkeys(network.names, 0.01))
    assert run[1:] == (False, True) and not math.isfinite(run[0][-1])
    assert rounded([1.23456, *run[0]], 3)[0] == 1.23 and rounded(run[0])[-1] is None


def test_layer_rates_writes_everything(tmp_path):
    outcomes = RATES.run(tmp_path / "run")
    assert len(outcomes) == 15 and {outcome.layer[:3] for outcome in outcomes} == {f"00{k}" for k in range(5)}
    assert len({outcome.losses for outcome in outcomes if outcome.rate == 0.01}) == 1
    assert [outcome.text for outcome in outcomes][-1] == "*"
    table = (tmp_path / "run" / "table.md").read_text().splitlines()
    assert table[0].startswith("| layer (weights) | 0.01 | 1 | 100000 | largest rate") and len(table) == 7
    assert table[2].startswith("| 1 (64x128) | ") and table[6].endswith(" | * | 1 | - |")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["settings"]["dataset"] == "digits" and results["settings"]["target"] == 2.2
    assert results["layers"]["5 (128x10)"]["largest_rate_not_diverging"] == 1.0
    assert [run["epochs"] for run in results["layers"]["5 (128x10)"]["runs"]] == [">2", ">2", "*"]
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 15
    assert (tmp_path / "run" / "layer_rates.png").read_bytes().startswith(PNG)


def test_gradient_variance_writes_everything(tmp_path):
    settings = VarianceStudy(num_examples=256, epochs=2, norm_sample=100)
    records = settings.run(tmp_path / "run")
    assert [record.epoch for record in records] == [0, 1, 2] and records[0].train_loss is None
    assert all(factor >= 1 for record in records for factor in record.factors.values())
    table = (tmp_path / "run" / "table.md").read_text().splitlines()
    assert table[0].startswith("| epoch | training loss | layer 1 (64x128) |") and len(table) == 5
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert len(results["train_loss"]) == 2 and len(results["variance_factors"]["5 (128x10)"]) == 3
    assert (tmp_path / "run" / "gradient_variance.png").read_bytes().startswith(PNG)


def test_a_set_is_named_and_not_located(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (8, 8, 8), np.uint8)
    np.savez(tmp_path / "mine.npz", x_train=images, y_train=np.arange(8), x_test=images, y_test=np.arange(8))
    settings = VarianceStudy(dataset=f"npz:{tmp_path / 'mine.npz'}", batch_size=4, epochs=1)
    settings.run(tmp_path / "run")
    for name in ("config.json", "results.json"):
        text = (tmp_path / "run" / name).read_text()
        assert '"dataset": "mine"' in text and str(tmp_path) not in text


def test_a_diverging_measurement_says_so(tmp_path):
    settings = VarianceStudy(num_examples=128, epochs=3, learning_rate=1e38, norm_sample=8)
    with pytest.raises(NonFiniteLoss, match="training loss of epoch . is (nan|inf); write a lower --learning_rate"):
        settings.run(tmp_path / "run")
