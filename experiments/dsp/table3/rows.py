"""DSP, Table 3: speed-up over back-propagation (Tesla P40 GPUs).

The table's header: CIFAR-10 for ResNet164 and ResNeXt-29, CIFAR-100 for VGG-19 and ResNet1001, ImageNet for the others;
the data set changes nothing but the number of classes. Where BP has "- / x1", its K-device form is the measure. GPipe's
one number is quoted from its paper. DSP's queues are not said: the shortest here.
"""

from experiments.dsp.strategy import FR, K3, K4, stages
from experiments.reproduction.rows import Row, Table

SMALL_IMAGES, LARGE_IMAGES = {"image_size": 32, "batch_size": 128}, {"image_size": 224}
R164 = {**SMALL_IMAGES, "model": "preact_resnet164", "num_classes": 10}
RESNEXT = {**SMALL_IMAGES, "model": "resnext29", "num_classes": 10}
VGG = {**SMALL_IMAGES, "model": "vgg19", "num_classes": 100}
R1001 = {**SMALL_IMAGES, "model": "preact_resnet1001", "num_classes": 100, "baseline_stages": 4}
R50 = {**LARGE_IMAGES, "model": "resnet50", "num_classes": 1000, "batch_size": 256, "baseline_stages": 3}
R101 = {**LARGE_IMAGES, "model": "resnet101", "num_classes": 1000, "batch_size": 128}
THREE, FOUR = K3["dsp_110_420"], K4["dsp_1110_6420"]

TABLE = Table(
    title="DSP, Table 3: speed",
    kind="speed",
    measure="speedup",
    rows=(
        Row("resnet164/features_replay", R164 | FR | stages(4), 1.7),
        Row("resnet164/dsp", R164 | FOUR, 2.7),
        Row("resnext29/features_replay", RESNEXT | FR | stages(4), 1.3),
        Row("resnext29/dsp", RESNEXT | FOUR, 2.4),
        Row("vgg19/features_replay", VGG | FR | stages(3), 1.1),
        Row("vgg19/dsp", VGG | THREE, 1.5),
        Row("resnet1001/features_replay", R1001 | FR | stages(4), 1.9, "over BP-K"),
        Row("resnet1001/dsp", R1001 | FOUR, 4.8, "over BP-K"),
        Row("resnet50/features_replay", R50 | FR | stages(3), 1.6, "over BP-K"),
        Row("resnet50/dsp", R50 | THREE, 3.0, "over BP-K"),
        Row("resnet101/features_replay", R101 | FR | stages(4), 1.7),
        Row(
            "resnet101/gpipe",
            R101 | {"method": "gpipe", "accumulate": 4, "num_stages": 4},
            2.2,
            "quoted from GPipe, whose M is not said: 4 here",
        ),
        Row("resnet101/dsp", R101 | FOUR, 2.7),
    ),
)
