"""Lines that processes of one run share: each takes a stretch, the first joins them."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from cli.folder import LINES

from spec2seq import io
from spec2seq.cli import shares
from spec2seq.errors import UsageError
from spec2seq.options import RunOptions
from spec2seq.training import processes


def share(index: int, count: int, output) -> shares.Share:
    state = SimpleNamespace(process_index=index, num_processes=count, local_process_index=index,
                            wait_for_everyone=lambda: None)  # fmt: skip
    return shares.Share(state, output)


@pytest.mark.parametrize("total", [0, 1, 7, 9])
@pytest.mark.parametrize("count", [2, 3, 8])
def test_stretches_cover_all_lines_once(tmp_path, total, count):
    output = tmp_path / "out.txt.gz"
    lines = [f"line {number}\u2028x" for number in range(total)]
    for index in reversed(range(count)):
        mine = share(index, count, output)
        with io.writer(mine.part(index)) as write:
            for line in lines[slice(*mine.stretch(total))]:
                write(line)
        if index == 0:
            mine.join()
    assert [line.text for line in io.read_lines(output)] == lines
    assert list(tmp_path.iterdir()) == [output]


def test_each_process_has_a_gpu_of_its_own(tmp_path):
    mine = share(1, 2, tmp_path / "out")
    assert mine.place(RunOptions(model="m", device="cuda")).device == "cuda:1"
    assert mine.place(RunOptions(model="m", device="cpu")).device == "cpu"


def test_alone_there_is_no_share(tmp_path, monkeypatch):
    assert shares.own_share(None, None, True) is None
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert shares.own_share(None, None, True) is None


def test_what_several_cannot_do_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(processes, "processes", lambda: pytest.fail("asked for the others"))
    file = tmp_path / "lines.txt"
    file.write_text("a\n")
    for path, output in ((None, tmp_path / "out"), (file, None)):
        with pytest.raises(UsageError, match="share a file, not stdin, and write to --output"):
            shares.own_share(path, output, False)
    with pytest.raises(UsageError, match="--stats would count one process only"):
        shares.own_share(file, tmp_path / "out", True)


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this PyTorch has no gloo, which joins CPUs")
@pytest.mark.skipif(torch.cuda.is_available(), reason="the processes would share one GPU")
def test_two_processes_write_what_one_does(folder, run, tmp_path):
    lines, alone, together = (tmp_path / name for name in ("lines.txt", "alone.txt", "together.txt"))
    lines.write_text("\n".join([*LINES, "", *LINES[:2]]) + "\n", encoding="utf-8")
    flags = ["translate", str(lines), "--model", str(folder), "--dtype", "float64", "--method", "greedy"]
    assert run(*flags, "--output", alone).exit_code == 0
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
              "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
              "-m", "spec2seq.cli", *flags, "--output", str(together)]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(launch, env=environment, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr[-4000:]
    assert together.read_bytes() == alone.read_bytes() and alone.read_bytes().count(b"\n") == len(LINES) + 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone.txt", "lines.txt", "together.txt"]
