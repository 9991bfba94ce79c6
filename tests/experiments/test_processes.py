"""Training in two processes: one is killed, and the same command goes on to what one process gives."""

import importlib.metadata
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import pytest

from experiments.compare import Asked, configs
from experiments.devices import of_stages
from experiments.training import processes
from experiments.training.config import Config
from experiments.training.launching import Processes, free_port, watch, with_cores_of_their_own
from experiments.training.session import train
from experiments.training.trainer import Trainer
from jaxdecouple.data import load
from tests.oracles.transfers import needs_transfers

ROOT = pathlib.Path(__file__).parents[2]
PROCESS = {"cwd": ROOT, "env": {**os.environ, "PYTHONPATH": str(ROOT)}, "text": True}
SETTINGS = {"model": "mlp", "num_stages": 2, "epochs": 3, "batch_size": 50, "dataset": "digits", "method": "fdg"}


def command(workdir, **changes):
    flags = {**SETTINGS, "processes": 2, "patience": 10, "save_every": 4, "workdir": workdir, **changes}
    return [sys.executable, "-P", "-m", "experiments.train", *(f"--{name}={value}" for name, value in flags.items())]


def workers(watcher):
    children = pathlib.Path(f"/proc/{watcher.pid}/task/{watcher.pid}/children")
    return [int(pid) for pid in children.read_text().split()]


@needs_transfers
def test_a_killed_process_ends_all_and_the_same_command_goes_on(tmp_path):
    joint, alone = tmp_path / "joint", tmp_path / "alone"
    watcher = subprocess.Popen(command(joint), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, **PROCESS)
    while watcher.poll() is None and not any((joint / "checkpoints").glob("tick-????????")):
        time.sleep(0.02)
    os.kill(workers(watcher)[0], signal.SIGKILL)
    killed = time.monotonic()
    lines = watcher.communicate(timeout=60)[1].splitlines()
    assert watcher.returncode == 128 + signal.SIGKILL and time.monotonic() - killed < 30
    said = [line for line in lines if line.startswith("process")]
    assert len(said) == 2, lines
    assert said[0].startswith("process 0 (stage 0) was ended by SIGKILL; the same command goes on from ")
    assert said[1].startswith("process 1 (stage 1) stopped")

    again = subprocess.run(command(joint), capture_output=True, timeout=120, **PROCESS)
    assert again.returncode == 0, again.stderr
    assert "going on after" in again.stdout and again.stdout.count("epoch") <= SETTINGS["epochs"]
    train(Config(**SETTINGS), alone)
    for name in ("metrics.jsonl", "model.msgpack"):
        assert (joint / name).read_bytes() == (alone / name).read_bytes()
    ours, theirs = (json.loads((path / "summary.json").read_text()) for path in (joint, alone))
    assert {name: ours[name] for name in ours if name != "devices"} == {n: theirs[n] for n in theirs if n != "devices"}


@needs_transfers
def test_a_signal_to_one_process_saves_and_ends_all_in_one_tick(tmp_path):
    watcher = subprocess.Popen(
        command(tmp_path / "run", epochs=10_000), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, **PROCESS
    )
    while watcher.poll() is None and not any((tmp_path / "run" / "checkpoints").glob("tick-????????")):
        time.sleep(0.02)
    os.kill(workers(watcher)[0], signal.SIGTERM)
    lines = watcher.communicate(timeout=60)[1].splitlines()
    assert watcher.returncode == 128 + signal.SIGTERM, lines
    (said,) = [line for line in lines if line.startswith("stopped by SIGTERM")]
    newest = max((tmp_path / "run" / "checkpoints").glob("tick-????????"))
    assert f"after {int(newest.name[5:])} batches; all of them are saved" in said and str(newest) in said
    assert sorted(part.name for part in newest.iterdir() if part.is_dir()) == ["process_0", "process_1"]


@pytest.mark.parametrize("index", [0, 1])
def test_a_process_that_nobody_meets_says_so(index, tmp_path):
    address = f"127.0.0.1:{free_port()}"
    alone = command(tmp_path / "run", process=index, coordinator=address, patience=0.5)
    done = subprocess.run(alone, capture_output=True, timeout=60, **PROCESS)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: process {index} of 2 could not meet the others at {address} within 1.5 s")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"processes": 2, "process": 2, "coordinator": "h:1"}, "process is 2, but processes is 2; write --process of"),
        ({"processes": 2, "process": 0}, "process and coordinator belong together"),
        ({"processes": 2, "coordinator": "h:1"}, "process and coordinator belong together"),
        ({"processes": 2, "process": 0, "coordinator": "host"}, "coordinator is 'host'; write HOST:PORT"),
        ({"patience": 0.0}, "patience is 0.0; write a number above 0"),
    ],
)
def test_processes_that_cannot_meet_are_refused(given, says):
    with pytest.raises(ValueError, match=says):
        Processes(**given)


def test_stages_that_processes_cannot_share_are_refused(tmp_path):
    with pytest.raises(ValueError, match="num_stages is 3, which 2 processes cannot share evenly"):
        watch(Processes(processes=2), 3, tmp_path)


