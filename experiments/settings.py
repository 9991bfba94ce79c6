"""Settings: a frozen dataclass whose fields are command-line flags, each with a default, a help text and a range.

ml_collections.config_flags and etils.eapp make flags of dataclasses too. They would name them --config.NAME and know
no ranges, so that as much as is here would have to be written around them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from absl import flags

from jaxdecouple.errors import did_you_mean

SCALES = ("small", "thesis")
T = TypeVar("T")
_SAME = object()
_SHOWN: dict[str, tuple[int, str, bool]] = {}  # of each flag


def option(
    default: Any,
    help: str,
    *,
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: Sequence[str] = (),
    example: str = "",
    group: str = "",
    common: bool = False,
    thesis: Any = _SAME,
) -> Any:
    """A field that is a flag.

    Args:
      default: its value without a flag; it has the field's type.
      help: of the flag.
      least, above, below: bounds of a number, or of every number of a tuple. Without any, a number is only finite.
      choices: the texts that it may be, or that a tuple may hold.
      example: for a tuple, what the text of the flag may look like; by default, the default's.
      group: under which --help lists this flag and those after it.
      common: whether --help explains it, and not --helpfull alone.
      thesis: its value at that scale, if it is another (see `define`).
    """
    if isinstance(default, tuple):
        example = example or ",".join(_texts(default)) or "1,1,0"
    range = {"least": least, "above": above, "below": below, "choices": tuple(choices), "example": example}
    shown = {"group": group, "common": common, "thesis": default if thesis is _SAME else thesis}
    return dataclasses.field(default=default, metadata={"help": help, **range, **shown})


def define(kind: type, *, scaled: bool = False, **defaults: Any) -> None:
    """One flag for each `option` of a dataclass; ``defaults`` are those of this program, where they are others.

    With ``scaled``, and --scale=thesis, flags that are not given are as the thesis has it. The defaults are the small
    scale: what one core does in minutes.
    """
    group = ""
    if scaled:
        flags.DEFINE_string("scale", SCALES[0], f"what flags are that are not given: {' or '.join(SCALES)}")
    for field in _options(kind):
        group = field.metadata["group"] or group
        show(field.name, group, common=field.metadata["common"])
        default = defaults.get(field.name, field.default)
        help, thesis = field.metadata["help"], field.metadata["thesis"]
        if scaled and thesis != default:
            help += f"; thesis: {','.join(_texts(thesis)) if isinstance(thesis, tuple) else thesis}"
        if isinstance(default, tuple):
            flags.DEFINE_list(field.name, _texts(default), help)
        else:
            kinds = {bool: flags.DEFINE_bool, int: flags.DEFINE_integer, float: flags.DEFINE_float}
            kinds.get(type(default), flags.DEFINE_string)(field.name, default, help)


def show(flag: str, group: str, *, common: bool = False) -> None:
    """Says where --help lists a flag, and whether it explains it, if it does not explain all."""
    _SHOWN[flag] = len(_SHOWN), group or "settings", common


def shown(flag: str) -> tuple[int, str, bool]:
    """The place of a flag in --help, its group, and whether it is a common one."""
    return _SHOWN.get(flag, (len(_SHOWN), "settings", False))


def read(kind: type[T], *, scaled: bool = False) -> T:
    """The settings that the flags give; ``scaled`` as of `define`.

    Raises:
      ValueError: a list flag holds something else than numbers, or the settings cannot be used.
    """
    thesis = scaled and choose("scale", flags.FLAGS.scale, SCALES) == "thesis"

    def value(field: dataclasses.Field) -> Any:
        given = flags.FLAGS[field.name].present or not thesis
        return _value(field) if given else field.metadata["thesis"]

    return kind(**{field.name: value(field) for field in _options(kind)})


def parse(kind: type[Any], name: str, given: str) -> Any:
    """The value of the setting ``name`` of a dataclass, from a text as a flag would have it.

    Raises:
      ValueError: it is no such value.
    """
    (field,) = (field for field in dataclasses.fields(kind) if field.name == name)
    items, default = _kind_of_items(field), field.default
    if isinstance(default, tuple):
        parts = given.split(",") if given else []
        return tuple(parts) if items is str or not parts else numbers(name, parts, items, **_bounds(field.metadata))
    if isinstance(default, bool):
        return choose(name, given.lower(), ("true", "false")) == "true"
    if isinstance(default, int | float):
        (number,) = numbers(name, [given], type(default), **{**_bounds(field.metadata), "example": "1"})
        return number
    return given


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What a program is told. Settings are checked when they are made, so that those that exist can be used."""

    def __post_init__(self) -> None:
        for field in _options(self):
            value, rule = getattr(self, field.name), field.metadata
            if value == () and field.default:
                needed = f"at least one, such as {_texts(field.default)[0]}"
                raise ValueError(f"{field.name} is ''; write {needed}, or leave it out")
            if isinstance(value, tuple) and _kind_of_items(field) is str and len(set(value)) < len(value):
                raise ValueError(f"{field.name} is {_shown(value)}; write each once")
            for item in value if isinstance(value, tuple) else (value,):
                if rule["choices"]:
                    choose(
                        field.name.removesuffix("s") if isinstance(value, tuple) else field.name, item, rule["choices"]
                    )
                elif not isinstance(item, str) and not _within(item, rule):
                    raise ValueError(
                        f"{field.name} is {_shown(value)}; write {_expected(rule, value, _kind_of_items(field))}"
                    )
        self.check()

    def check(self) -> None:
        """Refuses what no range says.

        Raises:
          ValueError: says what was given, what was expected, and what to write.
        """


