"""Xu et al., *On the Acceleration of Deep Learning Model Parallelism with Staleness* (DSP): every table and figure.

How it trains (section 5, "Experiment Settings"): SGD with momentum 0.9; random crops, flips, and "standardization",
taken as TensorFlow's, of each image by itself. CIFAR: batches of 128. ResNet98 and ResNet164: 300 epochs, weight decay
5e-4, rate 0.01, times 0.1 at 150 and 225. ResNet1001: 250 epochs, 2e-4, 0.1, times 0.1 at 100, 150, 200. VGG-19 and
ResNeXt-29: 200 epochs, 5e-4, 0.01, times 0.1 at 100, 150. ImageNet: batches of 256, 90 epochs, 1e-4, 0.1, times 0.1 at
30, 60, 80. No warm-up is spoken of, and Nesterov's momentum only in the theory (SUM, eq. 3), so: none. ResNet164 and
ResNet1001 are taken to be those of He et al. (2016, Identity Mappings), pre-activated bottlenecks: that paper's 24.33 %
on CIFAR-100 is this one's 24.34 %.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from experiments.papers.kinds.diagnostics import GRADIENT_DIFFERENCE
from experiments.papers.kinds.speed import SPEED
from experiments.papers.kinds.stragglers import SLOWDOWN
from experiments.papers.kinds.training import BEST_ACCURACY, FINAL_ERROR
from experiments.papers.table import DIVERGES, Row, Table, row_each, shown, stages

TITLE = "On the Acceleration of Deep Learning Model Parallelism with Staleness"
BEST = "best of all epochs"
_SGD: dict[str, Any] = {
    "optimizer": "sgd",
    "momentum": 0.9,
    "nesterov": False,
    "decay": "step",
    "decay_factor": 0.1,
    "augment": True,
    "normalise": "image",
}
CIFAR: dict[str, Any] = {
    **_SGD,
    "batch_size": 128,
    "learning_rate": 0.01,
    "weight_decay": 5e-4,
    "epochs": 300,
    "decay_epochs": (150, 225),
}
RESNET1001: dict[str, Any] = {
    **_SGD,
    "batch_size": 128,
    "learning_rate": 0.1,
    "weight_decay": 2e-4,
    "epochs": 250,
    "decay_epochs": (100, 150, 200),
}
VGG_AND_RESNEXT: dict[str, Any] = {
    **_SGD,
    "batch_size": 128,
    "learning_rate": 0.01,
    "weight_decay": 5e-4,
    "epochs": 200,
    "decay_epochs": (100, 150),
}
# Where the images lie is not known here: write --dataset=imagenet:PATH. Standardisation of whole images is for CIFAR.
IMAGENET: dict[str, Any] = {
    **_SGD,
    "normalise": "channels",
    "dataset": "imagenet:imagenet",
    "batch_size": 256,
    "learning_rate": 0.1,
    "weight_decay": 1e-4,
    "epochs": 90,
    "decay_epochs": (30, 60, 80),
}

BP: dict[str, Any] = {"method": "backprop", "num_stages": 1}
FR: dict[str, Any] = {"method": "features_replay"}
DNI: dict[str, Any] = {"method": "dni", "dni_labels": False}  # section 5 speaks of none


def dsp(p: tuple[int, ...], m: tuple[int, ...]) -> dict[str, Any]:
    """DSP(p; m), in the paper's notation."""
    return {"method": "dsp", "num_stages": len(p), "p": p, "m": m}


K3 = {
    "dsp_110_420": dsp((1, 1, 0), (4, 2, 0)),
    "dsp_220_630": dsp((2, 2, 0), (6, 3, 0)),
    "dsp_330_1050": dsp((3, 3, 0), (10, 5, 0)),
}
K4 = {
    "dsp_1110_6420": dsp((1, 1, 1, 0), (6, 4, 2, 0)),
    "dsp_2220_9630": dsp((2, 2, 2, 0), (9, 6, 3, 0)),
    "dsp_3330_151050": dsp((3, 3, 3, 0), (15, 10, 5, 0)),
}

C10, C100 = {"dataset": "cifar10"}, {"dataset": "cifar100"}
R18, R50, R98, R101 = ({"model": f"resnet{depth}"} for depth in (18, 50, 98, 101))
R164, R1001 = {"model": "preact_resnet164"}, {"model": "preact_resnet1001"}
VGG, RESNEXT = {"model": "vgg19"}, {"model": "resnext29"}
THREE, FOUR = K3["dsp_110_420"], K4["dsp_1110_6420"]  # the shortest queues