@pytest.mark.parametrize("settings", [{"method": "auto"}, {"diagnose_every": 5}])
def test_what_needs_single_devices_is_refused_on_groups(settings, tmp_path):
    name = next(iter(settings))
    with pytest.raises(ValueError, match=f"{name} is .*, which needs one process and one device per stage"):
        train(Config(**{**SETTINGS, **settings}), tmp_path / "run", group_size=2)
    assert not (tmp_path / "run").exists()


def test_a_group_for_each_stage_trains_as_single_devices_do(tmp_path):
    for size in (1, 2):  # the last batch of an epoch has 37 images
        train(Config(**{**SETTINGS, "epochs": 1}), tmp_path / str(size), group_size=size)
    losses = [json.loads((tmp_path / size / "metrics.jsonl").read_text())["train_loss"] for size in "12"]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@needs_transfers
def test_a_comparison_has_a_process_for_each_stage(tmp_path):
    flags = {"model": "mlp", "methods": "fdg beta=0.5", "epochs": 1, "seeds": 1, "repeats": 1, "processes": 2}
    program = [sys.executable, "-P", "-m", "experiments.compare", f"--workdir={tmp_path / 'run'}"]
    done = subprocess.run(
        [*program, *(f"--{name}={value}" for name, value in flags.items())], capture_output=True, timeout=120, **PROCESS
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 processes with cores of their own") == 1 and done.stdout.count("vs BP") == 1
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["processes"] == 2 and list(results["methods"]) == ["backprop", "fdg beta=0.5"]
    assert min(rate for row in results["methods"].values() for rate in row["images_per_second"]) > 0
    alone = Trainer(configs(Asked(model="mlp", epochs=1).config())["fdg beta=0.5"], load("digits"), of_stages(2))
    assert alone.run(0).test_error == results["methods"]["fdg beta=0.5"]["test_errors"][0]
    assert (tmp_path / "run" / "table.md").is_file() and (tmp_path / "run" / "curves.png").is_file()


@needs_transfers
def test_what_all_refuse_is_said_once_wherever_the_programs_lie(tmp_path):
    elsewhere = {name: value for name, value in PROCESS["env"].items() if name != "PYTHONPATH"}
    program = [sys.executable, "-m", "experiments.compare", "--batch_size=4000", "--model=mlp", "--processes=2"]
    program.append(f"--workdir={tmp_path / 'run'}")
    done = subprocess.run(program, capture_output=True, timeout=120, **{**PROCESS, "env": elsewhere})
    assert done.returncode == 1 and done.stderr.startswith("error: batch_size 4000 exceeds")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("platforms", "cores", "plugin", "version", "count"),
    [
        ("", 4, False, "0.12.0", 3),
        ("cpu", 4, True, "0.13", 3),
        ("", 4, True, "0.12.0", 1),
        ("cuda", 4, False, "0.12.0", 1),
        ("cpu", 2, False, "0.12.0", 1),
        ("cpu", 4, False, "0.10.2", 1),
    ],
)
def test_stages_have_processes_where_each_can_have_a_core(monkeypatch, platforms, cores, plugin, version, count):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    if platforms:
        monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if plugin and name == "libtpu" else None)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    assert with_cores_of_their_own(3) == count


@needs_transfers
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_comparison_that_is_interrupted_leaves_nothing(tmp_path, signum):
    program = [sys.executable, "-P", "-m", "experiments.compare", f"--workdir={tmp_path / 'run'}", "--model=mlp"]
    environment = {**PROCESS["env"], "TMPDIR": str(tmp_path)}
    watcher = subprocess.Popen(program, stderr=subprocess.PIPE, **{**PROCESS, "env": environment})
    while watcher.poll() is None and not (len(workers(watcher)) == 2 and list(tmp_path.glob("jaxdecouple-*"))):
        time.sleep(0.02)
    time.sleep(1)
    children = workers(watcher)
    watcher.send_signal(signum)
    said = watcher.communicate(timeout=20)[1].splitlines()
    assert watcher.returncode == 128 + signum and said[-1] == f"{signum.name}: nothing was measured"
    assert [path for path in tmp_path.iterdir() if path.name.startswith("jaxdecouple")] == []
    assert not any(pathlib.Path(f"/proc/{child}/cwd").exists() for child in children)


def test_who_loses_a_neighbour_in_a_transfer_waits_for_the_word_on_it(monkeypatch):
    waited, written = [], []
    monkeypatch.setattr(processes.time, "sleep", waited.append)
    monkeypatch.setattr(processes.processes, "write", lambda key, value: written.append(key))
    monkeypatch.setenv("JAXDECOUPLE_STAGES", "1")
    for text in ("INTERNAL: SocketServer: Connection closed recv() == 0.", "RESOURCE_EXHAUSTED: out of memory"):
        signs = processes._SignsOfLife(1, 2, 7.0)
        signs.__exit__(None, jax.errors.JaxRuntimeError(text), None)
    assert waited == [8.0] and len(written) == 2
