"""The Markdown report of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench.cases import parameter_count
from bench.gpu.machine import DRY_RUN
from bench.gpu.units import AGAINST, COMPILED, CONTENDERS, NETWORKS

RATIO_AIM = 0.95  # of the time of AGAINST, at most
COPY_AIM = 0.92  # of the bandwidth of a large copy, at least
COPY_AIM_FROM = 100_000_000  # parameters
WAYS = {"events": "by events", "graph": "by graph replay"}
MET = {True: "met", False: "MISSED", None: "not measured"}
MOST_FAILURES = 20

NO_GPU = "Only the programs were tried: none of these figures is a GPU's."

Measurement = Mapping[str, Any]

METHOD = f"""\
A contender takes turns with a second `{AGAINST}` and with a large copy on the device; ratios are those of a round.
Figures are medians with the 20th and 80th percentile. The row of `{AGAINST}` compares it with itself: how far its ratio
strays from 1 is how far the others are to be trusted.

- *Events*: CUDA events around a step that the host has enqueued before the device comes to it. *Graph*: around the
  replay of a captured step.
- Before each timed step a buffer of four times the L2 cache is filled. So nothing of the step is in the cache, and as
  many lines have to be written back as the step leaves behind.
- *Of copy*: the bytes that a step has to move (20 for a float32 parameter, 10 for bfloat16) over its time, as a share
  of the bytes that the copy reads and writes over its time; by events, by graph replay.
