"""A process of `process_speed` that trains with PyTorch: a whole CIFAR ResNet, or a stage of it in a pipeline.

PyTorch's own pipeline, `torch.distributed.pipelining`, is the peer that readers know. It is no requirement: where torch
is not installed, there are no such rows.
"""

from __future__ import annotations

import itertools
import json
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed
from torch.distributed import pipelining
from torch.nn import functional

SCHEDULES = {"GPipe": pipelining.ScheduleGPipe, "1F1B": pipelining.Schedule1F1B}


class Stem(torch.nn.Module):
    """Convolution, normalisation, ReLU: [B, 3, H, W] -> [B, 16, H, W]."""

    def __init__(self, channels_in: int = 3, channels: int = 16, stride: int = 1):
        super().__init__()
        self.convolution = torch.nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.norm = torch.nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> Any:
        return functional.relu(self.norm(self.convolution(x)))


class First(Stem):
    """A block's first convolution, and its shortcut, which is made smaller."""

    def __init__(self, channels_in: int, channels: int, stride: int):
        super().__init__(channels_in, channels, stride)
        self.stride = stride

    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x), x[:, :, :: self.stride, :: self.stride].contiguous()


class Second(Stem):
    """A block's second convolution, and the sum with its shortcut, padded with zeros."""

    def forward(self, y: torch.Tensor, shortcut: torch.Tensor) -> Any:
        y = self.norm(self.convolution(y))
        missing = y.shape[1] - shortcut.shape[1]
        padded = functional.pad(shortcut, (0, 0, 0, 0, missing // 2, missing - missing // 2))
        return functional.relu(y + padded)


class Head(torch.nn.Module):
    """Mean over space and a dense layer: [B, C, H, W] -> [B, classes]."""

    def __init__(self, channels: int, classes: int):
        super().__init__()
        self.dense = torch.nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dense(x.mean(dim=(2, 3)))


class Part(torch.nn.Module):
    """Some layers in a row; between them go one tensor or two."""

    def __init__(self, layers: list[torch.nn.Module]):
        super().__init__()
        self.layers = torch.nn.ModuleList(layers)

    def forward(self, *x: torch.Tensor) -> Any:
        for layer in self.layers:
            y = layer(*x)
            x = y if isinstance(y, tuple) else (y,)
        return x if len(x) > 1 else x[0]


def resnet(depth: int, classes: int) -> list[torch.nn.Module]:
    """The layers of `jaxdecouple.models.resnet(depth, split_blocks=True)`."""
    layers: list[torch.nn.Module] = [Stem()]
    before = 16
    for channels in (16, 32, 64):
        for _ in range((depth - 2) // 6):
            layers += [First(before, channels, channels // before), Second(channels, channels)]
            before = channels
    return [*layers, Head(before, classes)]


def training_step(place: dict[str, Any]) -> Callable[[tuple[torch.Tensor, torch.Tensor]], Any]:
    """``(images, labels) -> anything``: an update of what this process has of the network."""
    index, role, cut = place["index"], place["role"], place["boundaries"]
    layers = resnet(place["depth"], place["workload"]["num_classes"])
    starts = [0, *cut, len(layers)]
    own = Part(layers if role == "plain" else layers[starts[index] : starts[index + 1]])
    optimizer = torch.optim.SGD(own.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)

    def whole(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
        functional.cross_entropy(own(batch[0]), batch[1]).backward()

    def piped(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
        images, labels = batch
        if index == 0:
            schedule.step(images)
        else:
            schedule.step(target=labels if index == place["processes"] - 1 else None)

    if role != "plain":
        stage = pipelining.PipelineStage(own, index, place["processes"], torch.device("cpu"))
        schedule = SCHEDULES[role](stage, place["micro_batches"], loss_fn=functional.cross_entropy)

    def step(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
        (whole if role == "plain" else piped)(batch)
        optimizer.step()
        optimizer.zero_grad()

    return step


def batches(workload: dict[str, Any]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """A few batches of random images, [B, 3, H, W], and labels, [B], again and again."""
    size, pixels = workload["batch_size"], workload["image_size"]
    random = torch.Generator().manual_seed(0)
    few = [
        (
            torch.randn(size, 3, pixels, pixels, generator=random),
            torch.randint(workload["num_classes"], (size,), generator=random),
        )
        for _ in range(4)
    ]
    return itertools.cycle(few)


def main() -> None:
    place = json.loads(sys.argv[1])
    os.sched_setaffinity(0, place["cores"])
    torch.set_num_threads(len(place["cores"]))
    if place["processes"] > 1:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        meeting = (
            pathlib.Path(tempfile.gettempdir()) / f"jaxdecouple-torch-{place['port']}"
        )  # a port of torch's is open
        torch.distributed.init_process_group(
            "gloo", meeting.as_uri(), rank=place["index"], world_size=place["processes"]
        )
    step, fed = training_step(place), batches(place["workload"])
    for batch in itertools.islice(fed, 3):
        step(batch)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        updates = int(line.split()[1])
        begun = time.perf_counter()
        for batch in itertools.islice(fed, updates):
            step(batch)
        seconds = time.perf_counter() - begun
        print(json.dumps({"rate": updates * place["workload"]["batch_size"] / seconds}), flush=True)
    if place["processes"] > 1:
        torch.distributed.destroy_process_group()
        meeting.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
