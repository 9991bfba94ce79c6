"""Draws the pictures of the README and of the gallery: docs/gallery/NAME.png.

    python -m experiments.gallery                    # all of them, in seconds
    python -m experiments.gallery --picture=idea     # one

They follow from schedules and given times alone. Nothing is measured or trained.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import matplotlib
import numpy as np
from absl import flags
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

import jaxdecouple as jd
from experiments import cli as command_line
from experiments.settings import choose
from jaxdecouple import schedules

matplotlib.use("Agg")  # no display needed

FLAGS = flags.FLAGS
FORWARD, BACKWARD, LOSS, WEIGHT = "#4c8bc4", "#e0883a", "#5aa469", "#b8a13a"
TRANSFER = 0.1  # of a forward's time


def idea() -> Figure:
    """Three stages under back-propagation and under FDG, over the same time."""
    shown = {
        "Back-propagation: a batch goes up and down before the next one starts": schedules.backprop(3),
        "Decoupled (FDG): every stage always has a batch to work on": schedules.fdg(3),
    }
    looks = {"forward": FORWARD, "backward, update": BACKWARD, "forward, loss, backward, update": LOSS}
    return _over_time(shown, looks, stop=27.0)


def zero_bubble() -> Figure:
    """A round of 1F1B and one of ZB-H1, four stages and eight micro-batches."""
    shown = {
        "1F1B: a stage waits for the whole backward of the stage above": schedules.one_forward_one_backward(4, 8),
        "Zero bubble (ZB-H1): for the gradient of its input alone": schedules.zero_bubble(4, 8),
    }
    looks = {"forward": FORWARD, "backward": BACKWARD, "forward, loss, backward": LOSS, "weights' gradient": WEIGHT}
    return _over_time(shown, looks, stop=34.0)


def gain() -> Figure:
    """How many times as fast as one device K devices are, by method."""
    methods = {
        "FDG, ADL, DSP": lambda K: schedules.fdg(K, order="forward_first"),
        "DDG, PipeDream": schedules.ddg,
        "GPipe, 8 micro-batches": lambda K: schedules.gpipe(K, 8, weights="stash"),
        "back-propagation": schedules.backprop,
    }
    counts = (1, 2, 4, 8, 16)
    figure = Figure(figsize=(8, 4.4), layout="constrained")
    panel = figure.subplots()
    panel.plot(counts, counts, color="#888888", linestyle=":", label="ideal")
    for marker, (name, schedule) in zip("os^v", methods.items(), strict=True):
        speeds = [jd.timeline(schedule(K), _times(K)).speedup for K in counts]
        panel.plot(counts, speeds, marker=marker, label=name)
    panel.set(xlabel="devices, one stage each", ylabel="times as fast as one device")
    panel.set(xscale="log", yscale="log", xticks=counts, yticks=counts)
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
        axis.minorticks_off()
    panel.grid(alpha=0.3)
    panel.legend(frameon=False)
    note = f"equal stages; a backward takes two forwards, a transfer {TRANSFER} of one"
    panel.set_title(f"As the timeline predicts it: {note}", fontsize=10, loc="left")
    return figure


def staleness() -> Figure:
    """How many updates old the gradients of each of eight stages are, by method."""
    methods = {
        "FDG": schedules.fdg(8),
        "DDG, Features Replay, PipeDream": schedules.ddg(8),
        "back-propagation, GPipe": schedules.backprop(8),
    }
    rows = {name: [levels[0] for levels in schedules.staleness(schedule)] for name, schedule in methods.items()}
    groups = schedules.staleness(schedules.adl(8), 4)
    rows["ADL, M = 4 (mean of a group)"] = [float(np.mean(levels)) for levels in groups]
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    panel = figure.subplots()
    for marker, (name, levels) in zip("os^D", rows.items(), strict=True):
        panel.plot(range(8), levels, marker=marker, label=name)
    panel.set(xlabel="stage, of 8", ylabel="staleness (updates)")
    panel.grid(alpha=0.3)
    panel.legend(frameon=False)
    return figure


def transfers() -> Figure:
    """What a slow link costs four stages, by the delays that the schedule grants."""
    methods = {
        "FDG, forward first (p = q = 1)": schedules.fdg(4, order="forward_first"),
        "FDG, backward first": schedules.fdg(4, order="backward_first"),
        "DDG (p = 0, q = 1)": schedules.ddg(4),
        "DDG with one tick more (p = 1, q = 2)": schedules.delays((1, 1, 1), (2, 2, 2)),
    }
    ratios = np.linspace(0, 2, 21)
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    panel = figure.subplots()
    for name, schedule in methods.items():
        panel.plot(ratios, [jd.timeline(schedule, _times(4, ratio)).speedup for ratio in ratios], label=name)
    panel.set(xlabel="time of a transfer, in forwards", ylabel="times as fast as one device", ylim=(0, 4.2))
    panel.grid(alpha=0.3)
    panel.legend(frameon=False, loc="lower left")
    return figure


def memory() -> Figure:
    """Bytes in flight over time at the lowest of four stages, under two policies of weights."""
    sizes = jd.Sizes(inputs=[1, 1, 1, 1], residuals=[4, 4, 4, 4], params=[1, 1, 1, 1])
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    panel = figure.subplots()
    for name, schedule in {
        "FDG, stash": schedules.fdg(4),
        "DDG, stash": schedules.ddg(4),
        "Features Replay, replay": schedules.features_replay(4),
        "back-propagation": schedules.backprop(4),
    }.items():
        timeline = jd.timeline(schedule, _times(4), sizes=sizes, num_batches=24)
        seconds, sizes_then = jd.bytes_over_time(timeline, 0)
        panel.step(seconds, sizes_then, where="post", label=name)
    panel.set(xlabel="time (forwards)", ylabel="in flight at stage 0 (activations)", xlim=(0, 60))
    panel.grid(alpha=0.3)
    panel.legend(frameon=False, loc=(0.6, 0.26))
    return figure


PICTURES: dict[str, Callable[[], Figure]] = {
    drawn.__name__: drawn for drawn in (idea, gain, staleness, transfers, memory, zero_bubble)
}


def _times(num_stages: int, transfer: float = TRANSFER) -> jd.Times:
    """Of a network that takes one device three times as long as a stage's forward takes, times K."""
    links = [transfer] * (num_stages - 1)
    return jd.Times(forward=[1.0] * num_stages, backward=[2.0] * num_stages, up=links, down=links)


