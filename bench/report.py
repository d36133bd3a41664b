"""Formats what was measured as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from bench.cases import GRID_CASES
from bench.measure import Result
from bench.memory import Memory
from bench.rows import AGAINST, CURVES, MEMORY_CASE, Curve


def markdown(
    results: Sequence[Result], memories: Sequence[Memory], left_out: Mapping[str, str], where: Mapping[str, object]
) -> str:
    """Returns all tables that there are figures for, what was left out and why, and the machine."""
    on_networks = [result for result in results if result.row.case not in GRID_CASES]
    parts = [network_table(on_networks)] if on_networks else []
    for threads in dict.fromkeys(result.threads for result in results):
        here = [result for result in results if result.threads == threads]
        parts += [table for curve in CURVES if (table := curve_table(curve, threads, here))]
    if memories:
        parts.append(memory_table(memories, results))
    notes = [f"Not measured: {name} ({' '.join(reason.split())})." for name, reason in left_out.items()]
    return "\n\n".join([*parts, *notes, "; ".join(f"{key}: {fact}" for key, fact in where.items())])


def network_table(results: Sequence[Result]) -> str:
    """Returns a table with one line for each row, those of a network together."""
    with_host = any(result.host_us is not None for result in results)
    head = (
        "network|threads|contender|time|against|time|ratio [20 %, 80 %]|at most|against itself [20 %, 80 %]"
        "|bytes per parameter|GB/s|GB/s of a copy" + "|host" * with_host
    )
    cases = list(dict.fromkeys((result.row.case, result.row.dtype) for result in results))
    in_order = sorted(results, key=lambda result: cases.index((result.row.case, result.row.dtype)))
    return table(head, "lrlrlrrlrrrr" + "r" * with_host, [_network_line(result, with_host) for result in in_order])


def _network_line(result: Result, with_host: bool) -> list[str]:
    row, bandwidth = result.row, f"{result.gb_per_s:.1f}"
    on_host = "" if result.host_us is None else format_time(result.host_us / 1e3)
    if row.copy_aim is not None:
        bandwidth += f" ({row.copy_aim} of a copy {_met(result.gb_per_s >= row.copy_aim * result.copy_gb_per_s)})"
    return [
        row.case if row.dtype == "float32" else f"{row.case}, {row.dtype}",
        *(str(result.threads), row.contender, format_time(result.time_ms)),
        *(row.against, format_time(result.against_ms), str(result.ratio)),
        "" if row.aim is None else f"{row.aim} ({_met(result.ratio.median <= row.aim)})",
        *(str(result.control), f"{result.bytes_per_parameter:g}", bandwidth, f"{result.copy_gb_per_s:.1f}"),
        *([on_host] if with_host else []),
    ]


def _met(is_met: bool) -> str:
    return "met" if is_met else "missed"


def curve_table(curve: Curve, threads: int, results: Iterable[Result]) -> str:
    """Returns step time and ratio of each contender at each point, or nothing where no point was measured."""
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
    lines = [[contender, *(cell(contender, point) for point in points.values())] for contender in contenders]
    title = f"Time of a step, and × that of {AGAINST} where no other is named, over {curve.quantity}, {curve.rest}"
    head = "|".join(["", *map(heading, points)])
    return f"{title}; threads: {threads}\n\n{table(head, 'l' + 'r' * len(points), lines)}"


def memory_table(memories: Iterable[Memory], results: Iterable[Result]) -> str:
    """Returns what a step moves, how fast, and what it needs, per parameter."""
    measured = [result for result in results if (result.row.case, result.row.dtype) == (MEMORY_CASE, "float32")]
    fastest = {result.row.contender: result for result in measured}  # of the most threads, which come last
    lines = [
        [
            *(memory.contender, f"{result.bytes_per_parameter:g}", f"{result.gb_per_s:.1f}"),
            *(f"{result.copy_gb_per_s:.1f}", f"{memory.state:.1f}", f"{memory.during_step:.1f}"),
            format_launches(memory.launches),
        ]
        for memory in memories
        for result in [fastest[memory.contender]]
    ]
    title = f"Memory of a step on {MEMORY_CASE} in float32, bytes per parameter:"
    head = "|moved at least|GB/s|GB/s of a copy|kept as state|needed besides during a step|launches"
    return f"{title}\n\n{table(head, 'lrrrrrr', lines)}"


def format_time(milliseconds: float) -> str:
    """Returns milliseconds, or microseconds below one."""
    return f"{milliseconds:.2f} ms" if milliseconds >= 1 else f"{milliseconds * 1e3:.0f} µs"


def format_launches(counts: Mapping[str, int] | None) -> str:
    """Returns `2`, or `2 + 1 copies` where a GPU is given more than kernels."""
    others = [f"{count} {name}" for name, count in (counts or {}).items() if name != "kernels" and count]
    return " + ".join([str(counts["kernels"]), *others]) if counts else ""


def table(head: str, alignment: str, lines: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table; `alignment` has an l or r for each column."""
    ruler = "|".join({"l": "---", "r": "---:"}[letter] for letter in alignment)
    texts = [" | ".join(cells) for cells in (head.split("|"), *lines)]
    return "\n".join([f"| {texts[0]} |", f"|{ruler}|", *(f"| {text} |" for text in texts[1:])])
