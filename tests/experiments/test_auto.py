"""The automatic method measures, cuts, plans, says why in three lines, and trains; what it is given, it keeps to."""

import dataclasses
import json

import jax
import numpy as np
import optax
import pytest

import jaxdecouple as jd
from experiments import plan
from experiments.report.workdir import Files, Workdir
from experiments.training import auto, planning
from experiments.training.config import Config
from experiments.training.trainer import Trainer
from jaxdecouple import data
from jaxdecouple.planning import Times


@pytest.fixture
def quick(monkeypatch):
    """Layers and stages are measured once, for no time, whoever asks."""
    profile, choose = jd.profile, auto.choose
    monkeypatch.setattr(jd, "profile", lambda *args, **settings: profile(*args, **settings, repeats=1, seconds=0.0))
    monkeypatch.setattr(auto, "choose", lambda *args, **settings: choose(*args, **settings, repeats=1, seconds=0.0))


SAMPLE, TARGETS = jax.ShapeDtypeStruct((8, 6), np.float32), np.zeros(8, np.int32)


def layers():
    return jd.models.mlp(3, hidden=(16, 16, 16))


def choose(num_stages=2, **arguments):
    devices = jax.devices()[:num_stages]
    return auto.choose(
        layers(), num_stages, SAMPLE, TARGETS, devices, repeats=1, seconds=0.0, optimizer=optax.sgd(0.1), **arguments
    )


@pytest.mark.core
def test_chooses_a_cut_and_delays_that_train():
    choice = choose(3)
    assert sum(stage.num_layers for stage in choice.stages) == 4
    assert choice.times.num_stages == choice.schedule.num_stages == 3
    assert choice.times.joined is not None and min(choice.times.joined) > 0
    assert [line.split(":")[0] for line in choice.explain().splitlines()] == ["Cut", "Delays", "Compare"]
    pipeline = jd.Pipeline(choice.stages, choice.schedule, optimizer=optax.sgd(0.1))
    x = np.ones(SAMPLE.shape, np.float32)
    state = pipeline.init(jax.random.key(0), x)
    for _ in range(8):
        state, metrics = pipeline.step(state, (x, TARGETS))
    assert np.isfinite(metrics.loss)


def test_explains_with_the_numbers_it_has():
    choice = choose(2, boundaries=(3,))
    times = Times(forward=[0.1, 0.1], backward=[0.2, 0.2])
    explained = dataclasses.replace(choice, times=times, plan=jd.plan(times)).explain().splitlines()
    assert explained[0] == (
        "Cut: 3 | 1 layers, as given; alone, the stages take 300 | 300 ms per batch, and all together 300 ms: "
        "2.00 times the speed of the stages one after the other."
    )
    assert "staleness by stage 1 / 0" in explained[1]


def test_keeps_to_a_given_cut_policy_and_profile(monkeypatch):
    choice = choose(2, boundaries=(1,), weights="replay")
    assert choice.stages[1].first == 1 and choice.profile is None and choice.schedule.weights == "replay"
    measured = jd.profile(layers(), SAMPLE, repeats=1, seconds=0.0)
    skewed = dataclasses.replace(measured, forward=(9.0, 1.0, 1.0, 1.0), backward=(9.0, 1.0, 1.0, 1.0))
    cuts, stage_times = [], auto.stage_times
    monkeypatch.setattr(
        auto, "stage_times", lambda stages, *a, **k: cuts.append(stages) or stage_times(stages, *a, **k)
    )
    choice = choose(2, profile=skewed)
    assert cuts[0][1].first == 1 and choice.profile is skewed
    with pytest.raises(ValueError, match="for inputs"):
        choose(2, profile=dataclasses.replace(measured, sample="float32[9, 6]"))


def test_corrects_layers_by_their_stages_and_cuts_again():
    measured = dataclasses.replace(
        jd.profile(layers(), SAMPLE, repeats=1, seconds=0.0), forward=(1, 1, 1, 1), backward=(2, 2, 2, 2)
    )
    real = {(0, 2): Times(forward=[1, 4], backward=[1, 8]), (0, 3): Times(forward=[3, 3], backward=[4, 2])}
    seen = []

    def measure(stages):
        seen.append(tuple(stage.first for stage in stages))
        return real[seen[-1]]

    fitted, stages, times = auto.fit(measured, layers(), 2, SAMPLE, "stash", measure)
    # 2 | 12 seconds at first: the upper two layers take six times as long as the lower two. With that, 8 | 6 is best.
    assert seen == [(0, 2), (0, 3)] and stages[1].first == 3 and times is real[0, 3]
    assert fitted.costs[3] == 5 and sum(fitted.costs[:3]) == 7


def test_a_joined_dispatch_counts_for_its_layers():
    measured = dataclasses.replace(
        jd.profile(layers(), SAMPLE, repeats=1, seconds=0.0), forward=(1, 3, 1, 0), backward=(2, 2, 2, 0)
    )
    stages = jd.partition(layers(), boundaries=(2,))
    fitted = auto.corrected(measured, stages, Times(forward=[2, 3], backward=[9, 3], joined=[4]))
    assert fitted.forward[:2] == (0.5, 1.5) and fitted.backward[:2] == (1, 1)
    assert fitted.forward[2:] == (2, 0) and fitted.backward[2:] == (4, 0)


def test_trains_from_the_command_lines_settings(tmp_path, quick):
    config = Config(method="auto", model="mlp", epochs=1, batch_size=256)
    trainer = Trainer(config, data.load("digits"), jax.devices()[:2])
    assert trainer.pipeline.schedule is trainer.choice.schedule
    trainer.choice.save(Files(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"profile.json", "timeline.png", "trace.json"}
    run = trainer.run(0)
    assert run.records[0].train_loss < 3


def settings(**changes):
    given = {
        "model": "mlp",
        "num_stages": (2, 3),
        "batch_size": 4,
        "image_size": 4,
        "num_classes": 3,
        "bandwidth": 0.001,
        "jitter": 0.0,
        "weights": "stash",
        "profile": "",
    }
    return plan.Planning(**{**given, **changes})


def test_plans_for_devices_that_are_not_there(tmp_path, capsys, quick):
    choices = planning.plan(settings(), Workdir(tmp_path, {}))
    written = json.loads((tmp_path / "plan.json").read_text())["plans"]
    assert list(choices) == [2, 3] and list(written) == ["2", "3"]
    # 4 images' activations of 128 features over 1 MB/s.
    assert choices[2].times.up == choices[2].times.down == pytest.approx((4 * 128 * 4 / 1e6,))
    assert written["3"]["speedup"] == choices[3].plan.speedup
    assert capsys.readouterr().out.count("Cut: ") == 2
    again = planning.plan(
        settings(num_stages=(2,), profile=str(tmp_path / "profile.json")), Workdir(tmp_path / "b", {})
    )
    assert again[2].profile == choices[2].profile
