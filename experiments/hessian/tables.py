"""The tables of the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median

from experiments.hessian.blocks import Spectrum
from experiments.hessian.factors import Misfit, Rates
from experiments.hessian.residual import OfBlock
from experiments.hessian.steps import OneStep
from experiments.hessian.theory import Distances
from experiments.hessian.training import Trained
from experiments.tables import Table


def make_step_table(steps: Mapping[str, OneStep]) -> Table:
    """Says what one step of size 1 does to each kind of block."""
    rows = [
        [
            name,
            *(_number(value) for value in (step.left, step.least, step.largest, step.condition)),
            f"{step.cosine:.3f}",
        ]
        for name, step in steps.items()
    ]
    caption = (
        "Medians over seeds. λ_max and C(J) are of one sample. Left and cosine are for displacements of independent "
        "normal elements; more than 1 is left where the step makes the match worse."
    )
    return Table(("block", "left", "least possible", "λ_max", "C(J)", "cos(step, exact)"), rows, caption)


def make_depth_table(cosines: Mapping[str, Sequence[float]]) -> Table:
    """Shows the cosines after some of the blocks."""
    depth = len(next(iter(cosines.values())))
    shown = [number for number in (1, 2, 5, 10, 20) if number <= depth]
    rows = [[name, *(f"{values[number - 1]:.3f}" for number in shown)] for name, values in cosines.items()]
    caption = "Cosine between the displacement of back-propagation and that of exact solutions all the way back."
    return Table(("blocks passed", *map(str, shown)), rows, caption)


def make_residual_table(looks: Mapping[str, Sequence[OfBlock]]) -> Table:
    """Counts in how many blocks and samples the assumptions of remark 1 and its conclusion hold."""
    rows = []
    for name, blocks in looks.items():
        samples = [
            one for of_block in blocks for one in zip(of_block.largest, of_block.branch, of_block.block, strict=True)
        ]
        count = len(samples)
        small = sum(largest < 1 for largest, _, _ in samples)
        blocks_small = sum(median(of_block.largest) < 1 for of_block in blocks)
        better = sum(whole < branch for _, branch, whole in samples)
        first, last = (f"{median(of_block.largest):.2f}" for of_block in (blocks[0], blocks[-1]))
        branch, whole = (median(one[place] for one in samples) for place in (1, 2))
        cells = f"{small} of {count}", f"{blocks_small} of {len(blocks)}", f"{better} of {count}"
        rows.append([name, first, last, *cells, _number(branch), _number(whole)])
    heading = (
        "network",
        "σ_max, first block",
        "last block",
        "σ_max < 1, samples",
        "blocks, by the median",
        "C(I + A) < C(A), samples",
        "C(A)",
        "C(I + A)",
    )
    return Table(heading, rows, "A = ∂φ/∂z for one sample of a batch, with a cut-off of 1e-6 σ_max in C. Medians.")


def make_input_table(spectra: Mapping[str, Spectrum]) -> Table:
    """Shows how uneven the spectra of H_w are."""
    rows = [
        [name, _number(found.largest_over_mean), f"{found.effective_rank:.1f} of {len(found.eigenvalues)}"]
        for name, found in spectra.items()
    ]
    return Table(("H_w", "λ_max / mean λ", "effective rank"), rows, "Effective rank is (Σλ)² / Σλ².")


def make_distance_table(distances: Distances) -> Table:
    """Shows the mean distances by width."""

    def cells(of_widths: Mapping[int, Sequence[float]], read: Callable[[Sequence[float]], float]) -> list[str]:
        return [f"{read(values):.4f}" for values in of_widths.values()]

    rows = []
    for name, of_widths in (("linear", distances.linear), ("batch normalization", distances.normalized)):
        rows += [[f"{name}, mean", *cells(of_widths, lambda values: sum(values) / len(values))]]
        rows += [[f"{name}, largest", *cells(of_widths, max)]]
    return Table(("outputs", *map(str, distances.linear)), rows, "Kolmogorov-Smirnov distance over the seeds.")


def make_training_table(trained: Mapping[str, Trained]) -> Table:
    """Says what each kind of block leaves, and what it trains to."""
    ordered = sorted(trained.items(), key=lambda item: item[1].loss.mean)
    rows = [[name, _number(one.left), f"{one.lr:g}", one.loss.format(3)] for name, one in ordered]
    caption = "At the best rate of each; means over the seeds ± half of their 95 % intervals."
    return Table(("block", "left", "lr", "training loss"), rows, caption)


def make_misfit_table(misfits: Mapping[str, Mapping[str, Misfit]]) -> Table:
    """Says how far each rule is from the measured factors."""
    rules = list(next(iter(misfits.values())))
    rows = [
        [name, *(f"×{found[rule].typical:.2f} ({found[rule].span:.2g})" for rule in rules)]
        for name, found in misfits.items()
    ]
    caption = (
        "Measured factor over the rule's, hidden layers, new networks on digits: 2 to the power of the root mean "
        "square of its logarithm, a common factor aside; in brackets the largest over the smallest."
    )
    return Table(("network", *rules), rows, caption)


def make_rate_table(rates: Mapping[tuple[str, str], Rates]) -> Table:
    """Shows test errors by learning rate, for networks and rules."""
    learning_rates = list(next(iter(rates.values())).errors)
    rows = []
    for (network, rule), found in rates.items():
        cells = [
            f"**{error.format(2)}**" if lr == found.best else error.format(2) for lr, error in found.errors.items()
        ]
        rows.append([f"{network}: {rule}", *cells])
    caption = (
        "Test error in percent, means over seeds ± half of their 95 % intervals; each rule's best in bold. Frozen "
        "norms, plain head, shape decay, weight decay 0."
    )
    return Table(("network: factors", *(f"lr {lr:g}" for lr in learning_rates)), rows, caption)


def _number(value: float) -> str:
    return "0" if abs(value) < 1e-6 else f"{value:.3g}"
