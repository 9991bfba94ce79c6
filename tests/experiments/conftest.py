"""Programs called as a user calls them, but in this process: where it is not the process that is tested."""

import dataclasses
import sys

import pytest
from absl import flags

from experiments import cli, devices
from experiments.training import trainer


@pytest.fixture(autouse=True, scope="module")
def compiled_programs_are_kept():
    """Those of a finished run serve the next one of its kind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "_PIPELINES", {})
        yield


@dataclasses.dataclass
class Done:
    """What a program left: its exit status, and what it wrote."""

    status: int
    stdout: str
    stderr: str


@pytest.fixture
def call(monkeypatch, capsys):
    """``call(module, "--flag=value", ...)`` runs a program of experiments/ with these flags."""

    def run(module, *arguments):
        values = flags.FlagValues()
        with monkeypatch.context() as patch:
            for loaded in [loaded for name, loaded in sys.modules.items() if name.startswith("experiments")]:
                if hasattr(loaded, "FLAGS"):
                    patch.setattr(loaded, "FLAGS", values)
            patch.setattr(flags, "FLAGS", values)
            for name in ("request", "compile_once"):  # JAX runs already
                patch.setattr(devices, name, lambda *args: None)
            for kind in ("string", "integer", "float", "bool", "list", "enum", "multi_string"):
                define = getattr(flags, f"DEFINE_{kind}")
                patch.setattr(flags, f"DEFINE_{kind}", _with_values(define, values))
            flags.DEFINE_integer("verbosity", 0, "as absl's")
            module.define_flags()
            status, message = 0, ""
            try:
                module.main(cli.parse(["program", *arguments], values))
            except SystemExit as stopped:
                status = stopped.code if isinstance(stopped.code, int) else 1
                message = "" if isinstance(stopped.code, int) else f"{stopped.code}\n"
        written = capsys.readouterr()
        return Done(status, written.out, written.err + message)

    return run


def _with_values(define, values):
    return lambda *args, **settings: define(*args, flag_values=values, **settings)
