"""Layer-wise scaling in NumPy, from the thesis's equations, and random trees to hold it against."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxdecouple as jd

SHAPES = {"Conv_0": {"bias": (4,), "kernel": (3, 3, 2, 4)}, "Norm_0": {"bias": (4,), "scale": (4,)}, "one": {"w": (1,)}}
PATHS = [(module, name) for module, tensors in SHAPES.items() for name in tensors]
LAYER = {"module": lambda path: path[0], "tensor": lambda path: path}
EXAMPLES = 6


def flat(tree):
    return {(module, name): np.asarray(tree[module][name]) for module, name in PATHS}


def nested(values):
    tree = {module: {} for module in SHAPES}
    for (module, name), value in values.items():
        tree[module][name] = value
    return tree


def random_tree(rng, *leading):
    return nested({(module, name): rng.normal(size=(*leading, *SHAPES[module][name])) for module, name in PATHS})


def example_norms(gradients):
    """Of [examples, ...] gradients the norm of each tensor and example."""
    return nested({path: np.sqrt((g.reshape(EXAMPLES, -1) ** 2).sum(1)) for path, g in flat(gradients).items()})


def zero(tree, module, name=None):
    return {**tree, module: {n: 0 * v if name in (None, n) else v for n, v in tree[module].items()}}


def ratios(rule, w, gradients, direction, *, eta, layer, scaled, eps=0.0, clip=np.inf):
    """Of every tensor; eqs. 4.3 and 4.7, with a ratio of 1 where they are 0 or undefined.

    `direction` is what LARS takes the norm of: the mean gradient, with weight decay if there is any.
    """
    result = {}
    for path in PATHS:
        layer_paths = [p for p in PATHS if layer(p) == layer(path) and scaled(p)]
        weight = np.sqrt(sum((w[p] ** 2).sum() for p in layer_paths))
        if rule == "lars":
            gradient = np.sqrt(sum((direction[p] ** 2).sum() for p in layer_paths))
        else:
            gradient = np.mean(
                [np.sqrt(sum((gradients[p][i] ** 2).sum() for p in layer_paths)) for i in range(EXAMPLES)]
            )
        ratio = eta * weight / (gradient + eps) if weight and gradient else 1.0
        result[path] = min(ratio, clip) if scaled(path) else 1.0
    return result


def assert_close(got, want, atol=1e-12):
    chex.assert_trees_all_close(got, want, rtol=0, atol=atol)


def is_weight(path):
    return path[1] in ("kernel", "w")


SCALE_BY = {"lars": jd.scale_by_lars, "clars": jd.scale_by_clars}
READY = {"lars": jd.lars, "clars": jd.clars}
BETA, DECAY, STEPS = 0.8, 0.03, 6


def gamma(t):
    return 2.0 / (1 + t)


def run(tx, w, all_gradients):
    """The weights after each step, trained by ``tx``, which is traced once."""
    chex.clear_trace_counter()  # it takes functions of one source for the same

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(w, state, mean, norms):
        updates, state = tx.update(mean, state, w, gradient_norms=norms)
        return optax.apply_updates(w, updates), state

    w, history = jax.tree.map(jnp.asarray, w), []
    state = tx.init(w)
    for gradients in all_gradients:
        w, state = step(w, state, mean(gradients), example_norms(gradients))
        history.append(w)
    return history


def start(seed=1, steps=STEPS):
    rng = np.random.default_rng(seed)
    return random_tree(rng), [random_tree(rng, EXAMPLES) for _ in range(steps)]


def mean(gradients):
    return jax.tree.map(lambda g: g.mean(0), gradients)


def stack(trees, axis=0):
    return jax.tree.map(lambda *leaves: np.stack(leaves, axis), *trees)
