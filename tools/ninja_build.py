"""Compile and link C++ with ninja: in parallel, and only what has changed.

It knows nothing of this project: `setup.py` builds the extension with it, the tests their programs.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

RULES = """\
ninja_required_version = 1.3
rule compile
  command = $command
  description = compile $out
  depfile = $out.d
  deps = gcc
rule link
  command = $command
  description = link $out
"""


@dataclass(frozen=True)
class Object:
    """One source compiled in one way.

    Attributes:
        source: The file to compile.
        output: Name of the object file in the build folder. A source that is compiled several
            times, with different flags, needs as many names.
        command: Compiler and flags. The source, the output and what tracks its headers are added.
    """

    source: Path
    output: str
    command: Sequence[str]


def build(
    objects: Sequence[Object],
    *,
    output: str,
    linker: Sequence[str],
    link_flags: Sequence[str],
    build_dir: Path,
) -> Path:
    """Bring the program or library `output` in `build_dir` up to date and return its path.

    What is compiled again is what changed: its source, a header it includes, or its command.

    Args:
        objects: What to compile.
        output: Name of the linked file in the build folder.
        linker: The command that links, usually the compiler.
        link_flags: What follows the objects and `-o output` on the linker's command line.
        build_dir: Folder for all that is made; created where it does not exist.

    Raises:
        ValueError: Two objects have the same output.
        subprocess.CalledProcessError: A compiler or the linker failed; what it said was printed.
    """
    names = [item.output for item in objects]
    if len(set(names)) != len(names):
        raise ValueError(f"objects: every output must have its own name, got {names}")
    lines = [RULES]
    for item in objects:
        source = item.source.absolute()
        flags = ["-MD", "-MF", f"{item.output}.d", "-c", str(source), "-o", item.output]
        lines += _edge("compile", item.output, [str(source)], [*item.command, *flags])
    lines += _edge("link", output, names, [*linker, *names, "-o", output, *link_flags])
    build_dir.mkdir(parents=True, exist_ok=True)
    with _alone_in(build_dir):
        (build_dir / "build.ninja").write_text("\n".join(lines), encoding="utf-8")
        # As a module: the program is not on PATH where an environment is used without being activated.
        subprocess.run([sys.executable, "-m", "ninja"], cwd=build_dir, check=True)
    return build_dir / output


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Has other processes that would build there wait; Windows has no such lock."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    with open(folder / ".lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _edge(rule: str, output: str, inputs: Sequence[str], command: Sequence[str]) -> list[str]:
    """Lines that make `output` from `inputs` by `command`."""
    made_from = " ".join(_escape_path(path) for path in inputs)
    return [
        f"build {_escape_path(output)}: {rule} {made_from}",
        f"  command = {shlex.join(command).replace('$', '$$')}\n",
    ]


def _escape_path(path: str) -> str:
    """`path` as ninja wants it in a list of files."""
    return path.replace("$", "$$").replace(" ", "$ ").replace(":", "$:")
