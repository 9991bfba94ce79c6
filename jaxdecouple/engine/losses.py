"""A loss maps logits and targets to the mean loss of a batch, a scalar."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax


def softmax_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean softmax cross entropy.

    Args:
      logits: [B, ..., C].
      targets: integer labels [B, ...], or probabilities [B, ..., C].

    Raises:
      ValueError: targets of another shape, which would broadcast silently.
    """
    if is_labels(logits, targets):
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()
    if jnp.shape(targets) != jnp.shape(logits):
        raise ValueError(
            f"targets have shape {list(jnp.shape(targets))} and logits {list(jnp.shape(logits))}; write integer "
            f"labels {list(jnp.shape(logits)[:-1])} (for labels with a last axis of 1: targets[:, 0]), or "
            "probabilities of the logits' shape"
        )
    return optax.softmax_cross_entropy(logits, targets).mean()


def accuracy(logits: jax.Array, targets: jax.Array) -> jax.Array | None:
    """Share of examples whose largest logit is the label, or ``None`` where targets are not labels."""
    if not is_labels(logits, targets) or logits.shape[-1] < 2:
        return None
    return jnp.mean(jnp.argmax(logits, axis=-1) == targets)


def is_labels(logits: jax.Array | jax.ShapeDtypeStruct, targets: jax.Array | jax.ShapeDtypeStruct) -> bool:
    """Whether ``targets`` are integer labels for the last axis of ``logits`` (decided by shape and dtype alone)."""
    if not (hasattr(logits, "shape") and hasattr(targets, "shape")):
        return False
    return jnp.issubdtype(targets.dtype, jnp.integer) and tuple(targets.shape) == tuple(logits.shape[:-1])