- *Host*: time of the call with nothing in the device's queue. *Launches*: of kernels in one step, by torch.profiler,
  and of copies and fills, if any."""


def markdown(results: Mapping[str, Any]) -> str:
    """Write all that deserves to be read."""
    where, parts = results["where"], results["parts"]
    facts = "; ".join(f"{key}: {fact}" for key, fact in where.items() if fact is not None and key != "device")
    sections = [f"# {where['device']}", facts, "## Checks", checks(parts), *failures(parts)]
    if "bench" in parts:
        measurements = parts["bench"]["measurements"]
        sections += [NO_GPU] if where["device"] == DRY_RUN else ["## Aims", aims(measurements)]
        sections += ["## Steps", METHOD, steps(measurements)]
        if notes := list(errors(measurements)):
            sections += ["## Not measured", "\n".join(notes)]
    return "\n\n".join(sections) + "\n"


def checks(parts: Mapping[str, Any]) -> str:
    """Tabulate what passed."""
    rows = []
    for name in ("build", "tests", "sanitizer"):
        part = parts.get(name)
        if part is None:
            rows.append((name, "not run", "", ""))
            continue
        counts = [
            f"{part[outcome]} {outcome}" for outcome in ("passed", "failed", "errors", "skipped") if outcome in part
        ]
        rows.append(
            (name, verdict(part["ok"]), ", ".join(counts) or brief(part.get("error")), f"{part['seconds']:.0f} s")
        )
        for tool, seen in part.get("tools", {}).items():
            said = f"{seen['errors']} errors" if seen.get("errors") is not None else brief(seen.get("error"))
            rows.append((tool, verdict(seen["ok"]), said, f"{seen.get('seconds', 0):.0f} s"))
    return table("check|verdict||time", "llll", rows)


def failures(parts: Mapping[str, Any]) -> Iterator[str]:
    """List the tests that failed."""
    failed = parts.get("tests", {}).get("failures", [])
    if failed:
        yield "\n".join(f"- `{test['name']}`: {brief(test['message'])}" for test in failed[:MOST_FAILURES])
    if len(failed) > MOST_FAILURES:
        yield f"... and {len(failed) - MOST_FAILURES} more."


def aims(measurements: Sequence[Measurement]) -> str:
    """Tabulate what the native backend is to reach."""
    rows = []
    for case in NETWORKS:
        place = case, "float32", "native"
        native = next((m for m in measurements if (m["case"], m["dtype"], m["contender"]) == place), {})
        for way, by in WAYS.items():
            ratio = native.get(way, {}).get("ratio")
            met = ratio and ratio["median"] <= RATIO_AIM
            rows.append((case, f"time {by}: at most {RATIO_AIM} of {AGAINST}", spread(ratio), MET[met]))
        for way, by in WAYS.items() if parameter_count(case) >= COPY_AIM_FROM else ():
            share = native.get(way, {}).get("share_of_copy")
            met = share and share["median"] >= COPY_AIM
            rows.append((case, f"bandwidth {by}: at least {COPY_AIM} of a copy", spread(share), MET[met]))
    return table("network|aim|reached|", "llrl", rows)


def steps(measurements: Sequence[Measurement]) -> str:
    """Tabulate all times, contenders always in the same order."""
    measured = [m for m in measurements if any(name in m for name in (*WAYS, "host", "launches"))]
    networks = list(dict.fromkeys((m["case"], m["dtype"]) for m in measured))
    order = (*CONTENDERS, COMPILED)
    rows = []
    for m in sorted(measured, key=lambda m: (networks.index((m["case"], m["dtype"])), order.index(m["contender"]))):
        network = m["case"] if m["dtype"] == "float32" else f"{m['case']}, {m['dtype']}"
        events, graph, host = m.get("events", {}), m.get("graph", {}), m.get("host", {})
        shares = [f"{100 * way['share_of_copy']['median']:.0f} %" for way in (events, graph) if way]
        rows.append(
            (
                *(network, m["contender"], time(events.get("us")), spread(events.get("ratio"))),
                *(time(graph.get("us")), spread(graph.get("ratio")), ", ".join(shares)),
                *(time(host.get("us")), launches(m.get("launches"))),
            )
        )
    head = f"network|contender|events|of {AGAINST}|graph|of {AGAINST}|of copy|host|launches"
    return table(head, "llrrrrrrr", rows)


def errors(measurements: Sequence[Measurement]) -> Iterator[str]:
    """Say why something was not measured, each reason once."""
    reasons: dict[str, list[str]] = {}
    for m in measurements:
        for key, what in (("error", ""), ("graph_error", ", graph"), ("launches_error", ", launches")):
            if key in m:
                reasons.setdefault(brief(m[key]), []).append(f"{m['contender']} on {m['case']} in {m['dtype']}{what}")
    for reason, units in reasons.items():
        yield f"- {'; '.join(units)}: {reason}"


def launches(counts: Mapping[str, int] | None) -> str:
    """`2`, or `2 + 1 copies` where the device is given more than kernels."""
    if counts is None:
        return ""
    others = [f"{count} {name}" for name, count in counts.items() if name != "kernels" and count]
    return " + ".join([str(counts["kernels"]), *others])


def time(us: Mapping[str, float] | None) -> str:
    """Median and percentiles in milliseconds or microseconds."""
    if us is None:
        return ""
    unit, name = (1e3, "ms") if us["median"] >= 1e3 else (1, "µs")
    digits = 2 if us["median"] < 10 * unit else 1
    median, low, high = (f"{us[key] / unit:.{digits}f}" for key in ("median", "low", "high"))
    return f"{median} {name} [{low}, {high}]"


def spread(ratio: Mapping[str, float] | None) -> str:
    """Median and percentiles of a ratio."""
    return "" if ratio is None else f"{ratio['median']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]"


def verdict(ok: bool | None) -> str:
    """What a check came to."""
    return {True: "passed", False: "FAILED", None: "not possible here"}[ok]


def brief(text: str | None) -> str:
    """The first line and the last, fit for a table."""
    lines = [line.strip() for line in (text or "").splitlines() if line.strip()]
    return ": ".join(lines[:1] + lines[1:][-1:]).replace("|", "\\|")[:300]


def table(head: str, alignment: str, rows: Sequence[Sequence[str]]) -> str:
    """Format a table; `alignment` has an l or r for each column."""
    ruler = "|".join({"l": "---", "r": "---:"}[letter] for letter in alignment)
    lines = [" | ".join(cells) for cells in (head.split("|"), *rows)]
    return "\n".join([f"| {lines[0]} |", f"|{ruler}|", *(f"| {line} |" for line in lines[1:])])
