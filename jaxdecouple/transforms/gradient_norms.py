"""Gradient norms of single examples: how much the examples of a batch ask for, each by itself."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxdecouple.network.jax_internals import fast_in_loops
from jaxdecouple.network.trees import PyTree, describe
from jaxdecouple.transforms.layer_groups import Mask, root, split_over, stacked_counts, sum_of_squares


def per_example_gradient_norms(
    loss_fn: Callable[..., jax.Array],
    params: PyTree,
    batch: PyTree,
    *rest: Any,
    sample_size: int | None = 512,
    chunk_size: int = 32,
    stacked: Mask | None = None,
    specs: PyTree | None = None,
) -> PyTree:
    """The norm of every tensor's gradient, for each of some examples alone: what CLARS needs (thesis, eq. 4.7).

    Exact: each example is a batch of one to the loss. Compiled; memory grows with the chunk, not with the sample. The
    thesis takes a sample of 512 examples of a batch of 8192 (section 4.4.4).

    With batch normalisation, write a loss that takes its statistics from ``rest`` and holds them constant: here they
    would else be those of one example. Give it the batch's own, `batch_statistics`. Then the mean of the examples'
    gradients is the batch's gradient at these statistics, and the factor of eq. 4.8 is at most 1. Running averages lag
    behind, most of all early in training. (The thesis's code takes batches of 8 for examples, with the statistics of
    each.)

    Args:
      loss_fn: ``(params, batch, *rest) -> loss``, a scalar, the mean over the batch. Pass the same function every time,
        or call this within a compiled function: a new one is compiled anew.
      params: a pytree.
      batch: a pytree of arrays [B, ...]. The sample is its first examples, so the batch should be shuffled.
      *rest: passed on to the loss: pytrees of arrays, whatever it needs that is neither.
      sample_size: how many examples; ``None``: all B.
      chunk_size: how many gradients are in memory at once.
      stacked: which tensors hold those of several layers along their first axis; as for `scale_by_lars`.
      specs: within ``shard_map``, how each tensor is split over devices; as for `scale_by_lars`.

    Returns:
      A tree like ``params``: [sample_size] for each tensor, [sample_size, L] where it holds those of L layers; in
      float32 or wider.

    Raises:
      ValueError: the sample is larger than the batch, the batch's arrays differ in length, or the loss is no scalar.
    """
    sample, chunk_size = sample_of(batch, sample_size, chunk_size)
    one = jax.tree.map(lambda leaf: leaf[:1], sample)
    loss = jax.eval_shape(loss_fn, params, one, *rest)
    if getattr(loss, "shape", None) != ():
        raise ValueError(
            f"the loss of one example is {describe(loss)}; write a loss_fn that returns a scalar, the batch's mean"
        )
    counts = tuple(stacked_counts(stacked, params))
    split = tuple(split_over(specs, params, counts))
    return _norms(loss_fn, counts, split, chunk_size, params, sample, rest)


def sample_of(batch: PyTree, sample_size: int | None, chunk_size: int) -> tuple[PyTree, int]:
    """The first ``sample_size`` examples of a batch, and the chunk size for them.

    Raises:
      ValueError: a size is below 1, or the batch is smaller than the sample, or its arrays differ in length.
    """
    for name, size in {"sample_size": 1 if sample_size is None else sample_size, "chunk_size": chunk_size}.items():
        if not isinstance(size, int | np.integer) or size < 1:
            raise ValueError(f"{name} is {size!r}; write an integer of at least 1")
    lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(batch)}
    if len(lengths) != 1 or () in lengths or (0,) in lengths:
        raise ValueError(f"the batch is {describe(batch)}; write arrays [examples, ...] of one length, at least 1")
    ((length,),) = lengths
    if sample_size is not None and sample_size > length:
        raise ValueError(
            f"sample_size is {sample_size}, but the batch has {length} examples; write sample_size={length} or less, "
            "or None for all"
        )
    size = sample_size or length

    def first(leaf: Any) -> Any:
        is_shape = isinstance(leaf, jax.ShapeDtypeStruct)
        return jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype) if is_shape else leaf[:size]

    return jax.tree.map(first, batch), min(chunk_size, size)


def tensor_norms(gradient: PyTree, counts: Sequence[int | None], split: Sequence[tuple[str, ...]] = ()) -> PyTree:
    """The norm of every tensor: [], or [L] where ``counts`` says that it holds those of L layers.

    Args:
      gradient: a tree of tensors.
      counts: of each tensor the number of layers, or ``None``.
      split: of each tensor the axes of a ``shard_map`` over which it is split; nothing where none is.
    """
    leaves, structure = jax.tree.flatten(gradient)
    squares = [
        sum_of_squares(leaf, keep=0 if count is None else 1, split=axes)
        for leaf, count, axes in zip(leaves, counts, split or [()] * len(leaves), strict=True)
    ]
    return jax.tree.unflatten(structure, map(root, squares))


def by_example(
    function: Callable[[PyTree, PyTree], PyTree], variables: PyTree, sample: PyTree, chunk_size: int
) -> PyTree:
    """``function(variables, batch)`` of each example as a batch of one, stacked: [examples, ...].

    Args:
      function: of whatever is the same for all examples, and of a batch.
      variables: the former.
      sample: a pytree of arrays [examples, ...].
      chunk_size: how many examples are computed at once.
    """

    def of_example(variables: PyTree, example: PyTree) -> PyTree:
        return function(variables, jax.tree.map(lambda leaf: leaf[None], example))

    def of_sample(variables: PyTree, sample: PyTree) -> PyTree:
        return jax.lax.map(functools.partial(of_example, variables), sample, batch_size=chunk_size)

    return fast_in_loops(of_sample, variables, sample)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _norms(
    loss_fn: Callable[..., jax.Array],
    counts: tuple[int | None, ...],
    split: tuple[tuple[str, ...], ...],
    chunk_size: int,
    params: PyTree,
    sample: PyTree,
    rest: tuple,
) -> PyTree:
    def of_batch(variables: tuple, batch: PyTree) -> PyTree:
        params, rest = variables
        return tensor_norms(jax.grad(loss_fn)(_as_varying(params, batch), batch, *rest), counts, split)

    return by_example(of_batch, (params, rest), sample, chunk_size)


def _as_varying(params: PyTree, batch: PyTree) -> PyTree:
    """Parameters that differ, as far as derivatives know, over the same mesh axes of a ``shard_map`` as the batch.

    Of parameters that are the same on all devices, the gradient is the sum over the devices' examples.
    """
    axes = {axis for leaf in jax.tree.leaves(batch) for axis in jax.typeof(leaf).manual_axis_type.varying}

    def cast(leaf: jax.Array) -> jax.Array:
        missing = tuple(sorted(axes - jax.typeof(leaf).manual_axis_type.varying))
        return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(cast, params)


Statistics = Literal["batch", "running"]


def batch_statistics(forward: Callable[[PyTree], PyTree], running: PyTree) -> PyTree:
    """A batch's own statistics in place of running averages, as `per_example_gradient_norms` wants them.

    A running average r becomes m r + (1 - m) s, where s is the batch's statistic, on which r has no influence. So
    forwards from r = 0 and r = 1 tell m and s. In a compiled function they are one forward: all but r is the same.

    Args:
      forward: from running averages to those after a forward of the batch, in training.
      running: the averages, a pytree of arrays.

    Returns:
      A tree like ``running``. What is no average of this kind, or does not change, is returned as it is.
    """
    from_zero, from_one = (forward(jax.tree.map(fill, running)) for fill in (jnp.zeros_like, jnp.ones_like))

    def own(old: jax.Array, new: jax.Array, zero: jax.Array, one: jax.Array) -> jax.Array:
        if not jnp.issubdtype(old.dtype, jnp.floating):
            return old
        kept = one - zero  # m
        tolerance = 1e3 * jnp.finfo(old.dtype).eps
        is_average = jnp.abs(new - kept * old - zero) <= tolerance * (jnp.abs(new) + jnp.abs(kept * old) + 1)
        is_average &= (kept >= 0) & (kept < 1 - tolerance)
        return jnp.where(is_average.all(), zero / jnp.where(is_average, 1 - kept, 1), old)

    return jax.tree.map(own, running, forward(running), from_zero, from_one)
