"""Thesis, Figure 27: memory of BP, DDG and FR for ResNet164, ResNet101 and ResNet152, against K; Table 6 as well.

A figure without numbers. The claims (section 6.5.3): FR takes about as much as BP; with K = 4, DDG takes more than
twice as much. Table 6 says why: activations of O(L) for BP, O(L + K^2) for FR, O(LK + K^2) for DDG. The batch is 128.
"""

from experiments.reproduction.rows import Row, Table
from experiments.thesis.strategy import DDG, FR, stages

TABLE = Table(
    title="Thesis, Figure 27: memory against K",
    kind="memory",
    measure="ratio",
    statistic="statements in the text",
    settings={"image_size": 32, "batch_size": 128, "num_classes": 10},
    rows=tuple(
        Row(f"{model}/K{count}/{name}", {"model": model, **method, **stages(count)}, number, also)
        for model in ("resnet164", "resnet101", "resnet152")
        for count in (2, 3, 4)
        for name, method, number, also in (
            ("ddg", DDG, "> 2" if count == 4 else None, ""),
            ("features_replay", FR, None, "very close to BP"),
        )
    ),
)
