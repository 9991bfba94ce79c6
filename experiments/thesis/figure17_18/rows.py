"""Thesis, Figures 17 and 18: loss and accuracy of ResNet-8 on CIFAR-10, one split point at layer 1, 3, 5 or 7.

Figures without numbers. The claims (section 5.5.1): all methods are alike with the split at layer 1, DDG at all of
them; DNI degrades, and "cannot even converge when the split point is at layer 7". The layers 1, 3, 5 and 7 are where
the stem and the three blocks of ResNet-8 end: in front of its modules 1, 2, 3 and 4.
"""

from experiments.reproduction.rows import DIVERGES, Row, Table
from experiments.thesis.strategy import ADAM, BP, DDG, DNI, stages

_MODULE_OF_LAYER = {1: 1, 3: 2, 5: 3, 7: 4}

TABLE = Table(
    title="Thesis, Figures 17 and 18: ResNet-8 on CIFAR-10, one split point",
    measure="best_accuracy",
    settings={**ADAM, "dataset": "cifar10", "model": "resnet8"},
    plot=True,
    rows=(
        Row("bp", BP),
        *(
            Row(f"layer{layer}/{name}", {**method, **stages(2), "boundaries": (module,)}, number)
            for layer, module in _MODULE_OF_LAYER.items()
            for name, method, number in (("dni", DNI, DIVERGES if layer == 7 else None), ("ddg", DDG, None))
        ),
    ),
)
