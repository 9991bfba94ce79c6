"""A workdir is claimed late and emptied with care; its JSON can be taken line by line."""

import json

import pytest

from experiments.report.workdir import Workdir, drawing, in_lines


@pytest.mark.parametrize("depth", [0, 1, 2, 5])
@pytest.mark.parametrize(
    "value", [{"a": [], "b": {}}, {2: [1, {"x": None}], True: "two"}, [], [[1], [2, [3]]], 1.5, ((1,),)]
)
def test_is_what_json_writes(value, depth):
    assert json.loads(in_lines(value, depth)) == json.loads(json.dumps(value))


def test_a_table_has_a_line_for_each_row():
    rows = [{"method": "fdg", "errors": [0.1, 0.2]}, {"method": "adl", "errors": []}]
    assert in_lines({"title": "table", "rows": rows}).splitlines()[2:5] == [
        '"rows": [',
        '{"method": "fdg", "errors": [0.1, 0.2]},',
        '{"method": "adl", "errors": []}',
    ]


def test_a_workdir_is_claimed_when_something_is_written(tmp_path):
    first = Workdir(tmp_path / "run", {"a": 1})
    assert not (tmp_path / "run").exists()
    Workdir(tmp_path / "run", {"a": 2})  # the first was refused, as it were
    first.write("table.md", "x")
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == {"a": 1}
    assert (tmp_path / "run" / "files.txt").read_text().split() == ["config.json", "table.md"]
    with pytest.raises(ValueError, match="holds another run; write a new --workdir, or --overwrite"):
        Workdir(tmp_path / "run", {"a": 2})


def test_directories_of_other_programs_are_not_emptied(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"]}')
    (tmp_path / "weights").touch()
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="write a new --workdir"):
            Workdir(tmp_path, {}, overwrite=overwrite)
    assert (tmp_path / "weights").exists()


def test_what_is_about_to_be_read_is_not_deleted_before(tmp_path):
    Workdir(tmp_path / "run", {}).write("profile.json", "{}")
    given = {"profile": tmp_path / "run" / "profile.json", "init_from": ""}
    with pytest.raises(ValueError, match="profile is .*profile.json, in the workdir that --overwrite would empty"):
        Workdir.check(tmp_path / "run", overwrite=True, inputs=given)
    Workdir.check(tmp_path / "run", overwrite=True, inputs={"profile": tmp_path / "profile.json"})


def test_paths_that_cannot_be_written_are_refused_at_once(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(
            ValueError, match=f"workdir {path}: {tmp_path / 'file'} is a file; write a directory that is new"
        ):
            Workdir(path, {}).claim()
    with pytest.raises(ValueError, match="cannot be written .*too long"):
        Workdir(tmp_path / ("a" * 300), {})


def test_nothing_is_lost_for_a_picture(capsys):
    with drawing():
        raise RuntimeError("no such font")
    assert capsys.readouterr().err == "warning: a picture could not be drawn (RuntimeError: no such font)\n"


def test_what_a_user_put_beside_checkpoints_is_not_deleted(tmp_path):
    Workdir(tmp_path / "run", {}).file("checkpoints").mkdir()
    for name in ("tick-00000008", "tick-00000009.orbax-checkpoint-tmp-0", "damaged-tick-00000007", "final"):
        (tmp_path / "run" / "checkpoints" / name).mkdir()
    Workdir.check(tmp_path / "run", overwrite=True)
    (tmp_path / "run" / "checkpoints" / "mine").mkdir()
    with pytest.raises(ValueError, match="holds checkpoints/mine, which no program wrote and --overwrite would delete"):
        Workdir.check(tmp_path / "run", overwrite=True)
