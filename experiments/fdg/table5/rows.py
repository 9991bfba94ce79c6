"""FDG, Table V: the Top 1 errors of ResNet-18 and MobileNet v2 on Tiny-ImageNet, K = 2.

The training strategy is that of all experiments, as nothing else is said. 64 x 64 images, 200 classes, 100 000 images
to train on, 10 000 to test on. Write ``--dataset=tiny_imagenet:PATH``: where the files lie is not known here.
"""

from experiments.fdg.strategy import BP, CIFAR, MEDIAN, fdg
from experiments.reproduction.rows import Row, Table

R18, MOBILENET = {"model": "resnet18"}, {"model": "mobilenet_v2"}

TABLE = Table(
    title="FDG, Table V: test error on Tiny-ImageNet, K = 2",
    measure="final_error",
    statistic=MEDIAN,
    settings={**CIFAR, "dataset": "tiny_imagenet:tiny-imagenet-200"},
    rows=(
        Row("resnet18/bp", R18 | BP, 38.32),
        Row("resnet18/fdg_beta1", R18 | fdg(1.0), 38.58),
        Row("resnet18/fdg_beta0.5", R18 | fdg(0.5), 38.22),
        Row("mobilenet_v2/bp", MOBILENET | BP, 46.35),
        Row("mobilenet_v2/fdg_beta1", MOBILENET | fdg(1.0), 46.36),
        Row("mobilenet_v2/fdg_beta0.3", MOBILENET | fdg(0.3), 46.44),
    ),
)
