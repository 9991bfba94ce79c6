"""The modules of the models in NumPy alone, from the formulas of their papers and from given variables."""

import functools

import jax
import numpy as np

from jaxdecouple.models import BasicBlock, ConvLayer, DenseLayer, Head, PlainStem


def switch(module, train=True):
    """The training switch, of a module that has one."""
    return {} if isinstance(module, ConvLayer | DenseLayer | Head | PlainStem) else {"train": train}


@functools.cache  # equal modules are traced once, whichever network they are in
def trace(module, x):
    """Output and variables of a module for an input like ``x``, as shapes and dtypes."""
    return jax.eval_shape(lambda key, x: module.init_with_output(key, x, **switch(module)), jax.random.key(0), x)


def images(size, channels=3, dtype=np.float32):
    return jax.ShapeDtypeStruct((2, size, size, channels), dtype)


def count(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


class Variables:
    """Random variables of a module, and NumPy's convolution and normalisation with them.

    Attributes:
      tree: by collection.
      train: whether statistics are those of the batch.
      updated: the running averages after a batch, as far as they were normalised by.
    """

    def __init__(self, module, x):
        rng = np.random.default_rng(7)
        names, structure = jax.tree_util.tree_flatten_with_path(
            trace(module, jax.ShapeDtypeStruct(x.shape, x.dtype))[1]
        )

        def draw(path, shape):
            # Variances are positive; scales are so large that a ReLU6 reaches its end.
            return rng.uniform(0.5, 2, shape) if "var" in str(path) else rng.normal(size=shape, scale=3)

        self.tree = jax.tree.unflatten(structure, [draw(path[-1], leaf.shape) for path, leaf in names])
        self.params, self.stats = self.tree["params"], self.tree.get("batch_stats", {})
        self.train, self.updated = True, {}

    def conv(self, x, name, stride=1, groups=1):
        kernel, bias = self.params[name]["kernel"], self.params[name].get("bias", 0)
        pad = kernel.shape[0] // 2
        padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[:2], axis=(1, 2))[:, ::stride, ::stride]
        parts = zip(np.split(windows, groups, axis=3), np.split(kernel, groups, axis=3), strict=True)
        return np.concatenate([np.einsum("bhwcij,ijcd->bhwd", a, b) for a, b in parts], axis=3) + bias

    def norm(self, x, name):
        if name not in self.params:  # a module without normalisation
            return x
        own, stats = self.params[name]["BatchNorm_0"], self.stats[name]["BatchNorm_0"]
        batch = {"mean": x.mean(axis=(0, 1, 2)), "var": x.var(axis=(0, 1, 2))}
        self.updated[name] = {"BatchNorm_0": {each: 0.9 * stats[each] + 0.1 * batch[each] for each in batch}}
        used = batch if self.train else stats
        return (x - used["mean"]) / np.sqrt(used["var"] + 1e-5) * own["scale"] + own["bias"]


def relu(x):
    return np.maximum(x, 0)


def relu6(x):
    return np.clip(x, 0, 6)


def dense(own, x):
    return x @ own["kernel"] + own["bias"]


