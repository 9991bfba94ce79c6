"""The page on checkpoints runs as it stands, and its table of flags gives the defaults."""

import pathlib
import re

import flax.linen as nn
import jax
import numpy as np
import optax

import jaxdecouple as jd
from experiments.training.config import Saving

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "checkpoints" / "README.md").read_text()


def test_the_loop_goes_on_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert "% 200" in code
    code = compile(code.replace("% 200", "% 2"), "docs/checkpoints/README.md", "exec")
    x, fed = np.ones((3, 2), np.float32), []

    def run(until):
        def batches_from(seen):
            for n in range(seen, until):
                fed.append(n)
                yield n * x, np.zeros(3, np.int32)

        pipeline = jd.Pipeline([nn.Dense(3), nn.Dense(2)], jd.schedules.fdg(2), optimizer=optax.sgd(0.01))
        names = {"jax": jax, "jd": jd, "pipeline": pipeline, "x": x, "batches_from": batches_from}
        exec(code, names)
        return names["state"]

    run(5)
    resumed = run(8)
    assert fed == [0, 1, 2, 3, 4, 4, 5, 6, 7]  # saved after four, and one more was trained in vain
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    jax.tree.map(np.testing.assert_array_equal, resumed.stages[0].params, run(8).stages[0].params)


def test_the_table_of_flags():
    assert f"`--save_every={Saving().save_every}`" in PAGE and f"`--keep={Saving().keep}`" in PAGE
