"""Layer-wise scaling gives every layer a learning rate of its own, from its weights' norm and its gradient's.

Of layer k, with weights w_k and the gradients g_ik of a batch's B examples:

    LARS   gamma_k = gamma eta |w_k| / |(1/B) sum_i g_ik|      (thesis, eq. 4.3)
    CLARS  gamma_k = gamma eta |w_k| / ((1/B) sum_i |g_ik|)    (thesis, eq. 4.7)

Equation 4.8 writes CLARS as LARS times |(1/B) sum_i g_ik| / ((1/B) sum_i |g_ik|), which is small where examples
disagree, as they do early in training: what a warm-up of the learning rate is for.
"""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from jaxdecouple.network.trees import PyTree
from jaxdecouple.transforms.layer_groups import Grouping, GroupKey, Groups, Mask

Labels = str | Callable[[PyTree], PyTree]


def scale_by_lars(
    eta: float = 0.001,
    *,
    groups: Labels = "module",
    mask: Mask = True,
    stacked: Mask | None = None,
    specs: PyTree | None = None,
    eps: float = 0.0,
    clip: float | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Multiplies each layer's update g_k by eta |w_k| / (|g_k| + eps) (LARS; thesis, eq. 4.3).

    Where a norm is zero, the ratio is 1, as in `optax.scale_by_trust_ratio` and the thesis's published code (in
    float32, one below 1e-22 counts as zero). With ``groups="tensor"`` it is that transform.

    Args:
      eta: the trust coefficient, above 0.
      groups: what shares a ratio: ``"module"``, the tensors of one module, a layer of the thesis's text; ``"tensor"``,
        each tensor alone, as in its code and in optax; or a function from the parameters to a tree of labels. In flat
        trees, ``Dense_0/kernel`` and ``Dense_0/bias`` are of one module; several weights without a module are apart.
      mask: which tensors are scaled; the others pass unchanged and count in no norm. As in optax: a tree of booleans
        like the parameters, a prefix of it, or a function that makes one, such as `weight_mask`. Default: all.
      stacked: which tensors hold those of several layers along their first axis, as ``nn.scan`` and
        ``vmap``-initialised models do; given like ``mask``. ``None``: those of a stage's stacks of identical layers.
      specs: within ``shard_map``, how each tensor is split over devices, as ``in_specs`` says it: a ``PartitionSpec``,
        a tree of them like the parameters, or a prefix of it. Norms are then of the whole tensors. Elsewhere, also
        under ``jit`` with arrays that lie on several devices, they are without it.
      eps: added to the gradient's norm. The thesis has none, its code 1e-6.
      clip: the largest ratio, that of 1 included. The thesis has none, its code 0.1 for CLARS alone.

    Raises:
      ValueError: a setting out of range, here; parameters missing, of another structure, or different on the devices of
        a ``shard_map`` without ``specs``, in ``update``.
    """
    return _scaling(_Rule(eta, eps, clip, Grouping(groups, mask, stacked, specs), by_example=False))


def scale_by_clars(
    eta: float = 0.01,
    *,
    groups: Labels = "module",
    mask: Mask = True,
    stacked: Mask | None = None,
    specs: PyTree | None = None,
    eps: float = 0.0,
    clip: float | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Multiplies each layer's update by eta |w_k| / (a_k + eps), a_k the mean of its examples' gradient norms.

    That is CLARS (thesis, eq. 4.7; its Algorithm 8 squares the norms, which would not fit eq. 4.8). ``update`` needs
    the norms, as a keyword: ``tx.update(grads, state, params, gradient_norms=norms)``, from
    `per_example_gradient_norms`, or one norm for each layer. Where |w_k| or a_k is zero, the ratio is 1.

    Args: as those of `scale_by_lars`.

    Raises:
      ValueError: a setting out of range, here; parameters or norms missing or of another structure, in ``update``.
    """
    return _scaling(_Rule(eta, eps, clip, Grouping(groups, mask, stacked, specs), by_example=True))


