"""A file of lines, decoded by the processes of `accelerate launch`: each takes a stretch, the first joins what they
wrote."""

import dataclasses
import os
from pathlib import Path
from typing import Any

from spec2seq import io
from spec2seq.errors import UsageError
from spec2seq.options import RunOptions


class Share:
    """What is this process's of `count`: the stretch number `index`, and a GPU of its own."""

    def __init__(self, state: Any, output: Path):
        self.state, self.output = state, output
        self.index, self.count = state.process_index, state.num_processes

    def place(self, run: RunOptions) -> RunOptions:
        """The options with this process's own GPU, where they say cuda."""
        own = f"cuda:{self.state.local_process_index}"
        return dataclasses.replace(run, device=own) if run.device == "cuda" else run

    def part(self, index: int) -> Path:
        """What process `index` writes."""
        return self.output.with_name(f"{self.output.name}.{index}")

    def stretch(self, total: int) -> tuple[int, int]:
        """This process's of `total` lines: the first, and the one behind the last."""
        return total * self.index // self.count, total * (self.index + 1) // self.count

    def join(self) -> None:
        """Wait for all; the first process writes their lines in order."""
        self.state.wait_for_everyone()
        if self.index == 0:
            with io.writer(self.output) as write:
                for index in range(self.count):
                    with self.part(index).open(encoding="utf-8", newline="\n") as lines:
                        for line in lines:
                            write(line.removesuffix("\n"))
            for index in range(self.count):
                self.part(index).unlink()
        self.state.wait_for_everyone()


def own_share(file: Path | None, output: Path | None, stats: bool) -> Share | None:
    """This process's share; None where it is alone. Raises UsageError for what several processes cannot do together."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    if not io.is_rereadable(file) or output is None:
        raise UsageError("several processes share a file, not stdin, and write to --output, not to stdout")
    if stats:
        raise UsageError("--stats would count one process only; leave it out where several share a file")
    from spec2seq.training.processes import processes  # imports torch

    return Share(processes(), output)
