"""What staleness costs a language model, in tokens: methods and optimizers on one text, from the same batches."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import matplotlib
import numpy as np
import optax
from matplotlib.figure import Figure

import jaxdecouple as jd
from experiments import cli as command_line
from experiments.report import tables
from experiments.report.workdir import Workdir, drawing
from jaxdecouple import schedules
from jaxdecouple.engine.state import State
from jaxdecouple.planning import Times
from jaxdecouple.schedules import Schedule

if TYPE_CHECKING:
    from experiments.language_models import Asked

SYNCHRONOUS = "1f1b"


@dataclasses.dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
      tokens: trained on, at each test.
      losses: of the tests, nats per token.
      state: at its end, flushed.
    """

    tokens: list[int]
    losses: list[float]
    state: State


@dataclasses.dataclass(frozen=True)
class Row:
    """A method with an optimizer.

    Attributes:
      label: both names.
      rate: the learning rate that did best.
      runs: with it, one for each seed.
      speedup: over one device, by the timeline.
    """

    label: str
    rate: float
    runs: list[Run]
    speedup: float

    @property
    def curve(self) -> np.ndarray:
        """Test losses, mean over the seeds, [tests]; the best so far, for a curve that can be read off."""
        return np.minimum.accumulate(np.mean([run.losses for run in self.runs], axis=0))

    def extra_tokens(self, synchronous: Row | None) -> float | None:
        """Tokens for the final loss, over those that ``synchronous`` needs for it; at least as many are not known."""
        if synchronous is None:
            return None
        tokens, reached = np.array(self.runs[0].tokens, float), synchronous.curve
        if self.curve[-1] <= reached[-1]:
            return 1.0
        # Losses fall, np.interp wants a rise.
        return tokens[-1] / float(np.interp(-self.curve[-1], -reached, tokens))


