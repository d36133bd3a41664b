"""What was measured of the candidates of the CUDA kernels, and which of them to keep: by rules laid down beforehand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.report import table
from bench.turns import Spread
from tools.cuda_candidates import CANDIDATES, UNCHANGED

KERNELS, AGAIN = "the kernels", "the kernels again"
EDGES = ("VGG13-CIFAR", "ResNet-50")  # where a step's beginning and its end weigh most
STREAM = "VGG16"
ARGUMENTS = ("DenseNet-201", "ResNet-50, bfloat16 momentum")


@dataclass(frozen=True)
class Figures:
    """What was measured in turns at a place; differences are to the kernels, in microseconds, of batches' medians.

    Attributes:
        host_us: what a step that is not replayed takes on the host; None where that waits for the device.
        same_bits: whether weights, momentum and all that is carried had the kernels' bits in the end.
    """

    rounds: int
    time_us: float
    differences_us: Mapping[str, Spread]
    host_us: float | None
    host_differences_us: Mapping[str, Spread]
    same_bits: Mapping[str, bool]

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Figures:
        """Makes figures of what `dataclasses.asdict` made of them."""
        names = ("differences_us", "host_differences_us")
        spreads = {name: {key: Spread(**spread) for key, spread in fields[name].items()} for name in names}
        return cls(**{**fields, **spreads})

    def gain(self, candidate: str) -> float:
        """Returns how many microseconds it saves; 0 if that is no more than what is the same differs."""
        return _beyond(self.differences_us, candidate)

    def host_gain(self, candidate: str) -> float:
        """Returns the same of the host."""
        return _beyond(self.host_differences_us, candidate)


def _beyond(differences: Mapping[str, Spread], candidate: str) -> float:
    same = [differences[name] for name in (AGAIN, UNCHANGED) if name in differences]
    noise = max(abs(end) for spread in same for end in (spread.low, spread.high))
    saved = -differences[candidate].median
    return saved if abs(saved) > noise else 0.0


class Measurements:
    """All figures, by the place; where one of the candidates broke down there are some for each of the others."""

    def __init__(self, places: Mapping[str, Sequence[Figures]]) -> None:
        self._places = places

    def at(self, place: str, candidate: str) -> Figures:
        """Returns the figures; raises KeyError where there are none."""
        for figures in self._places.get(place, []):
            if candidate in figures.differences_us:
                return figures
        raise KeyError(place)

    def of(self, candidate: str) -> Iterator[tuple[str, Figures]]:
        """Yields the places where there are figures, with these."""
        for place, all_here in self._places.items():
            yield from ((place, figures) for figures in all_here if candidate in figures.differences_us)

    def gains(self, candidate: str, places: Sequence[str]) -> list[float]:
        """Returns what it saves at each of the places."""
        return [self.at(place, candidate).gain(candidate) for place in places]

    def loses_nowhere(self, candidate: str) -> bool:
        """Returns whether it is no slower wherever it was measured, and on all networks in float32."""
        self.gains(candidate, [*EDGES, STREAM])
        return all(figures.gain(candidate) >= 0 for _, figures in self.of(candidate))


Rule = Callable[[Measurements, str], bool]


def _saves_a_percent(of: Measurements, candidate: str) -> bool:
    figures = of.at(STREAM, candidate)
    return figures.gain(candidate) > 0.01 * figures.time_us and of.loses_nowhere(candidate)


def _saves_what_the_end_costs(of: Measurements, candidate: str) -> bool:
    is_worth_it = min(of.gains("without epilogue", EDGES)) > 3
    return is_worth_it and min(of.gains(candidate, EDGES)) > 1 and of.loses_nowhere(candidate)


def _saves_more_than_each(of: Measurements, candidate: str) -> bool:
    alone = [of.gains(name, EDGES) for name in ("prefetch", "tensor trees")]
    return all(both > max(each) + 0.5 for both, *each in zip(of.gains(candidate, EDGES), *alone, strict=True))


def _saves_arguments(of: Measurements, candidate: str) -> bool:
    here = [of.at(place, candidate) for place in ARGUMENTS]
    return all(max(figures.gain(candidate), figures.host_gain(candidate)) > 1 for figures in here)


KEPT_IF: dict[str, tuple[str, Rule]] = {
    "prefetch": (
        f"over 1 µs on {' and '.join(EDGES)}, no loss",
        lambda of, name: min(of.gains(name, EDGES)) > 1 and of.loses_nowhere(name),
    ),
    "tensor trees": (
        "over 1 µs there, where the epilogue costs over 3, no loss",
        _saves_what_the_end_costs,
    ),
    "prefetch, tensor trees": ("0.5 µs more there than each alone", _saves_more_than_each),
    "evict gradients": (f"over 1 % on {STREAM}, no loss", _saves_a_percent),
    "evict momentum": (f"over 1 % on {STREAM}, no loss", _saves_a_percent),
    "short arguments": (f"over 1 µs, of the host or the device, on {' and '.join(ARGUMENTS)}", _saves_arguments),
}


def verdict(candidate: str, of: Measurements) -> str:
    """Says whether to keep it: yes, no, or why nobody knows."""
    takes_wrong_steps = any(not figures.same_bits[candidate] for _, figures in of.of(candidate))
    if takes_wrong_steps and CANDIDATES[candidate].takes_right_steps:
        return "no: its steps are wrong"
    if candidate == UNCHANGED:
        return "shows what another module costs"
    if candidate not in KEPT_IF:
        return "shows what a part costs"
    try:
        return "yes" if KEPT_IF[candidate][1](of, candidate) else "no"
    except KeyError as error:
        return f"not known without {error.args[0]}"


def markdown(places: Mapping[str, Sequence[Figures]], notes: Mapping[str, str], where: Mapping[str, object]) -> str:
    """Returns all figures, what to keep, what was left out and why, and the machine."""
    of = Measurements(places)
    verdicts, lines = [], []
    for name, candidate in CANDIDATES.items():
        measured = [f"{place} {figures.differences_us[name].median:+.1f}" for place, figures in of.of(name)]
        kept_if = KEPT_IF[name][0] if name in KEPT_IF else ""
        verdicts.append([name, candidate.predicted, ", ".join(measured), kept_if, verdict(name, of)])
        for place, figures in of.of(name):
            host = "" if figures.host_us is None else f"{figures.host_us:.1f}"
            on_host = figures.host_differences_us
            lines.append([
                *(place, name, f"{figures.time_us:.1f}", str(figures.rounds)),
                *(_signed(figures.differences_us, name), _signed(figures.differences_us, AGAIN), host),
                *((_signed(on_host, name), _signed(on_host, AGAIN)) if on_host else ("", "")),
                "" if not candidate.takes_right_steps else "yes" if figures.same_bits[name] else "NO",
            ])  # fmt: skip
    head = "network|candidate|the kernels, µs|rounds|more, µs [20 %, 80 %]|again|host, µs|more|again|same bits"
    parts = [
        table(head, "llrrrrrrrl", lines),
        table("candidate|predicted, µs|measured, µs|kept if it saves|keep?", "lllll", verdicts),
        *(f"Not measured: {name} ({' '.join(reason.split())})." for name, reason in notes.items()),
        "; ".join(f"{key}: {fact}" for key, fact in where.items() if fact is not None),
    ]
    return "\n\n".join(parts) + "\n"


def _signed(differences: Mapping[str, Spread], name: str) -> str:
    spread = differences[name]
    return f"{spread.median:+.1f} [{spread.low:+.1f}, {spread.high:+.1f}]"
