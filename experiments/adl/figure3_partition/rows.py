"""ADL, Figure 3, last panel: the error of ResNet-18 on CIFAR-10 against K.

A figure without printed numbers, nor are the values of K in the text: 2 to 10, the most that ResNet-18 can be cut into.
"""

from experiments.adl.strategy import BP, CIFAR, DDG, DGL, FR, MEDIAN, adl, stages
from experiments.reproduction.rows import Row, Table

_METHODS = {"ddg": DDG, "dgl": DGL, "features_replay": FR, "adl": adl(4)}

TABLE = Table(
    title="ADL, Figure 3: error of ResNet-18 on CIFAR-10 against K",
    measure="final_error",
    statistic=MEDIAN,
    settings={**CIFAR, "model": "resnet18"},
    rows=(
        Row("bp", BP),
        *(
            Row(f"K{count}/{name}", method | stages(count))
            for count in (2, 4, 8, 10)
            for name, method in _METHODS.items()
        ),
    ),
)
