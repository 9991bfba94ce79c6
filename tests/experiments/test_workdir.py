"""JSON that a reader and a diff can take line by line."""

import json

import pytest

from experiments.report.workdir import in_lines


@pytest.mark.parametrize("depth", [0, 1, 2, 5])
@pytest.mark.parametrize(
    "value", [{"a": [], "b": {}}, {2: [1, {"x": None}], True: "two"}, [], [[1], [2, [3]]], 1.5, ((1,),)]
)
def test_is_what_json_writes(value, depth):
    assert json.loads(in_lines(value, depth)) == json.loads(json.dumps(value))


def test_a_table_has_a_line_for_each_row():
    rows = [{"method": "fdg", "errors": [0.1, 0.2]}, {"method": "adl", "errors": []}]
    assert in_lines({"title": "table", "rows": rows}).splitlines()[2:5] == [
        '"rows": [',
        '{"method": "fdg", "errors": [0.1, 0.2]},',
        '{"method": "adl", "errors": []}',
    ]
