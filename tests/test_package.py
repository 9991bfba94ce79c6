"""The package as a whole: what importing it loads."""

import subprocess
import sys

import jaxdecouple as jd

PROGRAM = """
import sys

import jaxdecouple as jd

assert not {"jax", "flax", "numpy"} & set(sys.modules), "importing jaxdecouple loads nothing"
for name in jd.__all__:
    getattr(jd, name)
print(*sorted({"flax.nnx", "grain", "matplotlib", "ray", "sklearn", "tensorflow_datasets"} & set(sys.modules)))
"""


def test_nothing_is_loaded_before_it_is_used():
    """Not even with every public name: NNX, matplotlib, Ray and the like take seconds, and need not be installed."""
    ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == []
    assert len(jd.__all__) > 40
