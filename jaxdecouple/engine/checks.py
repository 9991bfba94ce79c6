"""What a run expects of the batches and the states that it is given, and what it says of others."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from jaxdecouple.engine.losses import is_labels
from jaxdecouple.engine.state import State
from jaxdecouple.network.trees import PyTree, describe, shape_of


@dataclasses.dataclass(frozen=True)
class Expected:
    """Shapes of the inputs and logits of a run, to hold every batch against."""

    inputs: PyTree
    logits: PyTree

    def check(self, inputs: PyTree, targets: PyTree, n: int, labels: bool) -> None:
        """Refuses batch ``n``, if it is another kind of batch; with ``labels``, if targets are no labels of a class.

        Raises:
          ValueError: so it is.
        """
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
        # Only labels still on the host are looked at: reading a device array would wait for it.
        if labels and isinstance(targets, np.ndarray) and hasattr(self.logits, "shape"):
            logits = jax.ShapeDtypeStruct((len(targets), *self.logits.shape[1:]), self.logits.dtype)
            classes = logits.shape[-1]
            if is_labels(logits, targets) and not 0 <= targets.min() <= targets.max() < classes:
                raise ValueError(
                    f"batch {n} has labels from {targets.min()} to {targets.max()}, but the network has {classes} "
                    f"outputs; write labels of 0..{classes - 1}"
                )


def check_usable(state: State) -> None:
    """Refuses a state whose memory has been reused.

    Raises:
      ValueError: so it is.
    """
    leaves = jax.tree.leaves([(stage.params, stage.opt_state) for stage in state.stages])
    if any(isinstance(leaf, jax.Array) and leaf.is_deleted() for leaf in leaves):
        raise ValueError(
            "this state was given to step or flush before, which reused its memory; go on with the state that they "
            "returned, or build the pipeline with donate=False to keep old states usable"
        )


def _per_example(tree: PyTree) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(leaf.shape[1:], leaf.dtype) for leaf in leaves]