def lars(
    learning_rate: optax.ScalarOrSchedule,
    eta: float = 0.001,
    *,
    momentum: float = 0.9,
    nesterov: bool = True,
    momentum_of: Literal["steps", "gradients"] = "steps",
    weight_decay: float = 0.0,
    weight_decay_mask: Mask = True,
    groups: Labels = "module",
    mask: Mask = True,
    stacked: Mask | None = None,
    specs: PyTree | None = None,
    eps: float = 0.0,
    clip: float | None = None,
) -> optax.GradientTransformationExtraArgs:
    """SGD with momentum and the layer-wise rates of LARS (thesis, eqs. 4.3 and 4.6).

    With d = gradient + weight_decay w and gamma_k = learning_rate eta |w_k| / |d_k|, per layer k and step t:

        momentum_of="steps"        b = momentum b + gamma_k d;   w -= b          (eq. 4.6; optax.lars)
        momentum_of="gradients"    b = momentum b + d;           w -= gamma_k b  (the thesis's published code)

    With ``nesterov``, w loses ``momentum b + gamma_k d``, or ``gamma_k (momentum b + d)``, with the new b. Equation 4.6
    is written with v, the point before the momentum is added: b is v before the step minus v after it.

    Args:
      learning_rate: gamma, the thesis's gamma_scale = gamma_base B / B_base; or a schedule.
      eta: the trust coefficient, above 0.
      momentum: beta of eq. 4.6, in [0, 1); chapter 4 gives no number.
      nesterov: whether as in eqs. 4.2 and 4.6, or heavy ball, as in optax.lars by default and in the published code.
      momentum_of: what the momentum sums; see above.
      weight_decay: added to the gradient before its norm is taken; the thesis's equations have none.
      weight_decay_mask: as for `optax.add_decayed_weights`.
      groups, mask, stacked, specs, eps, clip: as for `scale_by_lars`. With ``groups="tensor"`` and ``nesterov=False``
        this is ``optax.lars``; the published code has these, ``momentum_of="gradients"``, ``mask=weight_mask`` and
        ``eps=1e-6``.

    Raises:
      ValueError: a setting out of range, here; parameters missing, in ``update``.
    """
    rule = _Rule(eta, eps, clip, Grouping(groups, mask, stacked, specs), by_example=False)
    decay = optax.add_decayed_weights(weight_decay, weight_decay_mask)
    return _with_momentum(rule, decay, learning_rate, momentum, nesterov, momentum_of)


def clars(
    learning_rate: optax.ScalarOrSchedule,
    eta: float = 0.01,
    *,
    momentum: float = 0.9,
    nesterov: bool = True,
    momentum_of: Literal["steps", "gradients"] = "steps",
    weight_decay: float = 0.0,
    weight_decay_mask: Mask = True,
    groups: Labels = "module",
    mask: Mask = True,
    stacked: Mask | None = None,
    specs: PyTree | None = None,
    eps: float = 0.0,
    clip: float | None = None,
) -> optax.GradientTransformationExtraArgs:
    """SGD with momentum and the layer-wise rates of CLARS (thesis, eqs. 4.6 and 4.7).

    As `lars`, but with gamma_k = learning_rate eta |w_k| / a_k, where a_k is the mean over examples of the norm of
    layer k's gradient, without weight decay: ``update`` needs ``gradient_norms``, as `scale_by_clars` says.

    Args: as those of `lars`. The published code has ``groups="tensor"``, ``nesterov=False``,
      ``momentum_of="gradients"``, ``mask=weight_mask``, ``eps=1e-6`` and ``clip=0.1``.

    Raises:
      ValueError: a setting out of range, here; parameters or norms missing or of another structure, in ``update``.
    """
    rule = _Rule(eta, eps, clip, Grouping(groups, mask, stacked, specs), by_example=True)
    decay = optax.add_decayed_weights(weight_decay, weight_decay_mask)
    return _with_momentum(rule, decay, learning_rate, momentum, nesterov, momentum_of)