class Bench:
    """A text, a network, and the methods to compare on them."""

    def __init__(self, asked: Asked, devices: Sequence[jax.Device]):
        self.asked, self._devices = asked, devices
        self.data = jd.data.load_text(
            asked.text,
            context=asked.context,
            tokens=asked.tokens,
            data_dir=asked.data_dir or None,
            most_test=asked.test_sequences,
        )
        self._sample = jax.ShapeDtypeStruct((asked.batch_size, asked.context), np.dtype(np.int32))
        self._stages = jd.partition(asked.network(self.data.vocab_size), asked.num_stages, sample=self._sample)
        self._plain: dict[tuple[str, float, int], jd.Pipeline] = {}

    def __str__(self) -> str:
        asked, cut = self.asked, " + ".join(str(stage.num_layers) for stage in self._stages)
        return (
            f"GPT of {asked.layers} blocks, width {asked.width}, {cut} layers, on {self.data.name}: "
            f"{len(self.data.tokens)} tokens of {self.data.vocab_size}; {asked.updates} updates of "
            f"{asked.batch_size * asked.context} tokens"
        )

    def compare(self, output: Workdir) -> list[list[str]]:
        """Trains every row at every rate from every seed, and writes the results; the table."""
        asked, rows = self.asked, []
        total = len(asked.rows) * len(asked.rates) * asked.seeds * asked.updates
        with command_line.bar(total, "update") as bar:
            for label in asked.rows:
                bar.set_description(label)
                rows.append(self._row(label, bar.update))
        table = as_table(rows)
        output.write("table.md", tables.markdown(table) + "\n")
        output.write_json("results.json", [_as_json(row) for row in rows])
        output.write("sample.txt", self.sampled(rows[0]) + "\n")
        with drawing():
            _draw(rows, output.file("curves.png"), str(self))
        return table

    def _row(self, label: str, on_update: Callable[[], Any]) -> Row:
        asked, found = self.asked, {}
        for rate in asked.rates:
            found[rate] = [self.train(label, rate, seed, on_update) for seed in range(asked.seeds)]
        best = min(found, key=lambda rate: np.mean([run.losses[-1] for run in found[rate]]))
        return Row(label, best, found[best], self.speedup(label.split()[0]))

    def train(self, label: str, rate: float, seed: int, on_update: Callable[[], Any] = lambda: None) -> Run:
        """One run of a row."""
        asked, pipeline = self.asked, self.pipeline(label, rate)
        every = self._micro_batches(label)
        state = pipeline.init(jax.random.key(seed), self._sample)
        run = Run([], [], state)
        for update, batch in enumerate(itertools.islice(self._batches(seed), asked.updates), 1):
            for part in _parts(batch, every):
                state, _ = pipeline.step(state, part)
            if update % asked.test_every == 0 or update == asked.updates:
                run.tokens.append(update * asked.batch_size * asked.context)
                run.losses.append(self.loss(pipeline, state))
            on_update()
        return dataclasses.replace(run, state=pipeline.flush(state))

    def loss(self, pipeline: jd.Pipeline, state: State) -> float:
        """On the test sequences, with the weights of the moment."""
        return pipeline.evaluate(state, self.data.test_batches(min(32, self.data.num_test))).loss

    def pipeline(self, label: str, rate: float) -> jd.Pipeline:
        """The pipeline of a row."""
        method, _, optimizer = label.partition(" ")
        schedule, every = self.schedule(method), self._micro_batches(label)
        kind = optimizer, rate, every
        if method in _PLAIN and kind in self._plain:
            return self._plain[kind].with_schedule(schedule)  # what is compiled for one serves all
        levels = [max(each) for each in schedules.staleness(schedule, every)]
        rising = optax.linear_schedule(0.0, rate, self.asked.warmup)
        falling = optax.cosine_decay_schedule(rate, max(1, self.asked.updates - self.asked.warmup), 0.1)
        rates = optax.join_schedules([rising, falling], [self.asked.warmup])

        def for_stage(k: int, num_stages: int) -> optax.GradientTransformation:
            if method == "pipemare":
                slow = jd.delayed_learning_rate(rates, levels[k], self.asked.updates // 4)
                return jd.correct_weights(_OPTIMIZERS[optimizer](slow), levels[k])
            inner = _OPTIMIZERS[optimizer](rates)
            return jd.predict_weights(inner, levels[k]) if method == "predicted" else inner

        optimizers = jd.stagewise(for_stage, accumulate=every)
        metrics = jd.language_metrics(self.data.bytes_per_token)
        pipeline = jd.Pipeline(self._stages, schedule, optimizer=optimizers, metrics=metrics, devices=self._devices)
        if method in _PLAIN:
            self._plain[kind] = pipeline
        return pipeline

    def schedule(self, method: str) -> Schedule:
        """What a method trains with; 1F1B's micro-batches add up to plain training, so it trains as that."""
        return _SCHEDULES[method](self.asked.num_stages)

    def speedup(self, method: str) -> float:
        """Over one device; 1F1B with its micro-batches."""
        K = self.asked.num_stages
        rounds = schedules.one_forward_one_backward(K, self.asked.chunks)
        schedule = rounds if method == SYNCHRONOUS else self.schedule(method)
        return jd.timeline(schedule, Times(forward=[1.0] * K, backward=[2.0] * K)).speedup

    def sampled(self, row: Row) -> str:
        """Text that a row's model goes on with, from the beginning of the test part."""
        pipeline = self.pipeline(row.label, row.rate)
        x, _ = next(iter(self.data.test_batches(1)))
        context, state = self.data.context, row.runs[0].state
        prompt, settings = x[:, : -(-context // 2)], {"key": jax.random.key(0), "context": context, "temperature": 0.8}
        tokens = jd.sample_tokens(pipeline, state, prompt, self.asked.sample, **settings)
        if self.data.tokenizer is None:
            return " ".join(map(str, tokens[0].tolist()))
        return self.data.tokenizer.decode(tokens[0])

    def _batches(self, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for epoch in itertools.count():
            yield from self.data.train_batches(self.asked.batch_size, seed=seed, epoch=epoch, drop_last=True)

    def _micro_batches(self, label: str) -> int:
        return self.asked.chunks if label.startswith("paci") else 1


_SCHEDULES: Mapping[str, Callable[[int], Schedule]] = {
    SYNCHRONOUS: schedules.backprop,
    "pipedream": schedules.pipedream,
    "fdg": schedules.fdg,
    "predicted": schedules.pipedream,
    "pipemare": lambda num_stages: schedules.pipedream(num_stages, weights="latest"),
    "paci": schedules.paci,
}
_PLAIN = (SYNCHRONOUS, "pipedream", "fdg", "paci")  # whose optimizers do not depend on the schedule
_OPTIMIZERS: Mapping[str, Callable[[optax.Schedule], optax.GradientTransformation]] = {
    "adamw": lambda rate: optax.adamw(rate, b1=0.9, b2=0.99, weight_decay=0.01),
    "nadam": lambda rate: jd.nadam(rate, b1=0.99, b2=0.999, weight_decay=0.01),
    "rotated": lambda rate: jd.rotated_adam(rate, b1=0.9, b2=0.999, weight_decay=0.01),
    "muon": lambda rate: jd.muon(lambda t: 10 * rate(t), adam_learning_rate=rate, weight_decay=0.01),
}


def as_table(rows: Sequence[Row]) -> list[list[str]]:
    """One line for each row, under a heading."""
    synchronous = {row.label.split()[1]: row for row in rows if row.label.startswith(SYNCHRONOUS)}
    other = next(iter(synchronous.values()), None)
    lines = [["method", "rate", "loss", "extra tokens", "predicted speed-up", "net gain"]]
    for row in rows:
        optimizer = row.label.split()[1]
        extra = row.extra_tokens(synchronous.get(optimizer, other))
        mean, spread = tables.mean_and_spread([run.losses[-1] for run in row.runs])
        lines.append(
            [
                row.label,
                f"{row.rate:g}",
                f"{mean:.3f}" + (f" ± {spread:.3f}" if len(row.runs) > 1 else ""),
                "-" if extra is None else f"{extra:.2f}",
                f"{row.speedup:.2f}",
                "-" if extra is None else f"{row.speedup / extra:.2f}",
            ]
        )
    return lines


def _parts(batch: tuple[np.ndarray, np.ndarray], every: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    x, y = (np.split(each, every) for each in batch)
    return zip(x, y, strict=True)


def _as_json(row: Row) -> dict[str, Any]:
    runs = [{"tokens": run.tokens, "losses": run.losses} for run in row.runs]
    return {"label": row.label, "rate": row.rate, "speedup": row.speedup, "runs": runs}


def _draw(rows: Sequence[Row], path: Any, title: str) -> None:
    """Test losses over tokens, and over time as the timeline has it."""
    matplotlib.use("Agg")
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    over_tokens, over_time = figure.subplots(1, 2)
    for row in rows:
        tokens, losses = np.array(row.runs[0].tokens), np.mean([run.losses for run in row.runs], axis=0)
        over_tokens.plot(tokens, losses, label=row.label, linewidth=1.4)
        over_time.plot(tokens / row.speedup, losses, label=row.label, linewidth=1.4)
    over_tokens.set(xlabel="tokens", ylabel="test loss (nats per token)")
    over_time.set(xlabel="time, as tokens of one device (tokens / predicted speed-up)")
    for panel in (over_tokens, over_time):
        panel.grid(alpha=0.3)
    over_time.legend()
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=120)
