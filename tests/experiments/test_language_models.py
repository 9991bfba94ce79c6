"""The comparison of methods on a language model: every row runs, and its table says what staleness costs and gains."""

import json

import jax
import numpy as np
import pytest

from experiments.language_models import Asked
from experiments.measure.language import Bench, Row, Run
from experiments.report.workdir import Workdir
from jaxdecouple import schedules

SMALL = {"context": 4, "layers": 1, "width": 8, "heads": 1, "num_stages": 2, "batch_size": 4, "chunks": 2}
SHORT = {"updates": 10, "warmup": 2, "test_every": 5, "test_sequences": 8, "sample": 3}


def test_rows_are_trained_and_compared(tmp_path):
    asked = Asked(**SMALL, **SHORT, rows=("1f1b adamw", "predicted nadam"))
    output = Workdir(tmp_path / "lm", {})
    table = Bench(asked, jax.devices()[:1] * 2).compare(output)
    assert [line[0] for line in table[1:]] == list(asked.rows)
    assert table[1][3:] == ["1.00", "1.33", "1.33"]  # M K / (M + K - 1) = 4 / 3
    assert table[2][4] == "2.00" and float(table[2][5]) == pytest.approx(2 / float(table[2][3]), rel=0.02)
    found = json.loads((output.path / "results.json").read_text())
    assert [run["tokens"] for run in found[0]["runs"]] == [[80, 160]]
    assert len((output.path / "sample.txt").read_text()) >= 5 and (output.path / "curves.png").is_file()


def test_extra_tokens_are_read_off_the_synchronous_curve():
    tokens = [100, 200, 300, 400]
    synchronous = Row("1f1b adamw", 0.1, [Run(tokens, [4.0, 3.0, 2.5, 2.25], None)], 2.0)
    late = Row("fdg adamw", 0.1, [Run(tokens, [4.5, 3.5, 3.25, 2.75], None)], 4.0)
    assert late.extra_tokens(synchronous) == pytest.approx(400 / 250)  # it reached 2.75 between 200 and 300
    assert synchronous.extra_tokens(synchronous) == synchronous.extra_tokens(late) == 1
    np.testing.assert_array_equal(Row("", 1, [Run(tokens, [3, 2, 4, 1], None)], 1).curve, [3, 2, 2, 1])


def test_synchronous_speed_is_that_of_its_micro_batches():
    assert Bench(Asked(**{**SMALL, "num_stages": 3}), jax.devices()[:3]).speedup("1f1b") == pytest.approx(3 * 2 / 4)
    assert max(map(max, schedules.staleness(schedules.backprop(3)))) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rows": ("fdg",)}, "rows has 'fdg'; write a method of 1f1b"),
        ({"rows": ("paci adamw",), "batch_size": 5}, "batch_size is 5 and chunks is 2; paci needs"),
    ],
)
def test_rows_that_are_none_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Asked(**{**SMALL, **settings})
