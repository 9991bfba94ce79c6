"""Flags made from the fields of a config, and settings read back from them."""

from __future__ import annotations

import dataclasses
from typing import Any

from absl import flags

from experiments.training.config import Config


def define(defaults: Config) -> None:
    """One flag per field of `Config`, with the values of ``defaults``."""
    for field in dataclasses.fields(Config):
        default, help = getattr(defaults, field.name), field.metadata["help"]
        if isinstance(default, bool):
            flags.DEFINE_bool(field.name, default, help)
        elif isinstance(default, int):
            flags.DEFINE_integer(field.name, default, help)
        elif isinstance(default, float):
            flags.DEFINE_float(field.name, default, help)
        elif isinstance(default, tuple):
            flags.DEFINE_list(field.name, list(map(str, default)), help)
        else:
            flags.DEFINE_string(field.name, default, help)


def read() -> Config:
    """The config that the flags give.

    Raises:
      ValueError: a list flag holds something else than integers.
    """
    return Config(**{field.name: _value(field) for field in dataclasses.fields(Config)})


def _value(field: dataclasses.Field) -> Any:
    value = flags.FLAGS[field.name].value
    if not isinstance(field.default, tuple):
        return value
    try:
        return tuple(int(item) for item in value)
    except ValueError:
        raise ValueError(f"{field.name} is {','.join(value)!r}; write integers, such as 1,1,0") from None
