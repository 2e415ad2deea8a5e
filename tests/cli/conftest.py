from pathlib import Path

import pytest
from cli.folder import LINES, make_folder
from typer.testing import CliRunner, Result

from spec2seq.cli import app


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """A tiny model with a little one in it. Tests that change it copy it first."""
    return make_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def run():
    """Run the command in this process: `run("translate", "--model", folder, input="…")`."""

    def invoke(*arguments, input: str | bytes | None = None) -> Result:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=input)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return invoke


@pytest.fixture
def lines(tmp_path) -> Path:
    """A file of lines, two of them empty."""
    path = tmp_path / "lines.txt"
    path.write_text("\n".join([LINES[0], "", *LINES[1:4], "  ", LINES[4]]) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def fails(run):
    """Run the command and require one line on stderr with all of `words`, nothing on stdout, and the exit code."""

    def invoke(code: int, words: list[str], *arguments, input: str | bytes | None = None) -> None:
        result = run(*arguments, input=input)
        assert result.exit_code == code, result.output
        assert result.stdout == ""
        assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
        for word in words:
            assert word in result.stderr

    return invoke
