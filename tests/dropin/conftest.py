from pathlib import Path

import pytest
from cli.folder import make_folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """A tiny model with a tokenizer and a little model in it."""
    return make_folder(tmp_path_factory.mktemp("models") / "tiny")
