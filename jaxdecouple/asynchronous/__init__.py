"""Asynchronous optimization: AsySVRG and Dis-dfSDCA of Huo's thesis, chapters 2 and 3, and what they compare with.

Many workers, each with a part of the data, and a server or a shared vector that never waits for the slowest:

    from jaxdecouple import asynchronous

    problem = asynchronous.ridge(X, y, l2=0.1)
    result = asynchronous.dis_dfsdca(problem, workers=4, local_steps=100)
    result.w, result.trace.column("gap")

Independent of pipelines and schedules.
"""

import lazy_loader

# What is exported stands in __init__.pyi. Loading on first use lets the server of a run start without JAX.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
