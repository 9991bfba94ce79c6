"""Settings that are flags: each field of a dataclass is one, and has a value for each scale of a program.

A program has two scales: ``thesis`` is what the thesis did, ``small`` what one core does in minutes. A flag that is
given replaces the value of the scale.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from absl import flags

from experiments.settings import choose

SCALES = ("small", "thesis")
DTYPES = ("float64", "float32")

_SAME = object()
_FOLDER = re.compile(r"\b(npz|libsvm):[^,]*/")
T = TypeVar("T")


def option(small: Any, help: str, *, thesis: Any = _SAME, least: float | None = None) -> Any:
    """A field of a setting.

    Args:
      small: its value at the small scale; a tuple makes a list flag of numbers or texts like its first.
      help: of its flag.
      thesis: its value at the other scale, if it is another.
      least: the smallest number it may be, or that may be in it.
    """
    thesis = small if thesis is _SAME else thesis
    return dataclasses.field(default=small, metadata={"help": help, "thesis": thesis, "least": least})


def define(kind: type, *, scaled: bool = True) -> None:
    """The flags of a setting, and --scale, unless there is only one."""
    if scaled:
        flags.DEFINE_string("scale", "small", "what the flags that are not given are: small, or thesis")
    for field in dataclasses.fields(kind):
        small, thesis = field.default, field.metadata["thesis"]
        help = f"{field.metadata['help']} ({_values(small, thesis) if scaled else _value(small)})"
        if isinstance(small, bool):
            flags.DEFINE_bool(field.name, None, help)
        elif isinstance(small, int):
            flags.DEFINE_integer(field.name, None, help)
        elif isinstance(small, float):
            flags.DEFINE_float(field.name, None, help)
        elif isinstance(small, tuple):
            flags.DEFINE_list(field.name, None, help)
        else:
            flags.DEFINE_string(field.name, None, help)


def _values(small: Any, thesis: Any) -> str:
    return _value(small) if small == thesis else f"small: {_value(small)}; thesis: {_value(thesis)}"


def _value(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else repr(value) if value == "" else str(value)


def read(kind: type[T]) -> T:
    """The setting that the flags give.

    Raises:
      ValueError: there is no such scale, a list flag holds something else than it should, or a number is too small.
    """
    scale = choose("scale", flags.FLAGS.scale, SCALES) if "scale" in flags.FLAGS else "small"
    values = {}
    for field in dataclasses.fields(kind):
        given, default = flags.FLAGS[field.name].value, field.default
        if given is None:
            values[field.name] = field.metadata["thesis"] if scale == "thesis" else default
        else:
            values[field.name] = _items(field.name, given, default) if isinstance(default, tuple) else given
    setting = kind(**values)
    check(setting)
    return setting


def _items(name: str, given: list[str], default: tuple[Any, ...]) -> tuple[Any, ...]:
    kind = type(default[0])
    try:
        values = tuple(kind(text.strip()) for text in given if text.strip())
    except ValueError:
        values = ()
    if not values:
        what = {int: "whole numbers", float: "numbers"}.get(kind, "one or more")
        raise ValueError(f"{name} is {','.join(given)!r}; write {what} with commas between, such as {_value(default)}")
    return values


def check(setting: Any) -> None:
    """Refuses numbers that are less than their fields allow, or not finite.

    Raises:
      ValueError: says which.
    """
    for field in dataclasses.fields(setting):
        least, value = field.metadata["least"], getattr(setting, field.name)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise ValueError(f"{field.name} is {number}; write a number")
            if least is not None and number < least:
                raise ValueError(f"{field.name} is {_value(value)}; write at least {least:g}")
    if hasattr(setting, "dtype"):
        choose("dtype", setting.dtype, DTYPES)


def described(setting: Any) -> dict[str, Any]:
    """A setting for a report: files by their names, not by where they lie."""
    values = dataclasses.asdict(setting).items()
    return {name: [*map(named, value)] if isinstance(value, tuple) else named(value) for name, value in values}


def named(value: Any) -> Any:
    """A source's name without the folder of its file."""
    return _FOLDER.sub(r"\1:", value) if isinstance(value, str) else value


@contextlib.contextmanager
def precision(dtype: str) -> Iterator[np.dtype]:
    """JAX with as many bits as ``dtype`` has, and the dtype."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", dtype == "float64")
    try:
        yield np.dtype(dtype)
    finally:
        jax.config.update("jax_enable_x64", before)
