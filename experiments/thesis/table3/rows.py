"""Thesis, Table 3: the computation time of DDG, T_F + T_B / K, against T_F + T_B of back-propagation.

T_B is twice T_F here; in Figure 21 forwards are "about 32 %" of the time. The paper's number is the formula as a speed-
up. It counts iterations that wait for each other; here only data are waited for, so that the forwards of one batch meet
the backwards of another.
"""

from experiments.reproduction.rows import Row, Table

TABLE = Table(
    title="Thesis, Table 3: ideal speed-up of DDG, backward twice as long as forward",
    kind="ideal",
    measure="speedup",
    statistic="a formula",
    rows=(
        Row("K1/ddg", {"method": "ddg", "num_stages": 1}, 1.0),
        Row("K2/ddg", {"method": "ddg", "num_stages": 2}, 3 / (1 + 2 / 2)),
        Row("K3/ddg", {"method": "ddg", "num_stages": 3}, 3 / (1 + 2 / 3)),
        Row("K4/ddg", {"method": "ddg", "num_stages": 4}, 3 / (1 + 2 / 4)),
    ),
)