def widened(x, channels, stride):
    """He et al. (2016), option A: subsampled, and zero channels on both sides."""
    missing = channels - x.shape[-1]
    return np.pad(x[:, ::stride, ::stride], ((0, 0),) * 3 + ((missing // 2, missing - missing // 2),))


def residual(v, block, x):
    """Convolutions with normalisation, ReLU after all but the last, and after the sum with the shortcut.

    He et al. (2016); with groups Xie et al. (2017), Figure 3c; the stride of three is the second's, as torchvision's.
    """
    strides = (block.stride, 1) if isinstance(block, BasicBlock) else (1, block.stride, 1)
    y = x
    for index, stride in enumerate(strides):
        groups = block.groups if index == 1 and len(strides) == 3 else 1
        y = v.norm(v.conv(relu(y) if index else y, f"Conv_{index}", stride, groups), f"_Norm_{index}")
    if block.projection:
        shortcut = v.norm(v.conv(x, "projection", block.stride), "projection_norm")
    else:
        shortcut = widened(x, block.channels, block.stride)
    return relu((excited(v, block, y) if block.reduction else y) + shortcut)


def excited(v, block, u):
    """Hu et al. (2018), equations 2 to 4 and Figure 3."""
    own, channels = v.params["excitation"], u.shape[-1]
    assert own["Dense_0"]["kernel"].shape == (channels, channels // block.reduction)
    assert set(own["Dense_0"]) == set(own["Dense_1"]) == {"kernel"}
    z = relu(u.mean(axis=(1, 2)) @ own["Dense_0"]["kernel"]) @ own["Dense_1"]["kernel"]
    return np.exp(-np.logaddexp(0, -z))[:, None, None, :] * u  # a sigmoid of z


def pre_activated(v, block, x):
    """He et al. (2016b), Figure 1b: x + conv(relu(norm(conv(relu(norm(x)))))), or with one convolution more.

    Where the shape changes, the shortcut forks off after the first ReLU.
    """
    strides = (block.stride, 1) if isinstance(block, BasicBlock) else (1, block.stride, 1)
    first = relu(v.norm(x, "_Norm_0"))
    y = v.conv(first, "Conv_0", strides[0])
    for index, stride in enumerate(strides[1:], 1):
        y = v.conv(relu(v.norm(y, f"_Norm_{index}")), f"Conv_{index}", stride)
    if block.projection:
        return y + v.conv(first, "projection", block.stride)
    return y + widened(x, block.channels, block.stride)


def inverted_residual(v, block, x):
    """Sandler et al. (2018), Table 1 and Figure 4d."""
    wide, names = x, iter((f"Conv_{index}", f"_Norm_{index}") for index in range(3))
    if block.expansion > 1:
        conv, norm = next(names)
        wide = relu6(v.norm(v.conv(x, conv), norm))
    conv, norm = next(names)
    wide = v.norm(v.conv(wide, conv, block.stride, groups=wide.shape[-1]), norm)
    assert wide.shape[-1] == block.expansion * x.shape[-1] and wide.max() > 6  # or the test sees no 6
    conv, norm = next(names)
    y = v.norm(v.conv(relu6(wide), conv), norm)
    return x + y if block.stride == 1 and block.channels == x.shape[-1] else y


def mobile_layer(v, layer, x):
    return relu6(v.norm(v.conv(x, "Conv_0", layer.stride), "_Norm_0"))


def densenet_layer(v, layer, x):
    """Huang et al. (2017), section 3, DenseNet-B: [x, H(x)]."""
    y = v.conv(relu(v.norm(x, "_Norm_0")), "Conv_0")
    assert y.shape[-1] == 4 * layer.growth
    return np.concatenate([x, v.conv(relu(v.norm(y, "_Norm_1")), "Conv_1")], axis=3)


def transition(v, layer, x):
    """Half the channels, then the means of 2x2; an odd row and column are lost."""
    y = v.conv(relu(v.norm(x, "_Norm_0")), "Conv_0")
    assert y.shape[-1] == x.shape[-1] // 2
    return np.mean([y[:, i:4:2, j:4:2] for i in (0, 1) for j in (0, 1)], axis=0)


def vgg_layer(v, layer, x):
    """Simonyan & Zisserman (2015): the largest of 2x2, an odd row and column lost."""
    y = relu(v.norm(v.conv(x, "Conv_0"), "_Norm_0"))
    return np.max([y[:, i:4:2, j:4:2] for i in (0, 1) for j in (0, 1)], axis=0) if layer.pool else y


def stem(v, layer, x):
    return relu(v.norm(v.conv(x, "Conv_0"), "_Norm_0"))


def pooling_stem(v, layer, x):
    """As torchvision's: padding of the same width on both sides, for the convolution and for the maximum of 3x3."""
    y = np.pad(relu(v.norm(v.conv(x, "Conv_0", 2), "_Norm_0")), ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(y, (3, 3), axis=(1, 2))
    return windows[:, ::2, ::2].max(axis=(-2, -1))


def plain_stem(v, layer, x):
    return v.conv(x, "Conv_0")


def head(v, layer, x):
    return dense(v.params["Dense_0"], x.mean(axis=(1, 2)))


def activation_head(v, layer, x):
    return dense(v.params["head"]["Dense_0"], relu(v.norm(x, "_Norm_0")).mean(axis=(1, 2)))


def dense_layer(v, layer, x):
    y = dense(v.params["Dense_0"], x.reshape(len(x), -1))
    return y if layer.activation is None else np.tanh(y)


def conv_layer(v, layer, x):
    """Means over the cells that there are: those outside are not a number here, and left out."""
    y = np.tanh(v.conv(x, "Conv_0"))
    rows, columns = y.shape[1:3]
    y = np.pad(y, ((0, 0), (0, rows % 2), (0, columns % 2), (0, 0)), constant_values=np.nan)
    halves = y.reshape(len(y), -(-rows // 2), 2, -(-columns // 2), 2, y.shape[-1])
    return np.nanmean(halves, axis=(2, 4))
