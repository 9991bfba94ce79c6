"""Compares pipelines on a language model: what staleness costs in tokens, against what it gains in speed.

    python -m experiments.language_models
    python -m experiments.language_models --scale=small --text=text:shakespeare.txt.xz --tokens=characters

Every method trains the same GPT on the same batches, cut into K stages; the learning rate is the best of those given.
`1f1b` is the synchronous one, plain training. The table says for each method

* its loss on test sequences, in nats per token;
* extra tokens: how many tokens it needs for that loss, over how many the synchronous method needs, with the same
  optimizer if that is among the rows (read off its curve);
* the speed-up over one device that its schedule has, by the timeline: equal stages, backward twice as long as forward,
  free transfers, and for 1F1B `--chunks` micro-batches in each batch;
* net gain: speed-up over extra tokens. A method pays where that is above the synchronous one's.

By default: the reference texts that come with Python (pydoc), bytes, four blocks of width 64, K = 4, three methods, in
about a minute and a half on two cores. The directory gets results.json, table.md, curves.png and sample.txt.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from absl import flags

import jaxdecouple as jd
from experiments import cli as command_line
from experiments.report.workdir import Workdir
from experiments.settings import Settings, define, option, read

FLAGS = flags.FLAGS
METHODS = ("1f1b", "pipedream", "fdg", "predicted", "pipemare", "paci")
OPTIMIZERS = ("adamw", "nadam", "muon", "rotated")
SCALES = {
    "demo": {},
    "small": {
        "layers": 8,
        "width": 128,
        "heads": 4,
        "batch_size": 12,
        "updates": 3000,
        "warmup": 100,
        "rates": (3e-4, 1e-3, 3e-3),
        "seeds": 3,
        "rows": tuple(f"{method} {optimizer}" for optimizer in OPTIMIZERS for method in METHODS),
    },
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked(Settings):
    """What is compared. A scale gives other defaults."""

    text: str = option("pydoc", "pydoc, text:FILE or tokens:FILE.npy", group="network and data")
    tokens: str = option("bytes", "bytes, characters, or the file of a tokenizer")
    data_dir: str = option("", "where FILEs start; empty: here")
    context: int = option(64, "tokens of a sequence", least=1)
    layers: int = option(4, "transformer blocks, cut in halves where stages need it", least=1)
    width: int = option(64, "channels", least=1)
    heads: int = option(4, "of the attention", least=1)
    num_stages: int = option(4, "K, stages, one device each", least=1, group="methods")
    rows: tuple[str, ...] = option(
        ("1f1b adamw", "pipedream adamw", "pipedream nadam"),
        f"methods and optimizers: {', '.join(METHODS)}; {', '.join(OPTIMIZERS)}",
        example="1f1b adamw,fdg nadam",
    )
    rates: tuple[float, ...] = option((3e-3,), "learning rates to choose from, by the test loss", above=0)
    chunks: int = option(16, "1f1b, paci: micro-batches of a batch", least=1)
    batch_size: int = option(16, "sequences of an update", least=1, group="training")
    updates: int = option(200, "of each run", least=10)
    warmup: int = option(20, "updates with a rising rate", least=0)
    seeds: int = option(1, "runs of each method, seeds 0, 1, ...", least=1)
    test_every: int = option(25, "updates between two tests", least=1)
    test_sequences: int = option(64, "sequences of a test", least=1)
    sample: int = option(200, "tokens to draw from the first method's model at the end", least=0)

    def check(self) -> None:
        """Refuses rows that are none; ranges have been checked."""
        for row in self.rows:
            method, _, optimizer = row.partition(" ")
            if method not in METHODS or optimizer not in OPTIMIZERS:
                raise ValueError(
                    f"rows has {row!r}; write a method of {', '.join(METHODS)}, a space, and an optimizer of "
                    f"{', '.join(OPTIMIZERS)}"
                )
        if any(row.startswith("paci") for row in self.rows) and self.batch_size % self.chunks:
            raise ValueError(
                f"batch_size is {self.batch_size} and chunks is {self.chunks}; paci needs batches that micro-batches "
                "divide"
            )
        if self.warmup >= self.updates:
            raise ValueError(f"warmup is {self.warmup}, but there are {self.updates} updates; write less")
        if self.num_stages > (most := len(self.network(256))):  # before a schedule of so many is made
            raise ValueError(
                f"num_stages is {self.num_stages}, but {self.layers} layers can be cut into {most} stages at most; "
                "write that many, or more --layers"
            )

    def network(self, vocab_size: int) -> list[Any]:
        """The GPT, for so many tokens."""
        sizes = {"layers": self.layers, "width": self.width, "heads": self.heads, "context": self.context}
        return jd.models.gpt(vocab_size, **sizes, split_blocks=True)


def define_flags() -> None:
    """The flags of this program. Not at import: its functions serve other programs too."""
    define(Asked)
    flags.DEFINE_enum("scale", "demo", list(SCALES), "defaults: demo, or small, hours on two cores")
    command_line.define_workdir()


def main(argv: list[str]) -> None:
    start = time.perf_counter()
    with command_line.frame(argv, interrupted="nothing was written"):
        for name, value in SCALES[FLAGS.scale].items():
            if not FLAGS[name].present:
                FLAGS[name].value = value if not isinstance(value, tuple) else [str(item) for item in value]
        asked = read(Asked)
        from experiments import devices  # not before: --help need not wait for JAX
        from experiments.measure import language
        from experiments.report import tables

        workdir = command_line.workdir("language_models")
        devices.request(asked.num_stages)
        devices.compile_once()
        bench = language.Bench(asked, devices.of_stages(asked.num_stages, share=True))
        print(bench)
        output = Workdir(workdir, dataclasses.asdict(asked), overwrite=FLAGS.overwrite)
        rows = bench.compare(output)
        print(f"\n{tables.text(rows)}\n")
        print(f"{time.perf_counter() - start:.0f} s; pictures, table, numbers and a sample are in {output.path}")


if __name__ == "__main__":
    define_flags()
    command_line.start(main)
