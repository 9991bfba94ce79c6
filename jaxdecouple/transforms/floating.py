"""Integer parameters have no gradient. An optimizer leaves them alone, and need not know."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxdecouple.network.trees import PyTree


def floating_only(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """``inner`` for parameters that have gradients; the others, such as integers and booleans, stay as they are.

    Where all parameters have gradients it is ``inner``, and so is its state.
    """
    whole = optax.with_extra_args_support(inner)
    masked = optax.with_extra_args_support(optax.masked(inner, lambda tree: jax.tree.map(has_gradient, tree)))

    def of(tree: PyTree) -> optax.GradientTransformationExtraArgs:
        return whole if all(map(has_gradient, jax.tree.leaves(tree))) else masked

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, optax.OptState]:
        return of(updates).update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(lambda params: of(params).init(params), update)


def has_gradient(leaf: Any) -> bool:
    """Whether a parameter, or its shape, is of a floating or complex type."""
    return jnp.issubdtype(leaf.dtype, jnp.inexact)
