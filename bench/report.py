"""Formats what was measured as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from bench.cases import GRID_CASES
from bench.interleave import Spread
from bench.measure import Result
from bench.memory import Memory
from bench.rows import AGAINST, CURVES, MEMORY_CASE, Curve


def markdown(
    results: Sequence[Result], memories: Sequence[Memory], left_out: Mapping[str, str], where: Mapping[str, object]
) -> str:
    """All tables that there are figures for, what was left out and why, and the machine."""
    on_networks = [result for result in results if result.row.case not in GRID_CASES]
    tables = [network_table(on_networks)] if on_networks else []
    for threads in dict.fromkeys(result.threads for result in results):
        here = [result for result in results if result.threads == threads]
        tables += [table for curve in CURVES if (table := curve_table(curve, threads, here))]
    if memories:
        tables.append(memory_table(memories, results))
    notes = [f"Not measured: {name} ({reason})." for name, reason in left_out.items()]
    return "\n".join(["\n\n".join(tables), "", *notes, "; ".join(f"{key}: {value}" for key, value in where.items())])


def network_table(results: Iterable[Result]) -> str:
    """One line for each row."""
    head = (
        "| network | threads | contender | time | against | time | ratio [20 %, 80 %] | at most "
        "| against itself [20 %, 80 %] | bytes per parameter | GB/s | GB/s of a copy |\n"
        "|---|---:|---|---:|---|---:|---:|---:|---:|---:|---:|---:|"
    )
    return "\n".join([head, *map(_network_line, results)])


def _network_line(result: Result) -> str:
    row = result.row
    aim = "" if row.aim is None else f"{row.aim} ({'met' if result.ratio.median <= row.aim else 'missed'})"
    return _line(
        row.case, str(result.threads), row.contender, format_time(result.time_ms), row.against,
        format_time(result.against_ms), format_spread(result.ratio), aim, format_spread(result.control),
        f"{result.bytes_per_parameter:g}", f"{result.gb_per_s:.1f}", f"{result.copy_gb_per_s:.1f}",
    )  # fmt: skip


def curve_table(curve: Curve, threads: int, results: Iterable[Result]) -> str:
    """Step time and ratio of each contender at each point, or nothing where no point was measured."""
    figures = {(result.row.contender, result.row.case, result.row.dtype): result for result in results}
    points = {value: point for value, point in curve.points.items() if point in {key[1:] for key in figures}}
    if not points:
        return ""

    def heading(value: int | str) -> str:
        against = next(figure.row.against for key, figure in figures.items() if key[1:] == points[value])
        return f"{value}" if against == AGAINST else f"{value}, × {against}"

    def cell(contender: str, point: tuple[str, str]) -> str:
        result = figures.get((contender, *point))
        return f"{format_time(result.time_ms)}, × {result.ratio.median:.2f}" if result else ""

    contenders = dict.fromkeys(contender for contender, *point in figures if tuple(point) in points.values())
    lines = [_line(contender, *(cell(contender, point) for point in points.values())) for contender in contenders]
    title = (
        f"Time of a step, and × that of {AGAINST} where no other is named, over {curve.quantity}; threads: {threads}"
    )
    head = _line("", *map(heading, points)) + "\n" + f"|---|{'---:|' * len(points)}"
    return "\n".join([title, "", head, *lines])


def memory_table(memories: Iterable[Memory], results: Iterable[Result]) -> str:
    """What a step moves, how fast, and what it needs, per parameter."""
    measured = [result for result in results if (result.row.case, result.row.dtype) == (MEMORY_CASE, "float32")]
    fastest = {result.row.contender: result for result in measured}  # of the most threads, which come last
    lines = []
    for memory in memories:
        result = fastest[memory.contender]
        lines.append(
            _line(
                memory.contender, f"{result.bytes_per_parameter:g}", f"{result.gb_per_s:.1f}",
                f"{result.copy_gb_per_s:.1f}", f"{memory.state:.1f}", f"{memory.during_step:.1f}",
            )
        )  # fmt: skip
    title = f"Memory of a step on {MEMORY_CASE} in float32, bytes per parameter:"
    head = "| | moved at least | GB/s | GB/s of a copy | kept as state | needed besides during a step |"
    return "\n".join([title, "", head, "|---|---:|---:|---:|---:|---:|", *lines])


def format_time(milliseconds: float) -> str:
    """Milliseconds, or microseconds below one."""
    return f"{milliseconds:.2f} ms" if milliseconds >= 1 else f"{milliseconds * 1e3:.0f} us"


def format_spread(ratio: Spread) -> str:
    """Median and percentiles."""
    return f"{ratio.median:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
