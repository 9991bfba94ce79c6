"""A report shows what a run's files say, says what is missing, and is complete in itself."""

import dataclasses
import html.parser
import json
import re

import pytest

import jaxdecouple as jd
from jaxdecouple import schedules
from jaxdecouple.charts import lines
from jaxdecouple.reports import ReportError, RunFiles
from jaxdecouple.reports.page import page
from jaxdecouple.reports.timelines import timelines

SCHEDULE = schedules.fdg(2)
EPOCHS = [{"epoch": n, "ticks": 8 * n, "train_loss": 1 / n, "test_loss": 2 / n, "test_error": 0.5 / n} for n in (1, 2)]
SETUP = {"schedule": dataclasses.asdict(SCHEDULE), "staleness": [[1], [0]], "layers_per_stage": [3, 4], "device": "cpu"}
# Stage 1 takes 3 ms per batch and is never idle; stage 0 takes 2 ms.
MARKS = [
    mark
    for n in range(4)
    for mark in (
        {"operation": "train", "stage": 1, "tick": 20 + n, "start": 0.003 * n, "end": 0.003 * (n + 1)},
        {"operation": "backward_forward", "stage": 0, "tick": 20 + n, "start": 0.003 * n, "end": 0.003 * n + 0.002},
    )
]


@pytest.fixture
def run(tmp_path):
    """A finished run's directory."""
    probe = {"probe": "GradientRecord", "batch": 3, "staleness": [1, None], "weight_gap": [0.1, 0.0]}
    probe |= {"difference": [0.2, 0.0], "norm": [1.0, 2.0]}
    direction = {"probe": "DirectionRecord", "tick": 5, "sigma": [0.5, 1.0], "bytes_in_flight": [4_000_000, 0]}
    for name, value in {
        "config.json": {"method": "fdg", "num_stages": 2, "model": "a<b>", "dataset": "digits", "epochs": 2},
        "setup.json": SETUP,
        "summary.json": {**SETUP, "test_error": 0.25},
        "speed.json": [{"epoch": 1, "seconds": 2.0, "images_per_second": 500.0}],
        "marks.json": MARKS,
    }.items():
        (tmp_path / name).write_text(json.dumps(value))
    for name, records in {"metrics.jsonl": EPOCHS, "diagnostics.jsonl": [probe, direction]}.items():
        (tmp_path / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    return tmp_path


class Tags(html.parser.HTMLParser):
    """Whether tags are closed in order, and which attributes there are."""

    def __init__(self):
        super().__init__()
        self.open, self.attributes = [], []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name) for name, _ in attrs]
        if tag not in ("meta", "!doctype"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, name) for name, _ in attrs]


def test_a_finished_run_is_shown_whole(run):
    path = jd.report(run)
    text = path.read_text()
    assert path == run / "report.html" and not list(run.glob("*.partial"))
    assert "Finished. Test error 25.00 %. 500 images per second." in text and "http-equiv" not in text
    assert "a&lt;b&gt; on digits" in text and "a<b>" not in text
    for words in ("train loss", "images per second", "stage 1", "in flight (MB)", "sufficient direction", "policy of"):
        assert words in text
    assert 'class="missing"' not in text.partition("<main>")[2]
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert not {name for _, name in tags.attributes} & {"src", "onload", "onclick"}
    assert "<script" not in text and "@import" not in text and set(re.findall(r'href="(.)', text)) == {"#"}
    assert all(("svg", name) in tags.attributes for name in ("role", "aria-label"))


def test_a_run_under_way_says_so_and_loads_itself_anew(run):
    (run / "summary.json").unlink()
    assert "Under way, or stopped, after epoch 2 of 2. Test error 25.00 %." in jd.report(run).read_text()
    (run / "metrics.jsonl").unlink()
    text = jd.report(run, run / "other.html").read_text()
    assert "in the first of 2 epochs" in text and 'http-equiv="refresh"' in text


def test_a_language_model_is_told_by_its_perplexity(run):
    (run / "metrics.jsonl").write_text(json.dumps({**EPOCHS[0], "perplexity": 12.34}) + "\n")
    text = jd.report(run).read_text()
    assert "Perplexity 12.34. 500 sequences per second." in text and "Test error" not in text


