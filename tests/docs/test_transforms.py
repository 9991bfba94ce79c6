"""The page on the transforms runs as it stands, and its table says what the settings do."""

import inspect
import pathlib
import re

import jax
import numpy as np
import optax

import jaxdecouple as jd

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "transforms.md").read_text()


def test_every_piece_of_code_runs_after_those_before_it(few_digits, capsys):
    names = {}
    pieces = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(pieces) == 4 and "batch_size=256" in pieces[0]
    pieces[0] = pieces[0].replace("batch_size=256", "batch_size=64")  # of 192 images
    for piece in pieces:
        exec(compile(piece, "docs/transforms.md", "exec"), names)
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", capsys.readouterr().out)]
    assert len(losses) == 10 and losses[-1] < 0.7 * losses[0]
    assert int(names["state"].tick) == 3 and names["metrics"].loss is not None
    assert names["state"].stages[0].gradient_norms is not None


def settings(column):
    """The keyword arguments that a column of the table gives to `jd.lars`."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.splitlines() if line.startswith("| `")]
    first = {row[0].split("`")[1]: row[column].split("`") for row in rows}
    return {name: eval(cell[1], {"jd": jd}) for name, cell in first.items() if len(cell) > 1}


def trajectory(tx, steps=4):
    params, states = {"a": {"kernel": np.eye(2), "bias": np.ones(2)}, "b": {"kernel": np.full((2, 2), 3.0)}}, []
    state = tx.init(params)
    for step in range(steps):
        grads = jax.tree.map(lambda p, step=step: p**2 + step, params)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        states.append(params)
    return states


def assert_close(a, b):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), a, b)


def test_the_table_says_what_the_settings_do(x64):
    """With rates that change, for what momentum sums then makes a difference."""

    def schedule(count):
        return 3.0 / (1 + count)

    default, text, code, theirs = map(settings, (1, 2, 3, 4))
    defaults = {name: parameter.default for name, parameter in inspect.signature(jd.lars).parameters.items()}
    assert default == {name: defaults[name] for name in default} and len(default) == 8
    assert text.items() <= default.items() and len(text) == 6  # eta is "the same", and momentum no number
    assert_close(trajectory(jd.lars(schedule, **theirs)), trajectory(optax.lars(schedule)))
    assert_close(trajectory(jd.lars(schedule, **code)), published(schedule, code))
    assert inspect.signature(jd.clars).parameters["eta"].default == 0.01


def published(schedule, code, steps=4):
    """w -= rate r b, b = 0.9 b + g, r = eta |w| / (|g| + 1e-6), 1 for biases."""
    params, buffers, states = (
        {"a": {"kernel": np.eye(2), "bias": np.ones(2)}, "b": {"kernel": np.full((2, 2), 3.0)}},
        {},
        [],
    )
    for step in range(steps):
        new = {}
        for module, tensors in params.items():
            for name, w in tensors.items():
                g = w**2 + step
                buffers[module, name] = 0.9 * buffers.get((module, name), 0) + g
                ratio = 0.001 * np.linalg.norm(w) / (np.linalg.norm(g) + 1e-6) if name == "kernel" else 1.0
                new.setdefault(module, {})[name] = w - float(schedule(step)) * ratio * buffers[module, name]
        params = new
        states.append(params)
    return states