_METHODS = {"bp": BP}
_METHODS |= {"K3/features_replay": FR | stages(3), **{f"K3/{name}": method for name, method in K3.items()}}
_METHODS |= {"K4/features_replay": FR | stages(4), **{f"K4/{name}": method for name, method in K4.items()}}

TABLE1 = Table(
    title="DSP, Table 1: best test accuracy on CIFAR, K = 3 and 4",
    claim="DSP's accuracy is that of back-propagation and Features Replay, for short and for long queues.",
    measure=BEST_ACCURACY,
    statistic=BEST,
    settings=CIFAR,
    rows=(
        *row_each(
            *("resnet164/cifar10/", R164 | C10, _METHODS),
            (94.41, 94.55, 94.68, 93.98, 93.37, 94.44, 94.32, 94.87, 93.34),
        ),
        *row_each(
            *("resnet164/cifar100/", R164 | C100, _METHODS),
            (75.66, 76.25, 76.05, 76.00, 76.29, 75.84, 76.22, 75.59, 75.15),
        ),
        *row_each(
            *("resnet98/cifar10/", R98 | C10, _METHODS),
            (93.38, 93.60, 93.36, 93.68, 93.27, 93.26, 93.41, 93.06, 93.45),
        ),
        *row_each(
            *("resnet98/cifar100/", R98 | C100, _METHODS),
            (72.66, 73.27, 72.99, 73.70, 73.38, 72.41, 73.14, 72.89, 72.96),
        ),
    ),
)

_PERCENT = {str(percent): {"percent": percent} for percent in (20, 50, 100, 150)}

# "We randomly slow down each GPU by a certain percentage with a probability of 1/3": drawn anew for each device and
# tick. The number is taken to be how much longer a batch takes, in percent.
TABLE2 = Table(
    title="DSP, Table 2: slow-down by random stragglers, ResNet164, CIFAR-10, K = 3",
    claim="Features Replay suffers much when devices are slow at random. DSP loses at best a third of the slow-down. "
    "The more serious it is, the more long queues help.",
    measure=SLOWDOWN,
    settings={**R164, "image_size": 32, "batch_size": 128, "num_classes": 10, "probability": 1 / 3},
    rows=(
        *row_each("features_replay/", FR | stages(3), _PERCENT, (8.977, 28.52, 97.06, 359.2)),
        *row_each("dsp_110_420/", K3["dsp_110_420"], _PERCENT, (6.017, 16.14, 37.44, 70.99)),
        *row_each("dsp_220_630/", K3["dsp_220_630"], _PERCENT, (7.465, 16.01, 36.57, 54.57)),
        *row_each("dsp_330_1050/", K3["dsp_330_1050"], _PERCENT, (7.391, 18.15, 32.10, 53.42)),
    ),
)

_SMALL_IMAGES, _LARGE_IMAGES = {"image_size": 32, "batch_size": 128}, {"image_size": 224, "num_classes": 1000}
_R164 = {**_SMALL_IMAGES, **R164, "num_classes": 10}
_RESNEXT = {**_SMALL_IMAGES, **RESNEXT, "num_classes": 10}
_VGG = {**_SMALL_IMAGES, **VGG, "num_classes": 100}
_R1001 = {**_SMALL_IMAGES, **R1001, "num_classes": 100, "baseline_stages": 4}
_R50 = {**_LARGE_IMAGES, **R50, "batch_size": 256, "baseline_stages": 3}
_R101 = {**_LARGE_IMAGES, **R101, "batch_size": 128}

# The table's header: CIFAR-10 for ResNet164 and ResNeXt-29, CIFAR-100 for VGG-19 and ResNet1001, ImageNet for the
# others; the data set changes nothing but the number of classes. Where BP has "- / x1", its K-device form is the
# measure. GPipe's one number is quoted from its paper. DSP's queues are not said: the shortest here.
TABLE3 = Table(
    title="DSP, Table 3: speed (Tesla P40 GPUs)",
    claim="DSP is faster than Features Replay for every network.",
    measure=SPEED,
    rows=(
        Row("resnet164/features_replay", _R164 | FR | stages(4), 1.7),
        Row("resnet164/dsp", _R164 | FOUR, 2.7),
        Row("resnext29/features_replay", _RESNEXT | FR | stages(4), 1.3),
        Row("resnext29/dsp", _RESNEXT | FOUR, 2.4),
        Row("vgg19/features_replay", _VGG | FR | stages(3), 1.1),
        Row("vgg19/dsp", _VGG | THREE, 1.5),
        Row("resnet1001/features_replay", _R1001 | FR | stages(4), 1.9, "over BP-K"),
        Row("resnet1001/dsp", _R1001 | FOUR, 4.8, "over BP-K"),
        Row("resnet50/features_replay", _R50 | FR | stages(3), 1.6, "over BP-K"),
        Row("resnet50/dsp", _R50 | THREE, 3.0, "over BP-K"),
        Row("resnet101/features_replay", _R101 | FR | stages(4), 1.7),
        Row(
            "resnet101/gpipe",
            _R101 | {"method": "gpipe", "accumulate": 4, "num_stages": 4},
            2.2,
            "quoted from GPipe, whose M is not said: 4 here",
        ),
        Row("resnet101/dsp", _R101 | FOUR, 2.7),
    ),
)