@dataclasses.dataclass(frozen=True)
class _Rule:
    """The ratio of each group, from its weights and gradients.

    Attributes: as the arguments of `scale_by_lars`; ``grouping`` holds those that say what a group is, and
      ``by_example`` whether weights are divided by the mean of the examples' norms (CLARS), or by the norm of the mean.
    """

    eta: Any
    eps: Any
    clip: Any
    grouping: Grouping
    by_example: bool

    def __post_init__(self) -> None:
        _check("eta", self.eta, lambda eta: 0 < eta < float("inf"), "a number above 0")
        _check("eps", self.eps, lambda eps: 0 <= eps < float("inf"), "a number of at least 0")
        if self.clip is not None:
            _check("clip", self.clip, lambda clip: clip > 0, "a number above 0, or None for no bound")

    def ratios(
        self, groups: Groups, updates: PyTree, params: PyTree, norms: PyTree | None
    ) -> dict[GroupKey, jax.Array]:
        """The ratio of each group for these updates."""
        if self.by_example and norms is None:
            raise ValueError(
                "CLARS needs the norms of single examples' gradients; write norms = "
                "jaxdecouple.per_example_gradient_norms(loss_fn, params, batch), then tx.update(grads, state, params, "
                "gradient_norms=norms); in a pipeline, state = pipeline.measure_gradient_norms(state, batch) before "
                "the step that updates. If you do, a wrapper around CLARS drops keywords: put it inside of CLARS's "
                "chain, or leave it out"
            )
        gradients = groups.mean_norms(norms) if self.by_example else groups.norms(updates)
        return {key: self._ratio(weight, gradients[key]) for key, weight in groups.norms(params).items()}

    def _ratio(self, weight: jax.Array, gradient: jax.Array) -> jax.Array:
        zero = (weight == 0) | (gradient == 0)
        ratio = jnp.where(zero, 1, self.eta * weight / jnp.where(zero, 1, gradient + self.eps))
        return ratio if self.clip is None else jnp.minimum(ratio, self.clip)


def _scaling(rule: _Rule, inner: optax.GradientTransformation | None = None) -> optax.GradientTransformationExtraArgs:
    """The transform that multiplies what ``inner`` makes of the updates by the ratios of the updates themselves."""
    inner = inner or optax.identity()

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        *,
        gradient_norms: PyTree | None = None,
        **extra: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        if params is None:
            raise ValueError("layer-wise scaling needs the parameters; write tx.update(grads, state, params)")
        groups = rule.grouping.of(params)
        groups.check(updates)
        ratios = rule.ratios(groups, updates, params, gradient_norms)
        updates, state = inner.update(updates, state, params)
        return groups.scale(updates, ratios), state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _with_momentum(
    rule: _Rule,
    decay: optax.GradientTransformation,
    learning_rate: optax.ScalarOrSchedule,
    momentum: float,
    nesterov: bool,
    momentum_of: str,
) -> optax.GradientTransformationExtraArgs:
    _check("momentum", momentum, lambda momentum: 0 <= momentum < 1, "a number of at least 0, for none, and below 1")
    trace, rate = optax.trace(momentum, nesterov), optax.scale_by_learning_rate(learning_rate)
    if momentum_of == "steps":
        return optax.chain(decay, _scaling(rule), rate, trace)
    if momentum_of == "gradients":
        return optax.chain(decay, _scaling(rule, trace), rate)
    raise ValueError(f"momentum_of is {momentum_of!r}; write 'steps' or 'gradients'")


def _check(name: str, value: Any, accepts: Callable[[Any], bool], expected: str) -> None:
    # Arrays may be tracers, whose values are not known: of a search over eta by vmap, say.
    if not isinstance(value, jax.Array) and not (isinstance(value, numbers.Real) and accepts(value)):
        raise ValueError(f"{name} is {value!r}; write {expected}")
