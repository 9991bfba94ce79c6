"""Huo's thesis, chapters 4 (LARS, CLARS), 5 (DDG) and 6 (Features Replay): every table and figure of training runs.

Figures 9, 11 and 12 show single layers and a schedule: `experiments.large_batch` has them, and sweeps over eta.

How it trains. Section 4.4: Nesterov's momentum, 0.9; the rate is 0.1 for each 128 images of a batch. The weight decay
and the power of the polynomial decay are not said: 1e-4 and 2. Gradients of 512 images at once are accumulated; only
Figure 14 says so. Section 5.5.1, ResNet-8: Adam, rate 1e-3, batches of 128, 300 epochs. Neither drops of the rate nor a
weight decay are spoken of: none here. Sections 5.5.2, 5.5.3 and 6.5: SGD with momentum 0.9, rate 0.01, times 0.1 at 150
and 225, 300 epochs, weight decay 5e-4; batches of 128 (section 6.5; 5.5.2 is silent). Whether the momentum is
Nesterov's is not said; the published codes of both chapters have it so, and so have we. Random crops and flips, images
normalised by mean and standard deviation. Networks are cut "at the center": here, so that stages have equal numbers of
operations.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from experiments.papers.kinds.diagnostics import SIGMA
from experiments.papers.kinds.predictions import IDEAL_SPEEDUP
from experiments.papers.kinds.speed import MEMORY, SPEED
from experiments.papers.kinds.training import BEST_ACCURACY, BEST_ERROR, FINAL_ACCURACY, FINAL_ERROR
from experiments.papers.table import DIVERGES, Row, Table, row_each, shown, stages

TITLE = "Huo's thesis, chapters 4 to 6"
BEST = "best of all epochs"
ADAM: dict[str, Any] = {
    "optimizer": "adam",
    "counters": "global",
    "learning_rate": 1e-3,
    "momentum": 0.9,
    "weight_decay": 0.0,
    "batch_size": 128,
    "epochs": 300,
    "decay": "constant",
    "augment": True,
}
SGD: dict[str, Any] = {
    "optimizer": "sgd",
    "counters": "global",
    "learning_rate": 0.01,
    "momentum": 0.9,
    "nesterov": True,
    "weight_decay": 5e-4,
    "batch_size": 128,
    "epochs": 300,
    "decay": "step",
    "decay_epochs": (150, 225),
    "decay_factor": 0.1,
    "augment": True,
}
BP: dict[str, Any] = {"method": "backprop", "num_stages": 1}  # one GPU
DNI: dict[str, Any] = {"method": "dni"}
DDG: dict[str, Any] = {"method": "ddg"}
FR: dict[str, Any] = {"method": "features_replay"}
C10, C100 = {"dataset": "cifar10"}, {"dataset": "cifar100"}
R8, R56, R110, R164, R101, R152 = ({"model": f"resnet{depth}"} for depth in (8, 56, 110, 164, 101, 152))

LARGE: dict[str, Any] = {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-4, "augment": True, **BP}
LARS: dict[str, Any] = {"optimizer": "lars"}
CLARS: dict[str, Any] = {"optimizer": "clars"}
WARMED: dict[str, Any] = {"decay": "polynomial", "decay_power": 2.0}  # Figure 11, with a warm-up
VGG11 = {"model": "vgg11"}


def _large(size: int) -> dict[str, Any]:
    """Batches of so many images, at most 512 at once, and the learning rate that goes with them (eq. 4.3)."""
    at_once = min(size, 512)
    return {"batch_size": at_once, "accumulate": size // at_once, "learning_rate": 0.1 * size / 128}


# A figure without numbers. Which batches lie between 128 and 8192 is not said.
FIGURE10 = Table(
    title="Thesis, Figure 10: LARS and large batches, ResNet56 and VGG11 on CIFAR-10, 200 epochs",
    claim="With batches of 8192 LARS converges much faster than mNAG, which diverges for VGG11. It converges alike "
    "with all batches.",
    measure=FINAL_ACCURACY,
    settings={**LARGE, **C10, **WARMED, "epochs": 200, "warmup_epochs": 20.0},
    plot=True,
    rows=tuple(
        Row(f"{network['model']}/{name}", {**network, **settings}, number)
        for network in (R56, VGG11)
        for name, settings, number in (
            ("mnag_8192", {"optimizer": "sgd", **_large(8192)}, DIVERGES if network is VGG11 else None),
            *((f"lars_{size}", {**LARS, "eta": 1e-3, **_large(size)}, None) for size in (128, 512, 2048, 8192)),
        )
    ),
)

# A figure without numbers; the best eta of the four is shown, which one is not said.
FIGURE13 = Table(
    title="Thesis, Figure 13: CLARS, and LARS with a warm-up, B = 8192, ResNet56 and VGG11 on CIFAR-10, 20 epochs",
    claim="CLARS without a warm-up is ahead of LARS with any, by a large margin.",
    measure=FINAL_ACCURACY,
    settings={**LARGE, **C10, **_large(8192), "epochs": 20, "decay": "constant"},
    plot=True,
    rows=tuple(
        Row(f"{network['model']}/{name}/eta{eta:g}", {**network, **settings, "eta": eta})
        for network in (R56, VGG11)
        for name, settings in (
            ("clars", {**CLARS, "norm_sample": 512}),
            *((f"lars_warmup{epochs}", {**LARS, "warmup_epochs": float(epochs)}) for epochs in (5, 10, 20)),
        )
        for eta in (1e-4, 1e-3, 1e-2, 1e-1)
    ),
)

# A figure without numbers. Where the images lie is not known here: write --dataset=imagenet:PATH. How CLARS's rate
# falls is not said: here as that of LARS, without its warm-up.
FIGURE14 = Table(
    title="Thesis, Figure 14: LARS and CLARS, B = 16384, ResNet50, DenseNet121 and MobileNetV2 on ImageNet",
    claim="CLARS always converges much faster than LARS, and to a lower test error.",
    measure=FINAL_ERROR,
    settings={**LARGE, **WARMED, **_large(16384), "dataset": "imagenet:imagenet"},
    plot=True,
    rows=tuple(
        Row(f"{model}/{name}", {"model": model, "epochs": epochs, "learning_rate": rate, **settings})
        for model, epochs, rate in (("resnet50", 90, 25.0), ("densenet121", 90, 25.0), ("mobilenet_v2", 150, 6.0))
        for name, settings in (
            ("lars", {**LARS, "eta": 1e-3, "warmup_epochs": 5.0}),
            ("clars", {**CLARS, "eta": 1e-2, "norm_sample": 512}),
        )
    ),
)

# T_B is twice T_F here; in Figure 21 forwards are "about 32 %" of the time. The paper's number is the formula as a
# speed-up. It counts iterations that wait for each other.
TABLE3 = Table(
    title="Thesis, Table 3: ideal speed-up of DDG, backward twice as long as forward",
    claim="DDG takes T_F + T_B / K where back-propagation takes T_F + T_B.",
    measure=IDEAL_SPEEDUP,
    statistic="a formula",
    rows=tuple(Row(f"K{count}/ddg", DDG | stages(count), 3 / (1 + 2 / count)) for count in (1, 2, 3, 4)),
)

# Figures without numbers. The claims (section 5.5.1): all methods are alike with the split at layer 1, DDG at all of
# them; DNI degrades, and "cannot even converge when the split point is at layer 7". The layers 1, 3, 5 and 7 are where
# the stem and the three blocks of ResNet-8 end: in front of its modules 1, 2, 3 and 4.
FIGURE17_18 = Table(
    title="Thesis, Figures 17 and 18: ResNet-8 on CIFAR-10, one split point",
    claim="DDG does well wherever the network is cut; DNI degrades with depth and does not converge with the cut at "
    "layer 7.",
    measure=BEST_ACCURACY,
    settings=ADAM | C10 | R8,
    plot=True,
    rows=(
        Row("bp", BP),
        *(
            Row(f"layer{layer}/{name}", {**method, **stages(2), "boundaries": (module,)}, number)
            for layer, module in {1: 1, 3: 2, 5: 3, 7: 4}.items()
            for name, method, number in (("dni", DNI, DIVERGES if layer == 7 else None), ("ddg", DDG, None))
        ),
    ),
)

# A figure without numbers. Where the points are is not said. Between blocks, 4 points leave no choice; 2 and 3 are
# where stages have equal operations.
FIGURE19 = Table(
    title="Thesis, Figure 19: ResNet-8 on CIFAR-10, several split points",
    claim="DDG does as well as back-propagation with 2, 3 and 4 cuts; DNI is unstable.",
    measure=BEST_ACCURACY,
    settings=ADAM | C10 | R8,
    plot=True,
    rows=(
        Row("bp", BP),
        *(
            Row(f"points{points}/{name}", {**method, **stages(points + 1)})
            for points in (2, 3, 4)
            for name, method in (("dni", DNI), ("ddg", DDG))
        ),
    ),
)

# Figures without numbers, but for Table 5, whose ResNet-110 has K = 2. The claim is that of section 5.5.3.
FIGURE20 = Table(
    title="Thesis, Figures 20 and 21: ResNet-110 on CIFAR-10, DDG on K devices",
    claim="Several GPUs do not change how DDG converges, up to K = 4.",
    measure=BEST_ACCURACY,
    statistic=BEST,
    settings=SGD | C10 | R110,
    plot=True,
    rows=(
        Row("bp", BP, 93.53, "number of Table 5"),
        Row("K2/ddg", DDG | stages(2), 93.41, "number of Table 5"),
        Row("K3/ddg", DDG | stages(3)),
        Row("K4/ddg", DDG | stages(4)),
    ),
)

# A bar chart without numbers. Section 5.5.3: "when we increase the number of GPUs from 2 to 4, our method reduces about
# 30% to 50% of the total computation time", that is, speed-ups of 1.43 with K = 2, and of "about 2 times" with K = 4.
FIGURE21 = Table(
    title="Thesis, Figure 21: speed of ResNet-110 on CIFAR-10, K = 2, 3, 4 (Titan X); its accuracies: figure20",
    claim="From 2 to 4 GPUs, DDG saves 30 % to 50 % of the time.",
    measure=SPEED,
    statistic="a statement in the text",
    settings={**R110, "image_size": 32, "batch_size": 128, "num_classes": 10, **DDG},
    rows=(
        Row("K2/ddg", stages(2), 1.43, "30 % less time"),
        Row("K3/ddg", stages(3)),
        Row("K4/ddg", stages(4), 2.0, "50 % less time"),
    ),
)

# "In the supplementary material, we show that our method also converges faster than BP with data parallelism": in the
# thesis itself there is no number. The batch is shared by as many devices as Features Replay has modules.
SECTION6_5_3 = Table(
    title="Thesis, section 6.5.3: speed of Features Replay and of data parallelism on CIFAR-10, K = 2, 4",
    claim="Features Replay is up to twice as fast as back-propagation, and faster than it with data parallelism.",
    measure=SPEED,
    statistic="a statement in the text",
    settings={"image_size": 32, "batch_size": 128, "num_classes": 10},
    rows=tuple(
        Row(f"{network['model']}/K{count}/{name}", {**network, **method}, number, also)
        for network in (R164, R101, R152)
        for count in (2, 4)
        for name, method, number, also in (
            ("data_parallel", BP | {"group_size": count}, None, ""),
            ("features_replay", FR | stages(count), *((2.0, "up to") if count == 4 else (None, ""))),
        )
    ),
)

_TWO = {"bp": BP, "ddg": DDG | stages(2)}

TABLE5 = Table(
    title="Thesis, Table 5: best accuracy on CIFAR, K = 2, cut at the center",
    claim="DDG is as accurate as back-propagation, or more.",
    measure=BEST_ACCURACY,
    statistic=BEST,
    settings=SGD,
    rows=(
        *row_each("cifar10/resnet56/", C10 | R56, _TWO, (93.12, 93.11)),
        *row_each("cifar10/resnet110/", C10 | R110, _TWO, (93.53, 93.41)),
        *row_each("cifar100/resnet56/", C100 | R56, _TWO, (69.79, 70.17)),
        *row_each("cifar100/resnet110/", C100 | R110, _TWO, (71.90, 71.39)),
    ),
)

FIGURE22 = dataclasses.replace(
    TABLE5,
    title="Thesis, Figure 22: learning curves of ResNet-56 and ResNet-110 on CIFAR-10, K = 2",
    claim="The runs of Table 5 on CIFAR-10, by epoch.",
    plot=True,
    rows=shown(TABLE5, "number of Table 5", "cifar10/"),
)

FIGURE23 = dataclasses.replace(
    TABLE5,
    title="Thesis, Figure 23: learning curves of ResNet-56 and ResNet-110 on CIFAR-100, K = 2",
    claim="The runs of Table 5 on CIFAR-100, by epoch.",
    plot=True,
    rows=shown(TABLE5, "number of Table 5", "cifar100/"),
)

# A figure without numbers. The claim is that of section 6.5.2.
FIGURE26 = Table(
    title="Thesis, Figure 26: sufficient-direction constant of Features Replay, CIFAR-10, K = 4",
    claim="Sigma is above 0 all the time; that of lower modules is small in the first half of the epochs and close to "
    "1 afterwards.",
    measure=SIGMA,
    settings=SGD | C10 | FR | stages(4),
    rows=(Row("resnet164", R164), Row("resnet101", R101)),
)

# A figure without numbers. The claim is that of section 6.5.3; Table 6 says why: activations of O(L) for BP, O(L + K^2)
# for FR, O(LK + K^2) for DDG. The batch is 128.
FIGURE27 = Table(
    title="Thesis, Figure 27 and Table 6: memory against K",
    claim="Features Replay takes about as much memory as back-propagation; DDG more than twice as much with K = 4.",
    measure=MEMORY,
    statistic="statements in the text",
    settings={"image_size": 32, "batch_size": 128, "num_classes": 10},
    rows=tuple(
        Row(f"{network['model']}/K{count}/{name}", {**network, **method, **stages(count)}, number, also)
        for network in (R164, R101, R152)
        for count in (2, 3, 4)
        for name, method, number, also in (
            ("ddg", DDG, "> 2" if count == 4 else None, ""),
            ("features_replay", FR, None, "very close to BP"),
        )
    ),
)

_CURVES = {"bp": BP, "K4/dni": DNI | {"dni_labels": False} | stages(4), "K4/ddg": DDG | stages(4)}
_CURVES |= {f"K{count}/features_replay": FR | stages(count) for count in (2, 3, 4)}

# A figure without numbers. The claims (section 6.5.3): DNI converges for no model; DDG "cannot converge for the model
# ResNet152 when we set K = 4". Which K is drawn is not in the text: FR with 2, 3 and 4, the others with 4. Unlike
# section 5.5.1, section 6.5.1 speaks of no labels that DNI's network would be told.
FIGURE28 = Table(
    title="Thesis, Figure 28: learning curves on CIFAR-10",
    claim="Features Replay converges for all networks and any K; DNI for none; DDG not for ResNet152 with K = 4.",
    measure=BEST_ERROR,
    settings=SGD | C10,
    plot=True,
    rows=(
        *row_each("resnet164/", R164, _CURVES, (None, DIVERGES, None, None, None, None)),
        *row_each("resnet101/", R101, _CURVES, (None, DIVERGES, None, None, None, None)),
        *row_each("resnet152/", R152, _CURVES, (None, DIVERGES, DIVERGES, None, None, None)),
    ),
)

_THREE = {**_TWO, "features_replay": FR | stages(2)}

# K is not said: 2 here, since DDG has a number for ResNet152, with which it does not converge for K = 4 (section
# 6.5.3). ResNet164 has basic blocks, ResNet101 and ResNet152 have bottlenecks.
TABLE7 = Table(
    title="Thesis, Table 7: best test error on CIFAR",
    claim="Features Replay has lower errors than back-propagation and DDG on all networks.",
    measure=BEST_ERROR,
    statistic=BEST,
    settings=SGD,
    rows=(
        *row_each("resnet164/cifar10/", R164 | C10, _THREE, (6.40, 6.45, 6.03)),
        *row_each("resnet164/cifar100/", R164 | C100, _THREE, (28.53, 28.51, 27.34)),
        *row_each("resnet101/cifar10/", R101 | C10, _THREE, (5.25, 5.35, 4.97)),
        *row_each("resnet101/cifar100/", R101 | C100, _THREE, (23.48, 24.25, 23.10)),
        *row_each("resnet152/cifar10/", R152 | C10, _THREE, (5.26, 5.72, 4.91)),
        *row_each("resnet152/cifar100/", R152 | C100, _THREE, (25.20, 26.39, 23.61)),
    ),
)

TABLES = {
    "figure10": FIGURE10,
    "figure13": FIGURE13,
    "figure14": FIGURE14,
    "table3": TABLE3,
    "figure17_18": FIGURE17_18,
    "figure19": FIGURE19,
    "figure20": FIGURE20,
    "figure21": FIGURE21,
    "table5": TABLE5,
    "figure22": FIGURE22,
    "figure23": FIGURE23,
    "figure26": FIGURE26,
    "figure27": FIGURE27,
    "figure28": FIGURE28,
    "section6_5_3": SECTION6_5_3,
    "table7": TABLE7,
}
