"""What a comparison can change besides the method: how much does each one depend on it?"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Variation:
    """A change of the setting, with learning rate and weight decay as they were tuned without it.

    Attributes:
        kind: what the command line calls it.
        lr: factor of the learning rate.
        decades: each hidden layer's initial weights are multiplied by 10^-decades to 10^decades, see `scale_badly`.
        width: factor of the hidden layers' widths.
    """

    kind: str
    lr: float = 1.0
    decades: float = 0.0
    width: float = 1.0


TUNED = "tuned"
VARIATIONS: dict[str, Variation] = {
    TUNED: Variation(TUNED),
    **{f"lr x {10**power:.2g}": Variation("lr", lr=10**power) for power in (-1, -0.5, 0.5, 1)},
    "init": Variation("init", decades=1),
    **{f"width x {factor:g}": Variation("width", width=factor) for factor in (0.5, 2)},
}
KINDS = tuple(dict.fromkeys(variation.kind for variation in VARIATIONS.values() if variation.kind != TUNED))


def choose(kinds: tuple[str, ...]) -> tuple[str, ...]:
    """Keys of the variations of some kinds, the unchanged setting first."""
    return tuple(name for name, variation in VARIATIONS.items() if variation.kind in (TUNED, *kinds))