_ON_IMAGENET = {"bp": BP, "features_replay": FR | stages(3), "dsp_110_420": THREE}

TABLE4 = Table(
    title="DSP, Table 4: best test accuracy on ImageNet, K = 3",
    claim="DSP is a little better than Features Replay, and both are below back-propagation.",
    measure=BEST_ACCURACY,
    statistic=BEST,
    settings=IMAGENET,
    rows=(
        *row_each("resnet18/", R18, _ON_IMAGENET, (69.89, 68.94, 68.95)),
        *row_each("resnet50/", R50, _ON_IMAGENET, (75.35, 74.47, 74.91)),
    ),
)

_DRAWN = {"bp": BP, "dni": DNI | stages(3), "features_replay": FR | stages(3), "dsp_110_420": THREE}

# A figure without numbers; "DNI does not converge" (section 5.1). K is not in the text: 3 here, and DSP's queues are
# the shortest.
FIGURE3 = Table(
    title="DSP, Figure 3: learning curves of ResNet98 and ResNet164 on CIFAR-10",
    claim="DSP, Features Replay and back-propagation have nearly the same curves by epoch; DNI does not converge.",
    measure=FINAL_ERROR,
    settings=CIFAR | C10,
    plot=True,
    rows=(
        *row_each("resnet98/", R98, _DRAWN, (None, DIVERGES, None, None)),
        *row_each("resnet164/", R164, _DRAWN, (None, DIVERGES, None, None)),
    ),
)

# Top left. "Regarding the number of parameters" in the caption: the mean over a stage's parameters. CIFAR-10 here, as
# the text does not say which. The claim is that of section 5.4.
FIGURE4_GRADIENTS = Table(
    title="DSP, Figure 4: difference of the gradients of DSP and BP by stage, ResNet164 on CIFAR-10",
    claim="The difference of DSP's gradient from back-propagation's drops fast, is larger for lower stages and longer "
    "queues, and drops with the learning rate.",
    measure=GRADIENT_DIFFERENCE,
    settings=CIFAR | C10 | R164,
    rows=tuple(Row(f"K{len(method['p'])}/{name}", method) for name, method in {**K3, **K4}.items()),
)

# The other panels, without numbers. Data sets and K as in Table 3; which methods are drawn is not in the text: BP, FR,
# DSP.
FIGURE4_CURVES = Table(
    title="DSP, Figure 4: learning curves of VGG-19, ResNeXt-29 and ResNet1001",
    claim="DSP converges like back-propagation for other families of networks as well.",
    measure=FINAL_ERROR,
    plot=True,
    rows=tuple(
        Row(f"{name}/{method}", {**network, **settings})
        for name, network, count, queues in (
            ("vgg19", VGG_AND_RESNEXT | VGG | C100, 3, THREE),
            ("resnext29", VGG_AND_RESNEXT | RESNEXT | C10, 4, FOUR),
            ("resnet1001", RESNET1001 | R1001 | C100, 4, FOUR),
        )
        for method, settings in (("bp", BP), ("features_replay", FR | stages(count)), ("dsp", queues))
    ),
)

FIGURE5 = dataclasses.replace(
    TABLE4,
    title="DSP, Figure 5: learning curves on ImageNet, K = 3",
    claim="The runs of Table 4, by epoch.",
    plot=True,
    rows=shown(TABLE4, "number of Table 4"),
)

TABLES = {
    "table1": TABLE1,
    "table2": TABLE2,
    "table3": TABLE3,
    "table4": TABLE4,
    "figure3": FIGURE3,
    "figure4_gradients": FIGURE4_GRADIENTS,
    "figure4_curves": FIGURE4_CURVES,
    "figure5": FIGURE5,
}
