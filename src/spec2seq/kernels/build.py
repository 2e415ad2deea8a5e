"""Compile the C sources once for this machine, with the compiler that is there, into the user's cache folder."""

import contextlib
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCES = Path(__file__).parent
COMPILERS = ("cc", "gcc", "clang")
MACHINES = ("x86_64", "amd64", "aarch64", "arm64")
FLAGS = ("-O3", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared",
         "-pthread", "-fopenmp-simd")  # fmt: skip
VARIANTS = (  # the first that compiles is taken
    ("-march=native", "-mprefer-vector-width=512"),
    ("-march=native",),
    ("-mcpu=native",),
    (),
)
LONGEST = 120  # seconds of one compilation


class Unavailable(Exception):
    """Why there is no library on this machine."""


def build() -> Path:
    """The path of the compiled library; compiles it if it is not there yet. Raises Unavailable."""
    if platform.machine().lower() not in MACHINES:
        raise Unavailable(f"no kernels for {platform.machine()}")
    compiler = _compiler()
    name = f"spec2seq-{_key(compiler)}.so"
    folder = cache_folder()
    if (folder / name).is_file():
        return folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, temporary = tempfile.mkstemp(suffix=".so", prefix=".building-", dir=folder)
    except OSError:  # a home that cannot be written to: compile for this process alone
        folder = Path(tempfile.mkdtemp(prefix="spec2seq-"))
        descriptor, temporary = tempfile.mkstemp(suffix=".so", dir=folder)
    os.close(descriptor)
    if sys.stderr.isatty():
        print("spec2seq: compiling for this CPU, once, which takes some ten seconds", file=sys.stderr)
    try:
        _compile(compiler, temporary)
        os.replace(temporary, folder / name)  # two processes may both compile; neither sees half a file
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    return folder / name


def cache_folder() -> Path:
    """Where compiled libraries and measured costs are kept: `$XDG_CACHE_HOME/spec2seq`."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(home, "spec2seq")


def _compiler() -> list[str]:
    """The program, and what CC has behind it."""
    asked = os.environ.get("CC", "").strip()
    try:
        commands = [shlex.split(asked)] if asked else [[name] for name in COMPILERS]
    except ValueError as error:
        raise Unavailable(f"CC is {asked!r}: {error}") from None
    for program, *arguments in commands:
        found = shutil.which(program)
        if found:
            return [found, *arguments]
    raise Unavailable(f"no C compiler found ({asked or ', '.join(COMPILERS)})")


def _compile(compiler: list[str], target: str) -> None:
    for variant in VARIANTS:
        command = [*compiler, *FLAGS, *variant, str(SOURCES / "spec2seq.c"), "-o", target, "-lm"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Unavailable(f"{compiler[0]} could not be run: {error}") from None
        if done.returncode == 0:
            return
    reason = next(iter(done.stderr.strip().splitlines()), f"exit code {done.returncode}")
    raise Unavailable(f"{compiler[0]} failed: {reason}")


def _key(compiler: list[str]) -> str:
    """Names what a compiled library depends on: sources, flags, the compiler's file and arguments, and the CPU."""
    digest = hashlib.sha256(repr((FLAGS, VARIANTS, platform.machine(), cpu())).encode())
    for source in sorted([*SOURCES.glob("*.c"), *SOURCES.glob("*.h")]):
        digest.update(source.read_bytes())
    program, *arguments = compiler
    file = os.stat(program)
    facts = (os.path.realpath(program), str(file.st_size), str(file.st_mtime_ns), *arguments)
    digest.update(" ".join(facts).encode())
    return digest.hexdigest()[:16]


def cpu() -> str:
    """The first lines of /proc/cpuinfo that say which CPU it is and what it can do."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    facts = (
        next((line for line in lines if line.startswith(kind)), "") for kind in ("model name", "flags", "Features")
    )
    return "".join(facts) or platform.processor()
