"""Solves a problem with one of the asynchronous methods, or with what they are compared with.

    python -m experiments.asynchronous --method=dis_dfsdca --problem=ridge --data=digits --l2=0.1 --workers=4

The directory gets config.json, metrics.jsonl, summary.json and curves.png.
"""

from __future__ import annotations

from experiments import cli as command_line
from experiments.asynchronous import program

if __name__ == "__main__":
    program.define_flags()
    command_line.start(program.main)
