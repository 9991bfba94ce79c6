"""Signals that end a program that trains: the first is noted, a second ends it at once; a terminal may go away."""

import functools
import os
import pathlib
import pty
import signal
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def test_two_signals_end_the_program_at_once(tmp_path):
    code = """
import os, signal, sys
from experiments.training.stopping import StopRequest
with StopRequest() as stop:
    os.kill(os.getpid(), signal.SIGTERM)
    print("asked", stop.signum, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    print("still here", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGTERM and done.stdout == f"asked {signal.SIGTERM.value}\n"


HUNG_UP = """
import fcntl, signal, sys, termios, time
fcntl.ioctl(1, termios.TIOCSCTTY, 0)
if sys.argv[1] == "nohup":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
from experiments.training.stopping import StopRequest
with StopRequest() as stop:
    print("ready", flush=True)
    for _ in range(100 if sys.argv[1] == "heard" else 10):
        time.sleep(0.05)
        if stop.signum:
            break
    with open(sys.argv[2], "w") as file:
        print(stop.signum, file=file)
    if sys.argv[1] == "heard":
        print("saved", flush=True)
    open(sys.argv[2] + ".end", "w")
"""


@pytest.mark.parametrize("how", ["heard", "nohup"])
def test_a_terminal_that_goes_away(how, tmp_path):
    """The kernel sends SIGHUP, and what is written from then on fails; under nohup nothing happens."""
    terminal, end = pty.openpty()
    command = [sys.executable, "-c", HUNG_UP, how, str(tmp_path / "signal")]
    # The tests themselves may run under nohup.
    usual = functools.partial(signal.signal, signal.SIGHUP, signal.SIG_DFL)
    files = {"stdin": end, "stdout": end, "stderr": end}
    child = subprocess.Popen(command, **files, cwd=ROOT, start_new_session=True, preexec_fn=usual)
    os.close(end)
    shown = b""
    while not shown.endswith(b"ready\r\n"):
        shown += os.read(terminal, 100)
    os.close(terminal)
    assert child.wait(20) == 0
    assert (tmp_path / "signal").read_text() == ("None\n" if how == "nohup" else f"{signal.SIGHUP.value}\n")
    assert (tmp_path / "signal.end").exists()
