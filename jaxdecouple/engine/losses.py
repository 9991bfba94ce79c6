"""A loss maps logits and targets to the mean loss of a batch, a scalar."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax


def softmax_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean softmax cross entropy.

    Args:
      logits: [B, ..., C].
      targets: integer labels [B, ...], or probabilities [B, ..., C]. With labels outside of 0..C-1, it is NaN.

    Raises:
      ValueError: targets of another shape, which would broadcast silently.
    """
    if is_labels(logits, targets):
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        known = (targets >= 0) & (targets < logits.shape[-1])
        return jnp.where(known, losses, jnp.nan).mean()
    if jnp.shape(targets) != jnp.shape(logits):
        raise ValueError(
            f"targets have shape {list(jnp.shape(targets))} and logits {list(jnp.shape(logits))}; write integer "
            f"labels {list(jnp.shape(logits)[:-1])} (for labels with a last axis of 1: targets[:, 0]), or "
            "probabilities of the logits' shape"
        )
    return optax.softmax_cross_entropy(logits, targets).mean()


def token_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean softmax cross entropy over the positions whose target is not negative; 0 where there is none.

    Args:
      logits: [B, ..., C].
      targets: integer labels [B, ...]; negative ones, such as -1 or -100, are left out.

    Raises:
      ValueError: targets are no labels of the logits.
    """
    total, count = token_losses(logits, targets)
    return total / jnp.maximum(count, 1)


def token_losses(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sum of the softmax cross entropies of positions whose target is not negative, and how many these are.

    Args and raises: as `token_cross_entropy`.
    """
    if not is_labels(logits, targets):
        raise ValueError(
            f"targets have shape {list(jnp.shape(targets))} and logits {list(jnp.shape(logits))}; write integer "
            f"labels {list(jnp.shape(logits)[:-1])}, negative ones where a position is left out"
        )
    counted = targets >= 0
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(counted, targets, 0))
    return jnp.sum(losses, where=counted), counted.sum()


def accuracy(logits: jax.Array, targets: jax.Array) -> jax.Array | None:
    """Share of labels that are the largest logit, or ``None`` where targets are not labels.

    Negative labels, such as the -100 of padding, are left out; NaN where there is no other.
    """
    hits = label_hits(logits, targets)
    return None if hits is None else hits[0] / hits[1]


def label_hits(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array] | None:
    """How many labels are the largest logit, and how many labels there are; negative ones are left out of both."""
    if not is_labels(logits, targets) or logits.shape[-1] < 2:
        return None
    kept = targets >= 0
    return jnp.sum((jnp.argmax(logits, axis=-1) == targets) & kept), jnp.sum(kept)


def predicts_labels(loss: Callable) -> bool:
    """Whether ``loss`` is known to want the largest logit to be the label: then an accuracy has a meaning.

    A loss of the user's own may leave labels out, or mean something else by integers.
    """
    return _whole(loss) in (softmax_cross_entropy, token_cross_entropy)


def counted(loss: Callable, targets: jax.Array) -> jax.Array | None:
    """Over how many targets the mean of a batch is, if the loss is known to leave some out; else ``None``."""
    return jnp.sum(targets >= 0) if _whole(loss) is token_cross_entropy else None


def _whole(loss: Callable) -> Callable:
    while isinstance(loss, functools.partial):
        loss = loss.func
    return loss


def is_labels(logits: jax.Array | jax.ShapeDtypeStruct, targets: jax.Array | jax.ShapeDtypeStruct) -> bool:
    """Whether ``targets`` are integer labels for the last axis of ``logits`` (decided by shape and dtype alone)."""
    if not (hasattr(logits, "shape") and hasattr(targets, "shape")):
        return False
    return jnp.issubdtype(targets.dtype, jnp.integer) and tuple(targets.shape) == tuple(logits.shape[:-1])
