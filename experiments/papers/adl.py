"""Zhuang et al., *Accumulated Decoupled Learning with Gradient Staleness Mitigation* (ADL): every table and figure.

How it trains (section 6, "Implementation details") is the same for all its methods but DSP, whose numbers it quotes.
SGD with momentum 0.9; "an overall batch size of 128 for all methods", so batches of floor(128 / M) for ADL and GPipe;
gradual warm-up for 3 epochs: linear, from 1 % of the rate, where the paper is silent and its code does so. CIFAR-10:
weight decay 5e-4, rate 0.1, 300 epochs, divided by 10 at 150, 225 and 275. ImageNet: 224 x 224 crops, weight decay
1e-4, rate 0.05, 90 epochs, divided by 10 at 30, 60 and 80. Gradients of a group are averaged (eq. 16). Nesterov's
momentum is not spoken of. M is 4 unless a table varies it (section 6.1); for GPipe it is taken to be the same.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from experiments.papers import dsp
from experiments.papers.kinds.predictions import STALENESS
from experiments.papers.kinds.speed import MEMORY, SPEED
from experiments.papers.kinds.training import FINAL_ERROR, TOP_1_AND_5
from experiments.papers.table import DIVERGES, Row, Table, row_each, shown, stages

TITLE = "Accumulated Decoupled Learning with Gradient Staleness Mitigation for Convolutional Neural Networks"
MEDIAN = "median of 3 runs, after the last epoch"
BATCH = 128  # of an update

_SGD: dict[str, Any] = {
    "optimizer": "sgd",
    "momentum": 0.9,
    "nesterov": False,
    "batch_size": 128,
    "decay": "step",
    "decay_factor": 0.1,
    "warmup_epochs": 3.0,
    "augment": True,
}
CIFAR: dict[str, Any] = {
    **_SGD,
    "dataset": "cifar10",
    "learning_rate": 0.1,
    "weight_decay": 5e-4,
    "epochs": 300,
    "decay_epochs": (150, 225, 275),
}
# Where the images lie is not known here: write --dataset=imagenet:PATH.
IMAGENET: dict[str, Any] = {
    **_SGD,
    "dataset": "imagenet:imagenet",
    "learning_rate": 0.05,
    "weight_decay": 1e-4,
    "epochs": 90,
    "decay_epochs": (30, 60, 80),
}
BP: dict[str, Any] = {"method": "backprop", "num_stages": 1}  # one GPU
DDG: dict[str, Any] = {"method": "ddg"}
DGL: dict[str, Any] = {"method": "dgl"}
FR: dict[str, Any] = {"method": "features_replay"}


def adl(steps: int = 4) -> dict[str, Any]:
    """ADL with M accumulation steps, forward first (Algorithm 1)."""
    return {"method": "adl", "order": "forward_first", "accumulate": steps, "batch_size": BATCH // steps}


GPIPE: dict[str, Any] = {"method": "gpipe", "accumulate": 4, "batch_size": BATCH // 4}
R18, R34, R50, R56 = ({"model": f"resnet{depth}"} for depth in (18, 34, 50, 56))
R98, R110, R164 = {"model": "resnet98"}, {"model": "resnet110"}, {"model": "preact_resnet164"}
SE18 = {"model": "se_resnet18"}

# The figure has no printed numbers: the paper's are eq. 17, averaged. The text speaks of "from 16 to 4" with M = 4,
# where eq. 17 gives from 14 to 3.5 for module 1, the same 75 % less.
FIGURE2 = Table(
    title="ADL, Figure 2: mean staleness (eq. 19) of modules 1 and 6 against M, K = 8",
    claim="Accumulation divides the mean staleness by M: with M = 4, 75 % of it are gone.",
    measure=STALENESS,
    statistic="eq. 17, averaged over a group",
    settings={"method": "adl", "num_stages": 8},
    rows=tuple(
        Row(f"module{module}/M{steps}", {"stage": module - 1, "accumulate": steps}, 2 * (8 - module) / steps)
        for module in (1, 6)
        for steps in (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16)
    ),
)

_ERRORS_BY_M = (DIVERGES, DIVERGES, DIVERGES, 6.38, 6.90, 6.92, 6.79, 6.49, 6.78, 6.44, 6.65, 6.86)

TABLE2A = Table(
    title="ADL, Table 2(a): error of ResNet-56 on CIFAR-10 against M, K = 16",
    claim="Without enough accumulation, M <= 3, training diverges; from M = 4 on the error hardly depends on M.",
    measure=FINAL_ERROR,
    statistic=MEDIAN,
    settings={**CIFAR, **R56, **stages(16)},
    rows=tuple(Row(f"M{steps}", adl(steps), error) for steps, error in enumerate(_ERRORS_BY_M, 1)),
)

_DSP = {**dsp.CIFAR, "warmup_epochs": 0.0, **dsp.dsp((1, 1, 1, 0), (6, 4, 2, 0))}
_METHODS = {"ddg": DDG, "dgl": DGL, "features_replay": FR, "gpipe": GPIPE, "adl": adl(4)}
# Network, K, and the errors of these methods.
_ERRORS = (
    (R56, 2, 6.63, 6.77, 6.07, 6.04, 5.99),
    (R56, 3, 6.50, 8.88, 6.33, 5.94, 6.09),
    (R56, 4, 6.61, 9.65, 6.48, 6.03, 6.16),
    (R56, 8, DIVERGES, 13.26, 6.64, 6.08, 6.18),
    (R56, 16, DIVERGES, 13.36, 11.51, 6.23, 6.38),
    (R110, 2, 6.26, 6.26, 5.76, 5.70, 5.87),
    (R110, 8, DIVERGES, 11.96, 6.56, 5.69, 5.80),
    (R98, 4, 6.19, 9.7, 6.01, 6.00, 5.92),
    (R98, 8, DIVERGES, 12.37, 6.35, 5.99, 5.93),
    (R34, 12, DIVERGES, 19.56, DIVERGES, 4.65, 4.63),
    (R164, 4, 5.43, 8.77, 5.60, 5.52, 5.46),
    (R164, 10, 5.58, 10.70, 5.89, 5.39, 5.52),
)

# DSP's numbers are quoted from its paper, and so are its settings: DSP(1,1,1,0;6,4,2,0). 6.59 is its ResNet98. Its
# ResNet164 with K = 4 has an accuracy of 94.32 %, an error of 5.68 and not the 5.58 printed. What blocks ResNet-164 has
# is not said: pre-activated bottlenecks are taken (He et al. 2016, Identity Mappings: 5.46 %). Back-propagation has one
# row for each network: the paper repeats its number.
TABLE2B = Table(
    title="ADL, Table 2(b): error on CIFAR-10, K = 2 to 16",
    claim="ADL with M = 4 stays beside back-propagation up to K = 16. DDG diverges from K = 8 on for most networks, "
    "Features Replay errs more and diverges for ResNet-34, DGL loses with every module.",
    measure=FINAL_ERROR,
    statistic=MEDIAN,
    settings=CIFAR,
    rows=(
        Row("resnet56/bp", R56 | BP, 6.19),
        Row("resnet110/bp", R110 | BP, 5.79),
        Row("resnet98/bp", R98 | BP, 6.01),
        Row("resnet34/bp", R34 | BP, 4.50),
        Row("resnet164/bp", R164 | BP, 5.36),
        Row("resnet98/K4/dsp", R98 | _DSP, 6.59, "quoted from DSP"),
        Row("resnet164/K4/dsp", R164 | _DSP, 5.58, "quoted from DSP, where it is 5.68"),
        *(
            row
            for network, count, *errors in _ERRORS
            for row in row_each(
                f"{network['model'].removeprefix('preact_')}/K{count}/", network | stages(count), _METHODS, errors
            )
        ),
    ),
)

# A row's number is the Top 1 error; ``also`` has the Top 5 error. "max." in the paper: each
# module is one layer or one residual block, K = 10 for networks with 18 layers. The baseline has one row for each
# network. The SENet is taken to be ResNet-18 with squeeze-and-excitation blocks, as its name says.
TABLE2C = Table(
    title="ADL, Table 2(c): Top 1 and Top 5 error on ImageNet",
    claim="ADL errs no more than back-propagation, up to K = 10.",
    measure=TOP_1_AND_5,
    statistic=MEDIAN,
    settings=IMAGENET,
    rows=(
        Row("resnet18/bp", R18 | BP, 29.79, "Top 5: 10.92"),
        Row("resnet18/K3/adl", R18 | adl() | stages(3), 29.52, "Top 5: 10.42"),
        Row("resnet18/K4/adl", R18 | adl() | stages(4), 29.64, "Top 5: 10.56"),
        Row("resnet18/K8/adl", R18 | adl() | stages(8), 29.75, "Top 5: 10.55"),
        Row("resnet18/K10/adl", R18 | adl() | stages(10), 29.84, "Top 5: 10.76"),
        Row("resnet50/bp", R50 | BP, 23.65, "Top 5: 7.13"),
        Row("resnet50/K4/adl", R50 | adl() | stages(4), 23.43, "Top 5: 7.45"),
        Row("se_resnet18/bp", SE18 | BP, 29.09, "Top 5: 9.89"),
        Row("se_resnet18/K8/adl", SE18 | adl() | stages(8), 29.01, "Top 5: 10.14"),
        Row("se_resnet18/K10/adl", SE18 | adl() | stages(10), 29.07, "Top 5: 10.32"),
    ),
)

# The runs of Table 2(b) for ResNet-34 with K = 12 and ResNet-56 with K = 16. DSP is left out in the paper, too.
_DRAWN = ("resnet34/bp", "resnet34/K12/", "resnet56/bp", "resnet56/K16/")

FIGURE3_CURVES = dataclasses.replace(
    TABLE2B,
    title="ADL, Figure 3: learning curves on CIFAR-10",
    claim="DDG diverges, Features Replay is bumpy or diverges, ADL converges smoothly, at first a little slower than "
    "back-propagation.",
    plot=True,
    rows=tuple(row for row in shown(TABLE2B, "number of Table 2(b)") if row.name.startswith(_DRAWN)),
)

# The last panel: no printed numbers, nor are the values of K in the text: 2 to 10, the most that ResNet-18 can be cut
# into.
FIGURE3_PARTITION = Table(
    title="ADL, Figure 3: error of ResNet-18 on CIFAR-10 against K",
    claim="ADL hardly depends on K; the others' errors rise quickly.",
    measure=FINAL_ERROR,
    statistic=MEDIAN,
    settings={**CIFAR, **R18},
    rows=(
        Row("bp", BP),
        *(
            Row(f"K{count}/{name}", method | stages(count))
            for count in (2, 4, 8, 10)
            for name, method in _METHODS.items()
            if name != "gpipe"
        ),
    ),
)

# Speed and memory. Here ADL's batches of an iteration are not floor(128 / M), as where errors are measured (section 6):
# their size was "adjusted to maximize the training speed", and "the mGA has little effect on the running speed"
# (section 6.2), so a tick takes a whole batch. GPipe's are M-th parts by its nature.
_PLAIN = {name: {"method": name} for name in ("ddg", "features_replay", "dgl")}
_PLAIN |= {
    "gpipe": {"method": "gpipe", "accumulate": 4},
    "adl": {"method": "adl", "accumulate": 4, "whole_batches": True},
}

# The batch size that was found best is not said: 32 here. M = 4.
TABLE3 = Table(
    title="ADL, Table 3: speed of ResNet-101 on ImageNet, K = 2, 3, 4 (V100 GPUs)",
    claim="ADL is the fastest with K = 2 and 3, and second to DGL with K = 4; DDG and Features Replay gain far less.",
    measure=SPEED,
    settings={"model": "resnet101", "image_size": 224, "batch_size": 32, "num_classes": 1000},
    rows=(
        *row_each("K2/", stages(2), _PLAIN, (1.32, 1.19, 1.82, 1.41, 1.92)),
        *row_each("K3/", stages(3), _PLAIN, (1.57, 1.29, 2.61, 1.87, 2.69)),
        *row_each("K4/", stages(4), _PLAIN, (1.68, 1.45, 3.39, 2.23, 3.32)),
        Row("K4/dsp", dsp.K4["dsp_1110_6420"], 2.70, "quoted from DSP"),
    ),
)

_GIGABYTES = {"ddg": 1.69, "features_replay": 1.46, "dgl": 1.49, "gpipe": 1.52, "adl": 1.84}  # BP: 1.14

# "The average GPU memory", in GB: ``also``; beside ours stand the ratios to BP. The data set is not said: CIFAR-10
# here. Nor is it said how the memory of BP, on one GPU or on four, is averaged: here, all methods use K devices. ADL
# takes more than DDG, so its ticks have batches of 128, too.
TABLE4 = Table(
    title="ADL, Table 4: memory of ResNet-18, K = 4, batches of 128",
    claim="All decoupled methods take more memory than back-propagation, those that redo no forward the most.",
    measure=MEMORY,
    settings={**R18, "image_size": 32, "batch_size": 128, "num_classes": 10, **stages(4)},
    rows=(
        Row("bp", {"method": "backprop"}, 1.0, "1.14 GB"),
        *(Row(name, _PLAIN[name], size / 1.14, f"{size} GB") for name, size in _GIGABYTES.items()),
    ),
)

TABLES = {
    "figure2": FIGURE2,
    "table2a": TABLE2A,
    "table2b": TABLE2B,
    "table2c": TABLE2C,
    "figure3_curves": FIGURE3_CURVES,
    "figure3_partition": FIGURE3_PARTITION,
    "table3": TABLE3,
    "table4": TABLE4,
}
