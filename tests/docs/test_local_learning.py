"""The page on local learning runs as it stands, and learns."""

import pathlib
import re

import jax

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "local_learning.md").read_text()


def test_the_code_learns(monkeypatch, capsys):
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)  # there are enough devices
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names = {}
    exec(compile(code, "docs/local_learning.md", "exec"), names)
    assert float(re.search(r"accuracy=([\d.]+)", capsys.readouterr().out)[1]) > 0.7
    assert sorted(names["metrics"].auxiliary) == [0, 1]
