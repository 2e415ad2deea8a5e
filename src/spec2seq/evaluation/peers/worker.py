"""An engine in a process of its own, asked over a pipe, so that no two thread pools share a process.

Where time is taken only one worker is asked at a time; the others wait in a blocking read, and their OpenMP threads
sleep: see `Worker.settle`.
"""

import ctypes
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from spec2seq.errors import Spec2SeqError, UsageError
from spec2seq.evaluation.memory import peak_mb
from spec2seq.evaluation.peers import Job, Workload, load_peer

# Threads that wait must leave the cores to the engine whose turn it is; the same for all engines.
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0", "TOKENIZERS_PARALLELISM": "false"}
SETTLE, LOOK = 0.25, 0.01  # seconds: OpenMP threads that are told nothing spin for up to 0.2 before they sleep


class Worker:
    """A running process that holds one engine. Use it in a with statement."""

    def __init__(self, engine: str, workload: Workload, environment: dict[str, str] | None = None):
        self.engine = engine
        threads = {"OMP_NUM_THREADS": str(workload.threads)} if workload.threads else {}
        wanted = ENVIRONMENT if environment is None else environment
        self.process = subprocess.Popen(
            [sys.executable, "-m", "spec2seq.evaluation.peers.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={**os.environ, **threads, **wanted}, text=True, encoding="utf-8",
        )  # fmt: skip
        try:
            self.ask("load", engine=engine, workload=asdict(workload) | {"models": str(workload.models)})
        except BaseException:
            self.close()
            raise

    def ask(self, do: str, **arguments: Any) -> Any:
        """Raises the Spec2SeqError that the worker raised, or one that says that it died."""
        try:
            self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except OSError:
            line = ""
        if not line:
            code = self.process.wait()
            raise Spec2SeqError(f"the process of engine {self.engine!r} ended with exit code {code}")
        answer = json.loads(line)
        if "error" in answer:
            raise Spec2SeqError(answer["error"])
        return answer["value"]

    def settle(self) -> None:
        """Wait until the threads of the process sleep, so that they take no core from the engine that is asked next."""
        until, before = time.monotonic() + SETTLE, processor_seconds(self.process.pid)
        while time.monotonic() < until:
            time.sleep(LOOK)
            now = processor_seconds(self.process.pid)
            if before is not None and now is not None and now - before < LOOK / 10:
                break
            before = now

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def processor_seconds(pid: int) -> float | None:
    """What all threads of a process have used of processors so far; None where the system cannot tell."""
    clock = ctypes.c_int()
    try:
        known = ctypes.CDLL(None).clock_getcpuclockid(pid, ctypes.byref(clock)) == 0
        return time.clock_gettime(clock.value) if known else None
    except (AttributeError, OSError):
        return None


class Server:
    """The other end: holds the engine and answers one request after the other."""

    def __init__(self):
        self.peer: Any = None
        self.device = "cpu"

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """{"value": …}, or {"error": message} whatever goes wrong."""
        arguments = dict(request)
        do = arguments.pop("do")
        try:
            if do == "load":
                given = arguments["workload"]
                self.device = given["device"]
                self.peer = load_peer(arguments["engine"], Workload(**given | {"models": Path(given["models"])}))
                return {"value": None}
            return {"value": self._value(do, arguments)}
        except Spec2SeqError as error:
            return {"error": str(error)}
        except Exception as error:  # a peer may fail in any way; the asking side says so
            return {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}

    def _value(self, do: str, arguments: dict[str, Any]) -> Any:
        if "job" in arguments:
            arguments["job"] = Job(**arguments["job"])
        if do == "time":  # a small answer: writing it belongs to the measured call
            run = self.peer.run(**arguments)
            return {
                "line_seconds": run.line_seconds,
                "new_tokens": run.new_tokens,
                "verifier_calls": run.verifier_calls,
            }
        if do == "run":
            return asdict(self.peer.run(**arguments, count=True))
        if do == "peak":
            return peak_mb(self.device)
        if do in ("profile", "costs", "gap", "sizes"):
            return getattr(self.peer, do)(**arguments)
        raise UsageError(f"request is {do!r}; allowed: load, time, run, peak, profile, costs, gap, sizes")


def serve(requests: IO[str], answers: IO[str]) -> None:
    """Answer requests, one JSON object a line, until there are no more."""
    server = Server()
    for line in requests:
        answers.write(json.dumps(server.answer(json.loads(line))) + "\n")
        answers.flush()


def main() -> None:
    """Serve on standard input and output; what libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        serve(sys.stdin, answers)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