def test_what_is_cut_off_or_of_another_version_is_named(run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "tra')
    (run / "speed.json").write_text("{")
    (run / "marks.json").write_text('[{"operation": "train"}]')
    (run / "setup.json").write_text(json.dumps({"schedule": {"name": "fdg", "shape": 3}}))
    files = RunFiles.read(run)
    assert len(files.metrics) == 2 and files.schedule is None
    assert files.remarks[0] == "The last line of metrics.jsonl is cut off or damaged, and left out."
    assert "speed.json cannot be read" in files.remarks[1]
    text = page(files)
    assert "says it in another version&#x27;s way" in text and "cut off, or of another version" in text


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "there is no such directory"),
        ({}, "it has no config.json"),
        ({"config.json": "{"}, "cannot be read"),
        ({"config.json": '{"methods": []}'}, "of another program"),
    ],
    ids=["nothing", "empty", "damaged", "other"],
)
def test_no_run_is_one_clear_error(content, says, tmp_path):
    path = tmp_path / "runs"
    if content is not None:
        path.mkdir()
        for name, text in content.items():
            (path / name).write_text(text)
    with pytest.raises(ReportError, match=says):
        jd.report(path)
    assert not (path / "report.html").exists()


def test_measured_and_predicted_pace(run):
    """With stages that never wait, both are the time of the slowest stage."""
    text = timelines(RunFiles.read(run))
    assert "Measured: 3 ms per batch" in text and "Predicted: 3 ms per batch" in text
    assert text.count('class="box joined"') == text.count('class="box loss"') == 8  # four of each, twice


def test_a_redone_forward_is_not_counted_twice(run):
    """Of the schedule, which says so, and of the measured backward, which contains it."""
    schedule = schedules.features_replay(2)
    spans = [("train", 1, 0.0, 3.0), ("forward", 0, 0.0, 1.0), ("backward", 0, 1.0, 4.0)]
    marks = [
        {"operation": name, "stage": k, "tick": 20 + n, "start": 4e-3 * n + 1e-3 * start, "end": 4e-3 * n + 1e-3 * end}
        for n in range(4)
        for name, k, start, end in spans
    ]
    (run / "marks.json").write_text(json.dumps(marks))
    (run / "setup.json").write_text(json.dumps({**SETUP, "schedule": dataclasses.asdict(schedule)}))
    assert "Predicted: 4 ms per batch" in timelines(RunFiles.read(run))  # 1 + 3, of which 1 is redone


def test_where_a_backward_is_split_its_parts_are_counted_once_each(run):
    """Stage 1 takes 2 + 3 ms per batch, and stage 0 has its work done by then."""
    schedule = schedules.zero_bubble(2, 4)
    spans = [("forward_loss", 1, 0.0, 2.0), ("weight_gradient", 1, 2.0, 5.0), ("forward", 0, 0.0, 1.0)]
    spans += [("weight_gradient", 0, 1.0, 3.0)]  # the first part of its backward is empty
    marks = [
        {"operation": name, "stage": k, "tick": 20 + n, "start": 5e-3 * n + 1e-3 * start, "end": 5e-3 * n + 1e-3 * end}
        for n in range(4)
        for name, k, start, end in spans
    ]
    (run / "marks.json").write_text(json.dumps(marks))
    (run / "setup.json").write_text(json.dumps({**SETUP, "schedule": dataclasses.asdict(schedule)}))
    files = RunFiles.read(run)
    assert files.schedule == schedule
    text = timelines(files)
    assert "Measured: 5 ms per batch" in text and "Predicted: 5 ms per batch" in text
    assert text.count('class="box weight"') == 16  # of two stages and four batches, twice


def test_a_chart_leaves_out_what_cannot_be_drawn():
    nan = float("nan")
    text = lines({"a": [(0, 1.0), (1, nan), (2, 100.0)]}, x="x", y="y", log=True)
    assert text.count("<circle") == 2
    assert "nothing to draw yet" in lines({"a": [(0, -1.0)]}, x="x", y="y", log=True)
    assert lines({"a": [(0, 5.0)]}, x="x", y="y").count("<circle") == 1  # one point is a chart
