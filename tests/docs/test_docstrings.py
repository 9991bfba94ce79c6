"""The reference has an entry for each parameter, also where a docstring documents several at once."""

import importlib.util
import pathlib

PATH = pathlib.Path(__file__).parents[2] / "docs" / "docstrings.py"


def test_an_entry_for_several_names_is_repeated():
    spec = importlib.util.spec_from_file_location("docstrings", PATH)
    docstrings = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(docstrings)
    given = [
        "Moves, turns: not an entry.",
        "Args:",
        "  start, stop: seconds,",
        "    from the beginning.",
        "  path: where to.",
        "Returns:",
        "  a, b: neither.",
    ]
    assert docstrings._expanded(given) == [
        *given[:2],
        *("  start: seconds,", given[3]),
        *("  stop: seconds,", given[3]),
        *given[4:],
    ]
