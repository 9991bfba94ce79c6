"""Gives each parameter an entry of its own where a docstring documents several ("start, stop: seconds")."""

from __future__ import annotations

import re
from typing import Any

import griffe

_SECTION = re.compile(r"(Args|Attributes):$")
_SEVERAL = re.compile(r"(\s+)(\**\w+(?:, \**\w+)+): ")


class OneEntryEach(griffe.Extension):
    """Repeats the text of an entry for each of its names."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrites the docstring of an object."""
        if obj.docstring is not None:
            obj.docstring.value = "\n".join(_expanded(obj.docstring.value.splitlines()))


def _expanded(lines: list[str]) -> list[str]:
    found, at, inside = [], 0, False
    while at < len(lines):
        line = lines[at]
        inside = bool(_SECTION.match(line)) or (inside and (not line or line[0] == " "))
        entry = _SEVERAL.match(line) if inside else None
        if entry is None:
            found.append(line)
            at += 1
            continue
        indent, names = entry.groups()
        stop = at + 1
        while stop < len(lines) and lines[stop].startswith(indent + " "):
            stop += 1
        text = [line[entry.end() :], *lines[at + 1 : stop]]
        for name in names.split(", "):
            found += [f"{indent}{name}: {text[0]}", *text[1:]]
        at = stop
    return found
