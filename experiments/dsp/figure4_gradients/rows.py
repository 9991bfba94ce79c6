"""DSP, Figure 4, top left: the difference of the gradients of DSP and BP, stage by stage; ResNet164 on CIFAR.

"Regarding the number of parameters" in the caption: the mean over a stage's parameters. CIFAR-10 here, as the
text does not say which. The claims (section 5.4): the difference drops fast, is larger for lower stages and longer
queues, and drops with the rate.
"""

from experiments.dsp.strategy import CIFAR, K3, K4
from experiments.reproduction.rows import Row, Table

TABLE = Table(
    title="DSP, Figure 4: difference of the gradients of DSP and BP, ResNet164 on CIFAR-10",
    kind="diagnostics",
    measure="gradient_difference",
    settings={**CIFAR, "dataset": "cifar10", "model": "preact_resnet164"},
    rows=tuple(Row(f"K{len(method['p'])}/{name}", method) for name, method in {**K3, **K4}.items()),
)
