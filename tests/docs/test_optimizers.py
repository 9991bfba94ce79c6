"""The page on optimizers: its table says what a pipeline finds out."""

import pathlib
import re

import numpy as np
import optax
import pytest

from jaxdecouple.transforms import dependence_of

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "how_to" / "optimizers.md").read_text()
FIRST, SECOND = ({name: {"kernel": np.ones((4, 4)), "bias": np.ones(4)}} for name in ("000_A", "001_B"))
ARGUMENTS = {
    "adaptive_grad_clip": [0.1], "add_decayed_weights": [0.1], "clip": [0.1], "clip_by_block_rms": [0.1],
    "clip_by_global_norm": [0.1], "normalize_by_update_norm": [], "apply_if_finite": [optax.sgd(0.1), 3], "ema": [0.9],
    "trace": [0.9], "freeze": [True], "masked": [optax.sgd(0.1), True], "mechanize": [optax.sgd(0.1)],
    "schedule_free": [optax.sgd(0.1), 0.1], "split_real_and_imaginary": [optax.sgd(0.1)], "flatten": [optax.adam(0.1)],
    "differentially_private_aggregate": [0.1, 0.1, 0], "dpsgd": [0.1, 0.1, 0.1, 0], "dowg": [1.0],
    "add_noise": [0.1, 0.5, 0],
    "normalize": [], "scale_by_lbfgs": [], "noisy_sgd": [0.1, 0.1, 0.5, 0],
}  # fmt: skip
NO_ARGUMENTS = ("apply_every", "centralize", "identity", "keep_params_nonnegative", "set_to_zero", "zero_nans")


def row(start):
    """The transforms that a row of the table names, with arguments."""
    (line,) = [line for line in PAGE.splitlines() if line.startswith(f"| {start}")]
    for name in re.findall(r"`(\w+)`", line):
        if name in ("MultiSteps", "skip_not_finite", "skip_large_updates"):
            continue
        make = getattr(optax.contrib if hasattr(optax.contrib, name) else optax, name)
        arguments = ARGUMENTS.get(name, () if name in NO_ARGUMENTS else (0.1,))
        yield name, make(*arguments)


@pytest.mark.parametrize(
    ("start", "mixes"),
    [("the same numbers", False), ("others, with", True), ("warned of", True), ("other noise", False)],
)
def test_the_table_says_who_is_warned_of(start, mixes):
    found = {name: dependence_of(transform, FIRST, SECOND).mixes for name, transform in row(start)}
    assert found and set(found.values()) == {mixes}, found
