"""The page on asynchronous optimization runs as it stands, and shows what it says."""

import pathlib
import re

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "asynchronous.md").read_text()


def test_the_code_solves_and_rounds_wait_for_stragglers(x64, capsys):
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
    switch = 'jax.config.update("jax_enable_x64", True)'
    assert switch in code
    names = {}
    exec(code.replace(switch, ""), names)
    assert names["result"].trace[-1].gap < 1e-7
    nobody, rounds = (float(number) for number in capsys.readouterr().out.split()[-2:])
    assert 1.2 * nobody < rounds
    assert names["waits_for_nobody"].trace[-1].gap < 1e-6


def test_every_solver_and_problem_is_on_the_page():
    from jaxdecouple import asynchronous

    public = [name for name in asynchronous.__all__ if name.islower() and name != "linear"]
    assert len(public) > 15
    assert [name for name in public if f"`{name}" not in PAGE] == []
