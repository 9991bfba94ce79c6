"""What every program does with the command line."""

import dataclasses
import pathlib
import subprocess
import sys

from experiments.training.config import Config

ROOT = pathlib.Path(__file__).parents[2]


def test_help_shows_every_setting():
    done = subprocess.run(
        [sys.executable, "-m", "experiments.train", "--help"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    shown = {word.strip(":").removeprefix("--").removeprefix("[no]") for word in done.stdout.split()}
    assert {field.name for field in dataclasses.fields(Config)} - shown == set()