def choose(what: str, given: str, options: Iterable[str]) -> str:
    """``given``, if it is among ``options``.

    Raises:
      ValueError: it is not; the message suggests the nearest.
    """
    options = list(options)
    if given in options:
        return given
    hint = did_you_mean(given, options, cutoff=0.4)
    raise ValueError(f"unknown {what} {given!r}; {hint}write one of: {', '.join(options)}")


def revived(kind: type[T], saved: Mapping[str, Any], what: str) -> T:
    """The dataclass that was saved as JSON: lists are tuples again; fields that are newer have their defaults.

    Args:
      kind: the dataclass.
      saved: what `dataclasses.asdict` gave.
      what: what was saved, for the message.

    Raises:
      ValueError: it has a field that there is no longer.
    """
    if unknown := set(saved) - {field.name for field in dataclasses.fields(kind)}:
        names = ", ".join(sorted(unknown))
        raise ValueError(f"{what} was saved with settings that this version does not have: {names}")
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in saved.items()})


def _options(settings: Any) -> list[dataclasses.Field]:
    return [field for field in dataclasses.fields(settings) if "help" in field.metadata]


def numbers(name: str, given: Sequence[str], kind: type[T], **bounds: Any) -> tuple[T, ...]:
    """The numbers of a list flag that is no `option`, at least one.

    Args:
      name: of the flag.
      given: its items.
      kind: int or float.
      **bounds: as of `option`: ``least``, ``above``, ``below``, ``example``.

    Raises:
      ValueError: one is no such number, or there are none.
    """
    rule = {"least": None, "above": None, "below": None, "example": "1,2", **bounds}
    try:
        values = tuple(kind(item) for item in given)
    except ValueError:
        values = ()
    if not values or not all(_within(value, rule) for value in values):
        raise ValueError(f"{name} is {','.join(given)!r}; write {_expected(rule, (), kind)}")
    return values


def _value(field: dataclasses.Field) -> Any:
    value = flags.FLAGS[field.name].value
    kind = _kind_of_items(field)
    if not isinstance(field.default, tuple) or kind is str:
        return tuple(value) if isinstance(field.default, tuple) else value
    return numbers(field.name, value, kind, **_bounds(field.metadata)) if value else ()


def _bounds(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {name: metadata[name] for name in ("least", "above", "below", "example")}


def _kind_of_items(field: dataclasses.Field) -> type:
    """As the annotation says: ``tuple[int, ...]``."""
    return next((kind for kind in (int, float, str) if kind.__name__ in str(field.type)), str)


def _within(number: float, rule: Mapping[str, Any]) -> bool:
    above = -math.inf if rule["above"] is None else rule["above"]
    least = -math.inf if rule["least"] is None else rule["least"]
    below = math.inf if rule["below"] is None else rule["below"]
    return above < number < below and number >= least


def _expected(rule: Mapping[str, Any], value: Any, kind: type) -> str:
    bounds = [f"above {rule['above']}"] if rule["above"] is not None else []
    bounds += [f"of at least {rule['least']}"] if rule["least"] is not None else []
    bounds += [f"below {rule['below']}"] if rule["below"] is not None else []
    if isinstance(value, tuple):
        which = "integers" if kind is int else "numbers"
        return " ".join(
            [which, *filter(None, [" and ".join(bounds)]), f"with commas between, such as {rule['example']}"]
        )
    if kind is int and rule["least"] is not None:
        return " and ".join([f"at least {rule['least']}", *bounds[1:]])
    return f"a number {' and '.join(bounds)}" if bounds else "a number that is finite"


def _shown(value: Any) -> str:
    return repr(",".join(_texts(value))) if isinstance(value, tuple) else str(value)


def _texts(values: Sequence[Any]) -> list[str]:
    return [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
