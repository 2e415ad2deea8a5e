"""The command as a process: pipes, signals, exit codes. Each start imports torch, so there are few."""

import os
import signal
import subprocess
import sys
import time

import pytest
from cli.folder import LINES

COMMAND = [sys.executable, "-m", "spec2seq.cli"]
pytestmark = pytest.mark.skipif(os.name != "posix", reason="POSIX signals and pipes")


def start(*arguments) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=environment, text=True, encoding="utf-8",
        # A shell that runs the tests in the background ignores SIGINT, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def test_help_does_not_import_torch():
    code = (
        "import sys; from spec2seq import cli\n"
        "try: cli.app(['--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n") and "translate" in done.stdout


def test_usage_errors_exit_with_2():
    done = subprocess.run([*COMMAND, "translate", "--xyz"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and done.stderr == "error: No such option: --xyz\n"


def test_a_conversation_over_pipes_then_ctrl_c(folder):
    """At batch size 1 each line is answered at once, an empty one too; an interruption keeps what was written."""
    process = start("translate", "--model", folder, "--method", "greedy", "--batch-size", 1)
    for line in (LINES[0], "", LINES[0]):
        process.stdin.write(line + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        assert answer.endswith("\n") and (answer == "\n") == (line == "")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=150)
    assert (process.returncode, out, err) == (130, "", "interrupted\n")


def test_ctrl_c_keeps_finished_lines_of_an_output_file(folder, tmp_path):
    target, part = tmp_path / "out.txt", tmp_path / "out.txt.part"
    process = start("translate", "--model", folder, "--batch-size", 1, "--method", "greedy", "--output", target)
    process.stdin.write(LINES[0] + "\n")
    process.stdin.flush()
    while not (part.exists() and part.read_text().endswith("\n")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=150)
    assert process.returncode == 130 and err == f"interrupted: the finished lines are in {part}\n"
    assert not target.exists() and part.read_text().count("\n") == 1


def test_a_reader_that_has_enough_is_no_error(folder):
    process = start("translate", "--model", folder, "--method", "greedy", "--batch-size", 1)
    process.stdin.write("".join(line + "\n" for line in LINES * 20))
    process.stdin.flush()
    process.stdout.readline()
    process.stdout.close()
    process.stdin.close()
    assert process.wait(timeout=150) == 141
    assert process.stderr.read() == ""
    process.stderr.close()