def _over_time(shown: dict[str, schedules.Schedule], looks: dict[str, str], stop: float) -> Figure:
    """Timelines below one another."""
    count = sum(schedule.num_stages for schedule in shown.values())
    figure = Figure(figsize=(11, 0.56 * count + 1.04), layout="constrained")
    for panel, (title, schedule) in zip(figure.subplots(len(shown), 1, sharex=True), shown.items(), strict=True):
        _draw(panel, jd.timeline(schedule, _times(schedule.num_stages, transfer=0.0)), stop)
        panel.set_title(title, loc="left", fontsize=11)
    handles = [Patch(color=colour, label=f"{name} of batch n") for name, colour in looks.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(looks), frameon=False)
    figure.axes[-1].set_xlabel("time →")
    return figure


def _draw(panel: Axes, timeline: jd.Timeline, stop: float) -> None:
    """A row for each stage, a box for each operation with the number of its batch."""
    last = timeline.schedule.num_stages - 1
    colours = {schedules.FORWARD: FORWARD, schedules.BACKWARD: BACKWARD, schedules.WEIGHT: WEIGHT}
    for record in timeline:
        if record.start >= stop:
            continue
        is_loss = record.kind is schedules.FORWARD and record.stage == last
        colour = LOSS if is_loss else colours[record.kind]
        corner = (record.start, record.stage - 0.42)
        panel.add_patch(Rectangle(corner, record.end - record.start, 0.84, facecolor=colour, edgecolor="white"))
        middle = (record.start + record.end) / 2
        if middle < stop:
            label = {"ha": "center", "va": "center", "color": "white", "clip_on": True}
            panel.text(middle, record.stage, str(record.batch), **label)
    panel.set(xlim=(0, stop), ylim=(-0.5, last + 0.5), xticks=[])  # the first layers at the bottom
    panel.set_yticks(range(last + 1), [f"stage {k}" for k in range(last + 1)])
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)


def define_flags() -> None:
    """The flags of this program. Not at import: its functions serve other programs too."""
    flags.DEFINE_string("picture", "", f"one of {', '.join(PICTURES)}; empty: all of them")
    flags.DEFINE_string("out", "docs/gallery", "directory to write into")


def main(argv: list[str]) -> None:
    with command_line.frame(argv, interrupted="the pictures that are there are whole"):
        names = [choose("picture", FLAGS.picture, PICTURES)] if FLAGS.picture else list(PICTURES)
        folder = pathlib.Path(FLAGS.out).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            PICTURES[name]().savefig(folder / f"{name}.png", dpi=110)
            print(folder / f"{name}.png")


if __name__ == "__main__":
    define_flags()
    command_line.start(main)
