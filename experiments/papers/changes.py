"""Changes: settings of rows that the command line gives other values (``--set beta=0.2``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.settings import Settings, parse
from jaxdecouple.errors import did_you_mean

_OTHERWISE = {"seed": "write --seeds", "data_dir": "write --data_dir"}  # what else says it


def parsed(given: Sequence[str]) -> dict[str, str]:
    """Name -> value, as texts.

    Raises:
      ValueError: one is not of the form name=value, or a name comes twice.
    """
    changes: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise ValueError(f"set is {text!r}; write a setting and its value, such as --set beta=0.2")
        if name in changes:
            raise ValueError(f"set names {name} twice, {changes[name]} and {value}; write it once")
        changes[name] = value
    return changes


def values(changes: Mapping[str, str], known: type[Settings] | Mapping[str, type]) -> dict[str, Any]:
    """The values of the changes, of the types that the settings have.

    Args:
      changes: name -> text.
      known: the settings that rows of a kind have: a class of `Settings`, or the type of each.

    Raises:
      ValueError: there is no such setting, or it cannot have such a value.
    """
    names = set(known if isinstance(known, Mapping) else known.__dataclass_fields__) - set(_OTHERWISE)
    found = {}
    for name, text in changes.items():
        if name not in names:
            told = _OTHERWISE.get(name) or did_you_mean(name, names, cutoff=0.5).strip()
            told = told or f"write one of: {', '.join(sorted(names))}"
            raise ValueError(f"there is no setting {name!r}; {told}")
        found[name] = parse(known, name, text) if isinstance(known, type) else _of_type(known[name], name, text)
    return found


def text(changes: Mapping[str, str]) -> str:
    """For a page of results: what was changed."""
    return ", ".join(f"{name}={value}" for name, value in changes.items())


def _of_type(kind: type, name: str, given: str) -> Any:
    try:
        return tuple(int(part) for part in given.split(",")) if kind is tuple else kind(given)
    except ValueError:
        what = {int: "an integer", float: "a number", tuple: "integers with commas between"}.get(kind, "a text")
        raise ValueError(f"{name} is {given!r}; write {what}") from None
