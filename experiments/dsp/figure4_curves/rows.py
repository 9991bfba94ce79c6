"""DSP, Figure 4, the other panels: learning curves of VGG-19, ResNeXt-29 and ResNet1001 on CIFAR.

A figure without numbers. Data sets and K as in Table 3; which methods are drawn is not in the text: BP, FR, DSP here.
"""

from experiments.dsp.strategy import BP, FR, K3, K4, RESNET1001, VGG_AND_RESNEXT, stages
from experiments.reproduction.rows import Row, Table

VGG = {**VGG_AND_RESNEXT, "model": "vgg19", "dataset": "cifar100"}
RESNEXT = {**VGG_AND_RESNEXT, "model": "resnext29", "dataset": "cifar10"}
R1001 = {**RESNET1001, "model": "preact_resnet1001", "dataset": "cifar100"}
THREE, FOUR = K3["dsp_110_420"], K4["dsp_1110_6420"]

TABLE = Table(
    title="DSP, Figure 4: learning curves of VGG-19, ResNeXt-29 and ResNet1001",
    measure="final_error",
    plot=True,
    rows=(
        Row("vgg19/bp", VGG | BP),
        Row("vgg19/features_replay", VGG | FR | stages(3)),
        Row("vgg19/dsp", VGG | THREE),
        Row("resnext29/bp", RESNEXT | BP),
        Row("resnext29/features_replay", RESNEXT | FR | stages(4)),
        Row("resnext29/dsp", RESNEXT | FOUR),
        Row("resnet1001/bp", R1001 | BP),
        Row("resnet1001/features_replay", R1001 | FR | stages(4)),
        Row("resnet1001/dsp", R1001 | FOUR),
    ),
)
