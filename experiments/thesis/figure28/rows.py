"""Thesis, Figure 28: learning curves on CIFAR-10 of ResNet164, ResNet101 and ResNet152 by BP, DNI, DDG and FR.

A figure without numbers. The claims (section 6.5.3): DNI converges for no model; DDG "cannot converge for the model
ResNet152 when we set K = 4". Which K is drawn is not in the text: FR with 2, 3 and 4, the others with 4.
"""

from experiments.reproduction.rows import DIVERGES, Row, Table
from experiments.thesis.strategy import BP, DDG, DNI, FR, SGD, stages

TABLE = Table(
    title="Thesis, Figure 28: learning curves on CIFAR-10",
    measure="best_error",
    settings={**SGD, "dataset": "cifar10"},
    plot=True,
    rows=tuple(
        Row(f"{model}/{name}", {"model": model, **method}, number)
        for model in ("resnet164", "resnet101", "resnet152")
        for name, method, number in (
            ("bp", BP, None),
            ("K4/dni", DNI | stages(4), DIVERGES),
            ("K4/ddg", DDG | stages(4), DIVERGES if model == "resnet152" else None),
            ("K2/features_replay", FR | stages(2), None),
            ("K3/features_replay", FR | stages(3), None),
            ("K4/features_replay", FR | stages(4), None),
        )
    ),
)
