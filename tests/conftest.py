"""What every test gets: one thread, no network, and property tests that draw the same examples each time."""

import functools
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the tests run without a network

import golden_specdec
import pytest
import tiny
import torch
from hypothesis import HealthCheck, settings

from spec2seq.decoding import costs, lengths

torch.set_num_threads(1)  # tiny models are slower on two

settings.register_profile(
    "spec2seq", deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
settings.load_profile("spec2seq")


@pytest.fixture(scope="session")
def golden(tmp_path_factory):
    """Imports and loads reference data of the original SpecDec by name, once a session."""
    return functools.cache(lambda name: golden_specdec.load(name, tmp_path_factory.mktemp("golden")))


@pytest.fixture(params=tiny.FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture(autouse=True)
def made_up_costs(monkeypatch):
    """Adaptive lengths measure nothing: the same drafts every time, and no file outside of the tests' folders."""
    monkeypatch.setattr(lengths._Adaptive, "took", lambda *given: None)
    monkeypatch.setattr(costs, "of_iterations", lambda *given: costs.Costs({1: 0.05, 2: 0.1}, {0: 1.0, 1: 1.02}))
