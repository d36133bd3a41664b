"""What was measured, on disk: NAME.json, a table of it in NAME.md, and a picture in NAME.png."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from bench.machine import belong_together
from bench.measure import Result
from bench.memory import Memory
from bench.report import markdown
from bench.rows import MEMORY_CASE, Row

THE_REST = "the rest"


class Table:
    """Results of this run, and those of an earlier run of the same sources on the same machine.

    Args:
        path: of the files, without a suffix.
        where: the machine, see `machine.machine`.
    """

    def __init__(self, path: Path, where: Mapping[str, object]) -> None:
        self.path = path
        self.where = where
        self.results: dict[tuple[Row, int], Result] = {}
        self.memories: dict[str, Memory] = {}
        self.left_out: dict[str, str] = {}
        figures = path.with_suffix(".json")
        if not figures.is_file():
            return
        earlier = json.loads(figures.read_text())
        if belong_together(earlier["where"], where):
            results = map(Result.from_json, earlier["results"])
            self.results = {(result.row, result.threads): result for result in results}
            self.memories = {fields["contender"]: Memory(**fields) for fields in earlier["memory"]}
            self.left_out = {name: reason for name, reason in earlier["left_out"].items() if name != THE_REST}

    def add(self, results: Sequence[Result]) -> None:
        """Puts results in the place of earlier ones, and writes the files."""
        for result in results:
            self.results[result.row, result.threads] = result
            for name in (result.row.contender, f"{result.row.contender} on {result.row.case} in {result.row.dtype}"):
                self.left_out.pop(name, None)
        self.write()

    def without_memory(self) -> list[str]:
        """Returns the contenders that were measured on `MEMORY_CASE`, without those whose memory is known."""
        rows = (row for row, _ in self.results if (row.case, row.dtype) == (MEMORY_CASE, "float32"))
        return list(dict.fromkeys(row.contender for row in rows if row.contender not in self.memories))

    def most_threads(self) -> int:
        """Returns the largest number of threads that was measured with."""
        return max(threads for _, threads in self.results)

    def markdown(self) -> str:
        """Returns the report."""
        report = markdown([*self.results.values()], [*self.memories.values()], self.left_out, self.where)
        return f"# Optimizer steps: {self.path.name}\n\n{report}"

    def draw(self) -> None:
        """Makes the picture, if there is something to see and matplotlib is there."""
        try:
            from bench.picture import draw_curves
        except ModuleNotFoundError as error:
            self.left_out["the picture"] = f"{type(error).__name__}: {error}"
        else:
            draw_curves(self.path.with_suffix(".png"), self.where, [*self.results.values()])

    def write(self) -> None:
        """Writes figures and table."""
        parts = {
            "where": self.where,
            "left_out": self.left_out,
            "results": [asdict(result) for result in self.results.values()],
            "memory": [asdict(memory) for memory in self.memories.values()],
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path.with_suffix(".json"), json.dumps(parts, indent=1) + "\n")
        write_whole(self.path.with_suffix(".md"), self.markdown() + "\n")


def write_whole(path: Path, text: str) -> None:
    """Writes a file such that whoever is killed meanwhile leaves the old one or the new one."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(text)
    new.replace(path)
