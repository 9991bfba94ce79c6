"""DSP, Figure 3: learning curves of ResNet98 and ResNet164 on CIFAR-10 by BP, DNI, FR and DSP.

A figure without numbers; "DNI does not converge" (section 5.1). K is not in the text: 3 here, and DSP's queues are the
shortest.
"""

from experiments.dsp.strategy import BP, CIFAR, DNI, FR, K3, stages
from experiments.reproduction.rows import DIVERGES, Row, Table

_METHODS = (
    ("bp", BP, None),
    ("dni", DNI | stages(3), DIVERGES),
    ("features_replay", FR | stages(3), None),
    ("dsp_110_420", K3["dsp_110_420"], None),
)
_NETWORKS = {"resnet98": {"model": "resnet98"}, "resnet164": {"model": "preact_resnet164"}}

TABLE = Table(
    title="DSP, Figure 3: learning curves of ResNet98 and ResNet164 on CIFAR-10",
    measure="final_error",
    settings={**CIFAR, "dataset": "cifar10"},
    plot=True,
    rows=tuple(
        Row(f"{network}/{name}", {**model, **method}, number)
        for network, model in _NETWORKS.items()
        for name, method, number in _METHODS
    ),
)
