"""The report of the local Hessian: six pictures, and what it says about training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.hessian.blocks import PLAIN, SKIPS, he
from experiments.hessian.factors import (
    EPOCHS,
    NETWORKS,
    PROBES,
    RULES,
    TRAINED,
    first_digits,
    make_network,
    take_misfits,
    take_rates,
)
from experiments.hessian.inputs import LAYERS, take_unit_spectra
from experiments.hessian.pictures import (
    draw_depth,
    draw_distances,
    draw_inputs,
    draw_residual,
    draw_spectra,
    draw_steps,
)
from experiments.hessian.residual import take_residual
from experiments.hessian.steps import DEPTH, take_steps, through_depth
from experiments.hessian.tables import (
    make_depth_table,
    make_distance_table,
    make_input_table,
    make_misfit_table,
    make_rate_table,
    make_residual_table,
    make_step_table,
    make_training_table,
)
from experiments.hessian.theory import WIDTHS, take_distances, take_spectra
from experiments.hessian.training import BLOCKS, KINDS, STEPS, rank_correlation, take_training
from experiments.report import versions
from sasgd_fused.local import condition_report, output_shares

NAME = "local-hessian"
FEW = 32  # images of the condition report


@dataclass(frozen=True)
class Sizes:
    """How large everything is; less is for tests.

    Attributes:
        outputs: of the layers of picture 1; `widths`: of those of picture 6.
        units: of the blocks of picture 2.
        depth: arguments of `through_depth`; `residual`: of `take_residual`; `training`: of `take_training`; `rates`: of
            `take_rates`.
        kinds: the blocks that are trained.
        networks: whose backward factors are compared; `amended`: those that are trained with them.
    """

    outputs: int = 400
    widths: Sequence[int] = WIDTHS
    units: int = 128
    depth: Mapping[str, Any] = field(default_factory=dict)
    residual: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    rates: Mapping[str, Any] = field(default_factory=dict)
    kinds: Sequence[str] = tuple(KINDS)
    networks: Sequence[str] = tuple(NETWORKS)
    amended: Sequence[str] = TRAINED


FULL = Sizes()


def write_hessian_report(folder: Path, sizes: Sizes = FULL, say: Callable[[str], None] = print) -> Path:
    """Computes everything, writes the report and its pictures; returns the report's path.

    Args:
        folder: where to.
        sizes: of the networks.
        say: is told what is done next.
    """
    folder.mkdir(parents=True, exist_ok=True)
    libraries = ", ".join(f"{name}: {value}" for name, value in versions("torch", "scipy").items())
    parts = [f"# The local Hessian\n\nMade by `python -m experiments hessian`. {libraries}.\n"]
    for number, (title, section) in enumerate(SECTIONS.items(), 1):
        say(f"{number}/{len(SECTIONS)} {title}")
        parts += [f"## {number}. {title}\n", *section(folder, sizes)]
    report = folder / f"{NAME}.md"
    report.write_text("\n".join(parts), encoding="utf-8")
    return report


def _picture(folder: Path, name: str, draw: Callable[[Path, Any], None], what: Any, title: str) -> str:
    file = f"{NAME}-{name}.png"
    draw(folder / file, what)
    return f"![{title}]({file})\n"


def _spectra(folder: Path, sizes: Sizes) -> list[str]:
    text = (
        "Layers of independent normal weights, twice as many inputs as outputs. Lines are (10), (11) and (19), "
        "which hold for H_z / n_b of a linear layer and for H_z with batch normalization. With weights twice as "
        "large the spectrum of a linear layer is four times as large; with batch normalization it stays (remark 2).\n"
    )
    spectra = take_spectra(sizes.outputs)
    return [text, _picture(folder, "spectra", draw_spectra, spectra, "Eigenvalues of H_z and the Marchenko-Pastur law")]


def _steps(folder: Path, sizes: Sizes) -> list[str]:
    text = (
        "J is a block's Jacobian over a batch, d what its output should change by. Back-propagation changes the "
        "input by Jᵀd, a step of size 1 on the back-matching loss, which leaves ‖d − J Jᵀd‖² of ‖d‖². G has the "
        "variance 1/n, Q is orthogonal.\n"
    )
    found = take_steps(sizes.units)
    picture = _picture(folder, "steps", draw_steps, found, "What one step of size 1 leaves of the back-matching loss")
    return [text, picture, make_step_table(found).to_markdown()]


def _depth(folder: Path, sizes: Sizes) -> list[str]:
    text = (
        f"Chains of {sizes.depth.get('depth', DEPTH)} blocks of one kind. Where the cosine is small, the blocks near "
        "the input are asked for something else than what would change the output as it should.\n"
    )
    cosines = {name: through_depth(make, **sizes.depth) for name, make in (PLAIN | SKIPS).items() if make is not he}
    picture = _picture(folder, "depth", draw_depth, cosines, "Cosine to the exact displacement by blocks passed")
    return [text, picture, make_depth_table(cosines).to_markdown()]


def _residual(folder: Path, sizes: Sizes) -> list[str]:
    text = (
        "A pre-activation residual network on digits, blocks of two layers with batch normalization and ReLU, SGD "
        "with momentum. Remark 1 assumes σ_max(∂φ/∂z) < 1 and concludes C(I + ∂φ/∂z) < C(∂φ/∂z); whether networks "
        "fulfil the assumption the paper leaves open. Each point is a sample.\n"
    )
    looks = take_residual(**sizes.residual)
    picture = _picture(folder, "residual", draw_residual, looks, "Assumption and conclusion of remark 1 by block")
    return [text, picture, make_residual_table(looks).to_markdown()]


def _inputs(folder: Path, sizes: Sizes) -> list[str]:
    text = (
        f"H_w of a unit behind {LAYERS} ReLU layers of a new network on digits. Batch normalization takes the mean "
        "out of the unit's inputs as far as H_w goes, which (18) does not have.\n"
    )
    spectra = take_unit_spectra()
    picture = _picture(
        folder, "inputs", draw_inputs, spectra, "Eigenvalues of H_w with and without batch normalization"
    )
    return [text, picture, make_input_table(spectra).to_markdown()]


def _distances(folder: Path, sizes: Sizes) -> list[str]:
    text = (
        "The law is that of infinite layers. With batch normalization the batch is finite too: each unit is divided "
        "by the deviation of a sample.\n"
    )
    found = take_distances(sizes.widths)
    picture = _picture(folder, "distances", draw_distances, found, "Distance to the Marchenko-Pastur law by width")
    return [text, picture, make_distance_table(found).to_markdown()]


def _training(folder: Path, sizes: Sizes) -> list[str]:
    text = (
        f"Networks of {BLOCKS} blocks z → skip(z) + ReLU(W z) on digits, {STEPS} steps of SGD with momentum; skips "
        "are not trained. What is left is of the displacements that the loss asks for, at initialisation.\n"
    )
    trained = {name: take_training(KINDS[name], **sizes.training) for name in sizes.kinds}
    correlation, p_value = rank_correlation(list(trained.values()))
    said = f"Spearman's rank correlation of what is left with the loss: {correlation:.2f} (p = {p_value:.2g}).\n"
    return [text, make_training_table(trained).to_markdown(), said]


def _factors(folder: Path, sizes: Sizes) -> list[str]:
    text = (
        f"Backward factors of ScaleAmendedSGD by rule, against those measured with {PROBES} probes. Below, training "
        f"with them on noisy digits, {EPOCHS} epochs with a cosine schedule; factors are taken once, at "
        "initialisation.\n"
    )
    misfits = {name: take_misfits(name) for name in sizes.networks}
    rates = {(name, rule): take_rates(name, rule, **sizes.rates) for name in sizes.amended for rule in RULES}
    return [text, make_misfit_table(misfits).to_markdown(), make_rate_table(rates).to_markdown()]


def _reports(folder: Path, sizes: Sizes) -> list[str]:
    text = (
        f"`condition_report(model, images[:{FEW}])` and `output_shares(model, images)` of a new pre-activation ResNet, "
        "that of `compare --preset resnet`, with digits.\n"
    )
    model, images = make_network("pre-activation ResNet, 6 blocks", seed=0), first_digits()
    reports = condition_report(model, images[:FEW]), output_shares(model, images)
    return [text, *(f"```text\n{report!r}\n```\n" for report in reports)]


SECTIONS = {
    "Spectra of H_z": _spectra,
    "One step of size 1": _steps,
    "Through depth": _depth,
    "Remark 1 in a trained residual network": _residual,
    "H_w with and without batch normalization": _inputs,
    "How wide is wide enough": _distances,
    "What is left, and training": _training,
    "Backward factors": _factors,
    "The reports of a ResNet": _reports,
}
