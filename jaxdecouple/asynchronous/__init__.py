"""Asynchronous optimization: AsySVRG and Dis-dfSDCA of Huo's thesis, chapters 2 and 3, and what they compare with.

Many workers, each with a part of the data, and a server or a shared vector that never waits for the slowest:

    from jaxdecouple import asynchronous

    problem = asynchronous.ridge(X, y, l2=0.1)
    result = asynchronous.dis_dfsdca(problem, workers=4, local_steps=100)
    result.w, result.trace.column("gap")

Independent of pipelines and schedules.
"""

from jaxdecouple.asynchronous.algorithms.bounds import StepSizeWarning
from jaxdecouple.asynchronous.data.libsvm import read_libsvm
from jaxdecouple.asynchronous.data.sources import Source, load
from jaxdecouple.asynchronous.engines.clock import Clock, DrawnDelays, Stragglers
from jaxdecouple.asynchronous.engines.options import Options
from jaxdecouple.asynchronous.engines.run import ServerLost, WorkersLost
from jaxdecouple.asynchronous.problems.factories import (
    general,
    linear,
    logistic,
    network,
    pca,
    quadratic,
    ridge,
    smoothed_hinge,
)
from jaxdecouple.asynchronous.problems.problem import General, Linear, Problem
from jaxdecouple.asynchronous.result import Result
from jaxdecouple.asynchronous.shared_solver import shared_asysvrg
from jaxdecouple.asynchronous.solvers import (
    cocoa_plus,
    dfsdca,
    dis_dfsdca,
    distributed_asysvrg,
    distributed_svrg,
    sdca,
    sgd,
    sgd_svrg,
    svrg,
)
from jaxdecouple.asynchronous.trace import Record, Trace

__all__ = [
    "Clock",
    "DrawnDelays",
    "General",
    "Linear",
    "Options",
    "Problem",
    "Record",
    "Result",
    "ServerLost",
    "Source",
    "StepSizeWarning",
    "Stragglers",
    "Trace",
    "WorkersLost",
    "cocoa_plus",
    "dfsdca",
    "dis_dfsdca",
    "distributed_asysvrg",
    "distributed_svrg",
    "general",
    "linear",
    "load",
    "logistic",
    "network",
    "pca",
    "quadratic",
    "read_libsvm",
    "ridge",
    "sdca",
    "sgd",
    "sgd_svrg",
    "shared_asysvrg",
    "smoothed_hinge",
    "svrg",
]
