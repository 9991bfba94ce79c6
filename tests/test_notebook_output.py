"""What a notebook shows of schedules, times, networks and runs: whole HTML that needs no style of its page."""

import html
import html.parser
import re

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

import jaxdecouple as jd
from jaxdecouple import schedules

TIMES = jd.Times(forward=[1e-3] * 3, backward=[2e-3] * 3, joined=[3e-3] * 2)
X, Y = np.ones((4, 5), np.float32), np.arange(4) % 3


class Tags(html.parser.HTMLParser):
    """Tags are closed in order."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        pass


@pytest.fixture(scope="module")
def pipeline():
    stages = jd.partition([nn.Dense(4), nn.tanh, nn.Dense(3)], 2, boundaries=(2,))
    return jd.Pipeline(stages, schedules.fdg(2), optimizer=optax.sgd(0.1), devices=jax.devices()[:1] * 2)


@pytest.fixture(scope="module")
def state(pipeline):
    """After two batches."""
    state = pipeline.init(jax.random.key(0), X)
    for _ in range(2):
        state, _ = pipeline.step(state, (X, Y))
    return state


def shown(thing):
    """Its HTML, of which tags are closed, and its text."""
    text = thing._repr_html_()
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    return text, " ".join(html.unescape(re.sub(r"<[^>]*>", " ", text)).split())


@pytest.mark.parametrize("method", ["backprop", "fdg", "dgl", "dni"])
def test_a_schedule_shows_its_first_ticks(method):
    schedule = getattr(schedules, method)(3)
    text, _ = shown(schedule)
    operations = [op for tick in range(14) for op in schedule.ops(tick)]
    assert text.count("<rect") == len(operations)
    for op in operations:
        assert f"<title>{schedule.look(op.kind, op.stage)} {op.batch}: " in text
    assert "backward, update" in text and "joined" not in text


def test_the_gradient_of_the_weights_has_a_look_of_its_own():
    text, words = shown(schedules.zero_bubble(2, 3))
    assert text.count('class="box weight"') == text.count("<title>weight") > 0
    assert words.endswith("■ forward ■ backward ■ forward, loss, backward ■ gradient of the weights, update")


def test_a_timeline_shows_seconds_and_speed():
    text, words = shown(jd.timeline(schedules.fdg(3), TIMES))
    assert words.startswith("fdg, K = 3, stash; 3.00 times as fast as one device; utilisation 100%")
    assert "time (ms)" in words and 'class="box joined"' in text


def test_a_plan_is_explained():
    plan = jd.plan(TIMES)
    _, words = shown(plan)
    assert all(line in words for line in plan.explain().splitlines())


def test_a_pipeline_shows_where_layers_are(pipeline):
    _, words = shown(pipeline)
    assert words.startswith("fdg, K = 2, weights: stash; staleness with an update for every batch.")
    device = jax.devices()[0]
    assert f"staleness 0 000_Dense, 001_tanh {device} 1 1 002_Dense {device} 0 " in words


def test_a_state_shows_what_is_in_flight(state):
    _, words = shown(state)
    assert words.startswith("After 2 batches.")
    assert re.search(r"0 24 \S+ residuals 0, 1; gradients 0 1 15 \S+ activations 1; targets 1", words), words


def test_a_state_that_was_used_up_can_be_shown(pipeline):
    state = pipeline.init(jax.random.key(0), X)
    pipeline.step(state, (X, Y))
    assert shown(state)[1].startswith("After 0 batches.")


def test_a_profile_shows_layers():
    profile = jd.Profile(
        names=("a<b>", "c"), forward=(1e-3, 2e-3), backward=(0.0, 4e-3), sent=(8, 16), params=(0, 2_500_000),
        sample="", model="", device="", jax="",
    )  # fmt: skip
    assert "0 a<b> 1 0 8e-06 0 1 c 2 4 1.6e-05 2.5" in shown(profile)[1]
