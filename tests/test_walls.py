"""The walls between the rooms, and what importing the package may bring along."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src" / "spec2seq"
OUTER = (
    "spec2seq.dropin",
    "spec2seq.speech",
    "spec2seq.training",
    "spec2seq.tasks",
    "spec2seq.evaluation",
    "spec2seq.serving",
    "spec2seq.cli",
)
MEETING = ("spec2seq.api", "spec2seq.from_options", "spec2seq.generation", "spec2seq.runner")  # of models and decoding
FORBIDDEN = {
    "models": ("spec2seq.decoding", *MEETING, *OUTER),
    "decoding": (*MEETING, *OUTER),
    "training": ("spec2seq.decoding", "spec2seq.dropin"),
    # A guest of Transformers: it uses the engine, and none of the rooms that use the engine needs it.
    "dropin": ("spec2seq.training", "spec2seq.tasks", "spec2seq.evaluation", "spec2seq.serving", "spec2seq.cli"),
    "evaluation": ("spec2seq.dropin",),
    "speech": ("spec2seq.dropin", "spec2seq.training", "spec2seq.tasks", "spec2seq.evaluation", "spec2seq.cli"),
}
EXTRAS = (
    "datasets", "accelerate", "matplotlib", "fastapi", "ctranslate2", "sacrebleu", "rouge_score", "soundfile", "soxr",
)  # fmt: skip


def imports(file: Path) -> set[str]:
    """Every module that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("room", FORBIDDEN)
def test_a_room_keeps_to_its_walls(room):
    files = list((SOURCE / room).glob("**/*.py"))
    assert files
    crossed = {
        f"{file.name}: {module}" for file in files for module in imports(file) if module.startswith(FORBIDDEN[room])
    }
    assert not crossed


def test_only_the_command_line_and_commands_print():
    printers = {
        file.relative_to(SOURCE).as_posix()
        for file in SOURCE.glob("**/*.py")
        if file.parent.name in ("models", "decoding", "dropin")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }
    assert not printers


def test_importing_the_package_brings_no_extra():
    names = "import spec2seq; [getattr(spec2seq, n) for n in spec2seq.__all__]; import sys; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", names], capture_output=True, text=True, check=True).stdout.split()
    assert "torch" in modules
    assert not set(EXTRAS) & set(modules)
    bare = [sys.executable, "-c", "import spec2seq, sys; print(*sys.modules)"]
    modules = subprocess.run(bare, capture_output=True, text=True, check=True).stdout.split()
    assert "torch" not in modules  # `spec2seq --help` answers at once


def test_the_engine_does_not_bring_the_drop_in_along():
    names = "from spec2seq import Greedy, Seq2Seq; import sys; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", names], capture_output=True, text=True, check=True).stdout.split()
    assert "spec2seq.api" in modules and not any(name.startswith("spec2seq.dropin") for name in modules)
