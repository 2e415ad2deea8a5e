"""Compile the C sources once for this machine, with the compiler that is there, into the user's cache folder."""

import contextlib
import hashlib
import os
import platform
import shutil
import subprocess
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


def _compiler() -> str:
    asked = os.environ.get("CC")
    for name in (asked,) if asked else COMPILERS:
        found = shutil.which(name)
        if found:
            return found
    raise Unavailable(f"no C compiler found ({asked or ', '.join(COMPILERS)})")


def _compile(compiler: str, target: str) -> None:
    for variant in VARIANTS:
        command = [compiler, *FLAGS, *variant, str(SOURCES / "spec2seq.c"), "-o", target, "-lm"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Unavailable(f"{compiler} could not be run: {error}") from None
        if done.returncode == 0:
            return
    reason = next(iter(done.stderr.strip().splitlines()), f"exit code {done.returncode}")
    raise Unavailable(f"{compiler} failed: {reason}")


def _key(compiler: str) -> str:
    """Names what a compiled library depends on: sources, flags, the compiler's file and the CPU."""
    digest = hashlib.sha256(repr((FLAGS, VARIANTS, platform.machine(), cpu())).encode())
    for source in sorted([*SOURCES.glob("*.c"), *SOURCES.glob("*.h")]):
        digest.update(source.read_bytes())
    program = os.stat(compiler)
    digest.update(f"{os.path.realpath(compiler)} {program.st_size} {program.st_mtime_ns}".encode())
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
