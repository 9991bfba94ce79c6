"""FDG, Table II: the ideal speed-up of decoupling methods, for a network cut evenly and free transfers.

Times of a batch: BP T_f + T_b, DDG T_f + T_b/K, FR T_f + (T_f + T_b)/K, FDG (T_f + T_b)/K. DNI and DGL add the time of
an auxiliary network, which is not said, so they are left out. T_b is not said either: twice T_f here. The paper's
number is its formula, as a speed-up over T_f + T_b = 3. The formulas count DDG and FR by iterations that wait for each
other; here only data are waited for, so that the forwards of one batch meet the backwards of another.
"""

from experiments.reproduction.rows import Row, Table

TABLE = Table(
    title="FDG, Table II: ideal speed-up, backward twice as long as forward",
    kind="ideal",
    measure="speedup",
    statistic="a formula",
    rows=(
        Row("K2/bp", {"method": "backprop", "num_stages": 2}, 1.0),
        Row("K2/ddg", {"method": "ddg", "num_stages": 2}, 3 / (1 + 2 / 2)),
        Row("K2/features_replay", {"method": "features_replay", "num_stages": 2}, 3 / (1 + 3 / 2)),
        Row("K2/fdg", {"method": "fdg", "num_stages": 2}, 2.0),
        Row("K3/bp", {"method": "backprop", "num_stages": 3}, 1.0),
        Row("K3/ddg", {"method": "ddg", "num_stages": 3}, 3 / (1 + 2 / 3)),
        Row("K3/features_replay", {"method": "features_replay", "num_stages": 3}, 3 / (1 + 3 / 3)),
        Row("K3/fdg", {"method": "fdg", "num_stages": 3}, 3.0),
        Row("K4/bp", {"method": "backprop", "num_stages": 4}, 1.0),
        Row("K4/ddg", {"method": "ddg", "num_stages": 4}, 3 / (1 + 2 / 4)),
        Row("K4/features_replay", {"method": "features_replay", "num_stages": 4}, 3 / (1 + 3 / 4)),
        Row("K4/fdg", {"method": "fdg", "num_stages": 4}, 4.0),
    ),
)
