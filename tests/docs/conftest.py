"""Pages run as they stand, but on fewer images, and on the devices that the tests have."""

import dataclasses

import jax
import pytest

import jaxdecouple as jd


@pytest.fixture
def few_digits(monkeypatch):
    """``jd.data.load("digits")`` gives the first 192 training and 60 test images; the devices stay what they are.

    Its value loads all of them.
    """
    load = jd.data.load

    def few(spec, **settings):
        whole = load(spec, **settings)
        parts = {"x_train": 192, "y_train": 192, "x_test": 60, "y_test": 60}
        return dataclasses.replace(whole, **{name: getattr(whole, name)[:count] for name, count in parts.items()})

    monkeypatch.setattr(jd.data, "load", few)
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    return load
