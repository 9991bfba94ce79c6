"""A run's directory: who may write in it, and which run goes on in it."""

import dataclasses
import json
import subprocess
import sys

import pytest

from experiments.training.config import Config
from experiments.training.run_directory import RunDirectory, Standing, check_free, config_of, default_path, standing

CONFIG = Config(model="mlp", p=(1, 0), m=(2, 0), method="dsp")


def test_a_run_goes_from_new_to_finished(tmp_path):
    path = tmp_path / "runs" / "one"
    assert standing(path, CONFIG) is Standing.NEW
    with RunDirectory(path, CONFIG) as files:
        assert files.standing is Standing.NEW
    assert standing(path, CONFIG) is Standing.BEGUN
    with RunDirectory(path, CONFIG) as files:
        assert files.standing is Standing.BEGUN
        files.write_json("summary.json", {})
    assert standing(path, CONFIG) is Standing.FINISHED


def test_what_a_program_leaves_that_was_killed_at_once_is_nothing(tmp_path):
    (tmp_path / "lock").touch()
    (tmp_path / "config.json.partial").write_text("{")
    assert standing(tmp_path, CONFIG) is Standing.NEW
    with RunDirectory(tmp_path, CONFIG):
        assert config_of(json.loads((tmp_path / "config.json").read_text())) == CONFIG


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            dataclasses.asdict(dataclasses.replace(CONFIG, beta=0.5, epochs=3)),
            "epochs is 3 there and 10 here; beta",
        ),
        ({"kills": 3}, "that of another program"),
        ("{", "config.json cannot be read"),
    ],
    ids=["settings", "program", "damaged"],
)
def test_another_run_is_never_touched(content, says, tmp_path):
    (tmp_path / "config.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=f"holds another run: .*{says}.*--overwrite to replace it"):
        RunDirectory(tmp_path, CONFIG)
    check_free(tmp_path)  # and nobody is kept out
    with pytest.raises(ValueError, match=r"has no files.txt, which says what --overwrite may delete"):
        RunDirectory(tmp_path, CONFIG, overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} <= {"config.json", "lock", "lock.owner"}


def test_only_what_was_listed_is_deleted(tmp_path):
    """Not what others put there, not what a link leads to, and nothing outside, whatever the list says."""
    (tmp_path / "elsewhere").mkdir()
    for name in ("elsewhere/kept", "outside"):
        (tmp_path / name).write_text("years")
    run = tmp_path / "run"
    with RunDirectory(run, CONFIG) as files:
        files.write_json("summary.json", {})
        files.file("checkpoints").mkdir()
        (run / "checkpoints" / "final").touch()
        files.file("link").symlink_to(tmp_path / "elsewhere")
    (run / "notes.txt").write_text("mine")
    with (run / "files.txt").open("a") as names:
        names.write("../outside\n")
    link = tmp_path / "link-to-run"
    link.symlink_to(run)
    with RunDirectory(link, dataclasses.replace(CONFIG, seed=1), overwrite=True) as files:
        assert files.standing is Standing.NEW
    assert {path.name for path in run.iterdir()} == {"config.json", "files.txt", "lock", "lock.owner", "notes.txt"}
    assert (tmp_path / "elsewhere" / "kept").is_file() and (tmp_path / "outside").is_file() and link.is_symlink()
    assert standing(run, dataclasses.replace(CONFIG, seed=1)) is Standing.BEGUN


def test_a_run_of_an_older_version_goes_on_and_is_not_deleted(tmp_path):
    with RunDirectory(tmp_path, CONFIG):
        pass
    (tmp_path / "files.txt").unlink()
    with RunDirectory(tmp_path, CONFIG) as files:
        assert files.standing is Standing.BEGUN
    with pytest.raises(ValueError, match="of an older version; write a new --workdir"):
        RunDirectory(tmp_path, CONFIG, overwrite=True)


def test_settings_that_no_result_depends_on_may_change(tmp_path):
    RunDirectory(tmp_path, CONFIG).close()
    moved = dataclasses.replace(CONFIG, data_dir="/elsewhere", data_threads=3)
    assert standing(tmp_path, moved) is Standing.BEGUN


def test_settings_that_are_newer_than_a_run_had_their_defaults(tmp_path):
    old = {name: value for name, value in dataclasses.asdict(CONFIG).items() if name != "init_from"}
    (tmp_path / "config.json").write_text(json.dumps(old))
    assert standing(tmp_path, CONFIG) is Standing.BEGUN
    with pytest.raises(ValueError, match="settings that this version does not have: colour"):
        config_of({**old, "colour": "red"})


def test_files_that_are_no_run_are_never_touched(tmp_path):
    (tmp_path / "thesis.tex").write_text("years")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="holds files that are no run"):
            RunDirectory(tmp_path, CONFIG, overwrite=overwrite)
    assert (tmp_path / "thesis.tex").read_text() == "years"
    with pytest.raises(ValueError, match=r"thesis.tex cannot be written .*write another --workdir"):
        RunDirectory(tmp_path / "thesis.tex", CONFIG)


HOLDER = """
import sys
from experiments.training.config import Config
from experiments.training.run_directory import RunDirectory
with RunDirectory(sys.argv[1], Config(model="mlp", p=(1, 0), m=(2, 0), method="dsp")):
    print("writing", flush=True)
    sys.stdin.read()
"""


def test_two_programs_never_write_in_one_directory(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "writing\n"
        refused = rf"being written by another program \(process {holder.pid}\); wait for it"
        with pytest.raises(ValueError, match=refused):
            RunDirectory(tmp_path, CONFIG, overwrite=True)
        with pytest.raises(ValueError, match=refused):
            check_free(tmp_path)
        assert standing(tmp_path, CONFIG) is Standing.BEGUN
    finally:
        holder.kill()
        holder.wait()
    RunDirectory(tmp_path, CONFIG).close()  # the lock has gone with it


def test_without_a_workdir_the_last_run_goes_on_if_it_can(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(default_path(CONFIG)) == "runs/digits-mlp-dsp-K2"
    for name in ("digits-mlp-dsp-K2", "digits-mlp-dsp-K2-2"):
        RunDirectory(f"runs/{name}", CONFIG).close()
    assert str(default_path(CONFIG)) == "runs/digits-mlp-dsp-K2-2"
    assert str(default_path(dataclasses.replace(CONFIG, seed=1))) == "runs/digits-mlp-dsp-K2-3"
    with RunDirectory("runs/digits-mlp-dsp-K2-2", CONFIG) as files:
        assert str(default_path(CONFIG)) == "runs/digits-mlp-dsp-K2-3"
        files.write_json("summary.json", {})
    assert str(default_path(CONFIG)) == "runs/digits-mlp-dsp-K2-3"
