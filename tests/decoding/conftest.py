import pytest
import tiny
import torch


@pytest.fixture(params=tiny.KINDS)
def family(request) -> str:
    """Enough for the engine. What depends on a family asks for tiny.FAMILIES itself."""
    return request.param


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield
