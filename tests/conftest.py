"""What every test gets: one thread, no network, and property tests that draw the same examples each time."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the tests run without a network

import pytest
import tiny
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)  # tiny models are slower on two

settings.register_profile(
    "spec2seq", deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
settings.load_profile("spec2seq")


@pytest.fixture(params=tiny.FAMILIES)
def family(request) -> str:
    return request.param
