"""What every program does with the command line, as processes: flags, help, pipes, signals."""

import contextlib
import dataclasses
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import types

import pytest

from experiments import cli
from experiments.training.config import Config

ROOT = pathlib.Path(__file__).parents[2]


def run(*arguments, **settings):
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, **settings)


@pytest.mark.parametrize("flag", ["--help", "--helpfull"])
def test_help_shows_every_setting_at_once(flag):
    began = time.monotonic()
    done = run("experiments.train", flag)
    assert done.returncode == 0 and time.monotonic() - began < 5  # JAX alone takes longer where this takes one
    shown = {word.strip(":,").removeprefix("--").removeprefix("[no]") for word in done.stdout.split()}
    assert {field.name for field in dataclasses.fields(Config)} - shown == set()
    common = done.stdout.index("--method:") < done.stdout.index("--num_stages:") < done.stdout.index("--learning_rate:")
    assert common and ("--decay_power:" in done.stdout) == (flag == "--helpfull")


@pytest.mark.parametrize(("program", "flag"), [("train", "--method"), ("papers", "--row")])
def test_help_needs_no_jax(program, flag):
    code = (
        f"import sys, runpy; sys.argv[1:] = ['--help']; runpy.run_module('experiments.{program}', run_name='__main__')"
    )
    watched = f"import os, sys; os._exit = lambda s: sys.exit('flax' in sys.modules or 'numpy' in sys.modules)\n{code}"
    done = subprocess.run([sys.executable, "-c", watched], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0 and flag in done.stdout, done.stderr


def test_help_of_no_program_waits_for_slow_packages():
    files = {path: path.read_text().partition("\nif __name__ ==") for path in (ROOT / "experiments").rglob("*.py")}
    programs = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts) for path, (*_, end) in files.items() if ".start(" in end
    ]
    assert len(programs) > 25
    slow = {"flax.linen", "optax.transforms", "orbax.checkpoint", "scipy.sparse", "sklearn.utils"}
    code = f"""
import importlib, sys
for name in {programs}:
    importlib.import_module(name)
    assert not {slow} & set(sys.modules), name
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_what_a_failed_save_says_later_is_not_said_again(monkeypatch):
    heard = []
    monkeypatch.setattr(sys, "__unraisablehook__", heard.append)
    reports = [types.SimpleNamespace(exc_value=RuntimeError(text)) for text in ("Event loop is closed", "another")]
    for report in reports:
        cli._unraisable(report)
    assert heard == reports[1:]


def test_ctrl_c_ends_a_program_quietly_before_it_has_begun():
    heard = "signal.signal(signal.SIGINT, signal.default_int_handler)"  # even if the tests run where it is ignored
    begin = f"import os, signal, sys; {heard}; sys.argv = ['-m']; import experiments"
    stop = "os.kill(os.getpid(), signal.SIGINT)"
    frame = "from absl import flags; flags.FLAGS(['program'])\nfrom experiments import cli"
    framed = f"{begin}\n{frame}\nwith cli.frame(['program'], interrupted='nothing was written'): {stop}"
    ends = []
    for code in (f"{begin}; {stop}", framed):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
        ends.append((done.returncode, done.stderr))
    assert ends == [(-signal.SIGINT, ""), (128 + signal.SIGINT, "\ninterrupted; nothing was written\n")]


def test_each_line_is_written_at_once():
    code = "import os; from experiments import cli\ncli.start(lambda argv: (print('first'), os._exit(0)))"
    settings = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=settings)
    assert done.stdout == "first\n", done.stderr


def test_nobody_need_read_on():
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as gone:
        done = subprocess.run(
            [sys.executable, "-m", "experiments.train", "--help"],
            stdout=gone,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert done.returncode == 0 and done.stderr == ""
        code = "from absl import flags; from experiments import cli\n"
        code += "flags.FLAGS(['x'])\nwith cli.frame([], interrupted=''): print('x')"
        done = subprocess.run([sys.executable, "-c", code], stdout=gone, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        assert done.returncode == 128 + signal.SIGPIPE and done.stderr == ""


def test_refuses_without_a_traceback(tmp_path):
    done = run("experiments.train", "--method=fgd", f"--workdir={tmp_path / 'x'}")
    assert done.returncode == 1 and not (tmp_path / "x").exists()
    assert done.stderr.startswith("error: unknown method 'fgd'; did you mean 'fdg'") and "Traceback" not in done.stderr


def test_closed_streams_are_no_fault():
    code = "import os, sys; sys.stdout = sys.stderr = None; from experiments import cli\n"
    code += "cli.start(lambda argv: (print('x'), print('y', file=sys.stderr), os._exit(7)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 7


def test_other_errors_keep_their_traceback(monkeypatch):
    monkeypatch.setattr(cli.flags, "FLAGS", Arguments())
    with pytest.raises(RuntimeError, match="a fault of ours"), cli.frame(["x"], interrupted=""):
        raise RuntimeError("a fault of ours")


class Arguments:
    """Stands in for the flags."""

    def __getitem__(self, name):
        return self

    present = True


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (KeyboardInterrupt(), 130, "interrupted; nothing was written"),
        (PermissionError(13, "Permission denied", "runs/x"), 1, "error: .*Permission denied.*; allow this user"),
        (OSError(36, "File name too long", "aaa"), 1, "error: .*too long.*; write a shorter path"),
        (OSError(28, "No space left on device"), 1, "error: .*No space left.*; free some space, and give the same"),
        (IsADirectoryError(21, "Is a directory", "runs"), 1, "error: .*Is a directory.*; write another path"),
        (MemoryError("Unable to allocate 9. EiB"), 1, "error: there is not enough memory .*9. EiB.*; write smaller"),
        (RuntimeError("Could not determine home directory."), 1, "error: .*home directory; write a whole path"),
        (RuntimeError("RESOURCE_EXHAUSTED: 9 EiB\nmore"), 1, "error: RESOURCE_EXHAUSTED: 9 EiB; write a smaller --b"),
    ],
    ids=["Ctrl-C", "permission", "long", "full", "directory", "memory", "home", "device"],
)
def test_what_goes_wrong_is_said_in_one_line(error, status, says, monkeypatch, capsys):
    monkeypatch.setattr(cli.flags, "FLAGS", Arguments())
    with pytest.raises(SystemExit) as left, cli.frame(["x"], interrupted="nothing was written"):
        raise error
    message = capsys.readouterr().err if isinstance(left.value.code, int) else left.value.code
    assert pytest.approx(status) == (left.value.code if isinstance(left.value.code, int) else 1)
    assert re.search(says, message) and message.strip().count("\n") == 0


def test_progress_is_shown_without_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(cli, "SECONDS", 1e-9)
    with contextlib.closing(cli.bar(3, "batch", initial=1)) as bar:
        for _ in range(2):
            bar.set_postfix(loss="1.5", refresh=False)
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and lines[0].startswith("2 of 3 after") and "loss=1.5" in lines[0] and "3 of 3" in lines[1]
    assert not any("\r" in line for line in lines)
