"""Batches: one epoch's pass over the examples, cut into equal runs of a random order."""

from collections.abc import Iterator

import numpy as np

from jaxdecouple.errors import DataError


def num_batches(n: int, batch_size: int, drop_last: bool = False) -> int:
    """Number of batches in an epoch of n examples; the ragged last one counts unless dropped.

    Raises:
        DataError: batch_size < 1, or every example would be dropped (batch_size > n).
    """
    if batch_size < 1:
        raise DataError(f"batch_size is {batch_size}; it must be at least 1")
    if n < 1:
        raise DataError(f"there are {n} examples; batches need at least one")
    if drop_last and batch_size > n:
        raise DataError(
            f"batch_size {batch_size} exceeds the {n} examples, and drop_last would drop them "
            f"all; use batch_size <= {n} or drop_last=False"
        )
    return n // batch_size if drop_last else -(-n // batch_size)


def check_epoch(n: int, batch_size: int, seed: int, epoch: int, drop_last: bool, start: int) -> int:
    """`num_batches`, after refusing what is no epoch: for all that gives out batches of one.

    Raises:
        DataError: as `num_batches`; a negative seed or epoch; a start outside the epoch.
    """
    if seed < 0 or epoch < 0:
        raise DataError(f"seed is {seed} and epoch is {epoch}; neither may be negative")
    count = num_batches(n, batch_size, drop_last)
    if not 0 <= start <= count:
        raise DataError(f"start is {start}, but an epoch has {count} batches; write 0 to {count}")
    return count


def epoch_batches(
    x: np.ndarray,
    y: np.ndarray,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    shuffle: bool = True,
    drop_last: bool = False,
    start: int = 0,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of one epoch, in the order `np.random.default_rng([seed, epoch]).permutation(n)`.

    The order depends on (seed, epoch) alone, so that any epoch can be made again by itself.

    Args:
        x: [n, ...] inputs.
        y: [n, ...] targets.
        batch_size: B, examples per batch.
        seed, epoch: non-negative integers that choose the order.
        shuffle: False keeps the order of the arrays; the batches are then views of them.
        drop_last: leave out the last batch if it has fewer than B examples.
        start: batches to skip; what follows is the rest of the epoch.

    Returns:
        An iterator over (x[B, ...], y[B, ...]); the last pair may be shorter.

    Raises:
        DataError: at the call, for what `num_batches` refuses, x and y of different lengths, a
            negative seed or epoch, or a start beyond the epoch.
    """
    if len(x) != len(y):
        raise DataError(f"x has {len(x)} examples and y has {len(y)}; they must agree")
    count = check_epoch(len(x), batch_size, seed, epoch, drop_last, start)

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        order = np.random.default_rng([seed, epoch]).permutation(len(x)) if shuffle else None
        for i in range(start, count):
            run = slice(i * batch_size, (i + 1) * batch_size)
            rows = run if order is None else order[run]
            yield x[rows], y[rows]

    return batches()
