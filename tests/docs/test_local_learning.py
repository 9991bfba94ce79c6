"""The page on local learning runs as it stands, and learns."""

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "local_learning.md").read_text()


def test_the_code_learns():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    code += "\nprint(sorted(metrics.auxiliary))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert float(re.search(r"accuracy=([\d.]+)", done.stdout)[1]) > 0.7 and done.stdout.endswith("[0, 1]\n")
