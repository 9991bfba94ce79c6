"""Diagnostics look inside a run: how old its gradients are, and how far from the true ones.

They watch the operations that a pipeline carries out. Nothing of them is there when they are not used.

Two kinds of probe take turns, each every so many ticks:

* a **gradient probe** follows one batch through all stages. It keeps a copy of each stage's weights at the batch's
  forward, and compares the gradient that the stage's optimizer is given for it with the one that back-propagation
  computes for the same batch at those weights (DSP, Lemma 1, where they are the forward parameters);
* a **direction probe** looks at one tick. It compares the gradients that the stages consume in it, each of another
  batch, with the gradient of the loss over a reference, best the training set, at today's weights (thesis, eq. 6.10).

Gradients are looked at as they come, before shrinking and accumulation. What the papers' theorems make of such numbers
is in `bounds`.
"""

from jaxdecouple.diagnostics import bounds
from jaxdecouple.diagnostics.probes import Diagnostics
from jaxdecouple.diagnostics.records import DirectionRecord, GradientRecord

__all__ = ["Diagnostics", "DirectionRecord", "GradientRecord", "bounds"]
