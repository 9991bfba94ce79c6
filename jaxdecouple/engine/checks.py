"""What a run expects of the batches and the states that it is given, and what it says of others."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import jax
import numpy as np

from jaxdecouple.engine.loss_program import LossProgram
from jaxdecouple.engine.losses import softmax_cross_entropy, token_cross_entropy
from jaxdecouple.engine.state import State
from jaxdecouple.network.trees import PyTree, describe, shape_of


class Expected:
    """Shapes of the inputs and logits of a run, to hold every batch against.

    Attributes:
      inputs, logits: shapes and dtypes, [B, ...].
    """

    def __init__(self, inputs: PyTree, logits: PyTree, program: LossProgram):
        self.inputs = inputs
        self.logits = logits
        self._program = program
        self._accepted: set[Hashable] = set()

    def check(self, inputs: PyTree, targets: PyTree, n: int) -> None:
        """Refuses batch ``n``, if it is another kind of batch, or has labels of no class. Shapes are looked at once.

        Raises:
          ValueError: inputs of other shapes or dtypes than at the beginning, but for the number of examples; targets
            of another number of examples, or that the loss cannot take; labels outside of the classes.
        """
        leaves, structure = jax.tree.flatten((inputs, targets))
        kind = structure, tuple((np.shape(leaf), getattr(leaf, "dtype", type(leaf))) for leaf in leaves)
        if kind not in self._accepted:
            self._check_shapes(inputs, targets, n)
            if targets is not None:  # another process has them
                self._program.check(self.logits, shape_of(targets))
            self._accepted.add(kind)
        # Only labels still on the host are looked at: reading a device array would wait for it.
        if self._program.loss in (softmax_cross_entropy, token_cross_entropy) and isinstance(targets, np.ndarray):
            self._check_labels(targets, n)

    def inputs_for(self, targets: PyTree) -> PyTree:
        """The shapes of a batch's inputs, from its targets if they are known, else as at the beginning."""
        leaves = jax.tree.leaves(targets)
        if not leaves:
            return self.inputs
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((np.shape(leaves[0])[0], *leaf.shape[1:]), leaf.dtype), self.inputs
        )

    def _check_shapes(self, inputs: PyTree, targets: PyTree, n: int) -> None:
        if _per_example(shape_of(inputs)) != _per_example(self.inputs):
            raise ValueError(
                f"batch {n} has inputs {describe(shape_of(inputs))}, but this run was initialised with "
                f"{describe(self.inputs)}; only the first axis, the number of examples, may change"
            )
        sizes = {np.shape(leaf)[0] if np.ndim(leaf) else None for leaf in jax.tree.leaves((inputs, targets))}
        if len(sizes) != 1 or sizes == {0}:
            raise ValueError(
                f"batch {n} has inputs {describe(inputs)} and targets {describe(targets)}; "
                "all must have the same number of examples, at least 1, as their first axis"
            )

    def _check_labels(self, targets: np.ndarray, n: int) -> None:
        if not hasattr(self.logits, "shape") or not np.issubdtype(targets.dtype, np.integer):
            return
        classes = self.logits.shape[-1]
        least = 0 if self._program.loss is softmax_cross_entropy else targets.min()  # negative ones are left out
        if targets.ndim == self.logits.ndim - 1 and not least <= targets.min() <= targets.max() < classes:
            raise ValueError(
                f"batch {n} has labels from {targets.min()} to {targets.max()}, but the network has {classes} "
                f"outputs; write labels of 0..{classes - 1}"
            )


def check_usable(state: State) -> None:
    """Refuses a state whose memory has been reused.

    Raises:
      ValueError: the state was given to `step` or `flush` before.
    """
    for stage in state.stages:
        for packed in (stage.packed_opt_state, stage.packed_params):
            # All arrays of a part are given up together.
            if packed.arrays and isinstance(packed.arrays[0], jax.Array) and packed.arrays[0].is_deleted():
                raise ValueError(
                    "this state was given to step or flush before, which reused its memory; go on with the state that "
                    "they returned, or build the pipeline with donate=False to keep old states usable"
                )


def _per_example(tree: PyTree) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(leaf.shape[1:], leaf.dtype) for leaf in leaves]
