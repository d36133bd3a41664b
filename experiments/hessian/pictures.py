"""The six pictures of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter

from experiments.hessian.blocks import Spectrum
from experiments.hessian.residual import OfBlock
from experiments.hessian.steps import OneStep
from experiments.hessian.theory import Distances, Spectra
from experiments.pictures import COLOURS, DASHES
from sasgd_fused.local import MarchenkoPastur

DPI = 90


def draw_spectra(path: Path, spectra: Spectra) -> None:
    """Draws histograms of eigenvalues beside the law: linear, with batch normalization, orthogonal."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for axes, found, unit_rows, title in (
        (left, spectra.linear, False, "linear, H_z / n_b, (10) and (11)"),
        (middle, spectra.normalized, True, "with batch normalization, H_z, (19)"),
    ):
        for (variance, eigenvalues), colour, dash in zip(found.items(), COLOURS[1:], ("-", "--"), strict=False):
            law = MarchenkoPastur(0.5, 1.0 if unit_rows else variance, unit_rows=unit_rows)
            values = eigenvalues[eigenvalues > 1e-9 * eigenvalues[-1]].numpy()
            weights = np.full(len(values), 1 / len(eigenvalues))
            bins = np.geomspace(law.edges[0] * 0.7, law.edges[1] * 1.3, 28)
            widths = np.diff(bins)
            counts, _ = np.histogram(values, bins, weights=weights)
            label = f"variance × {variance:g}"
            axes.stairs(counts / widths, bins, color=colour, fill=True, alpha=0.25)
            axes.stairs(counts / widths, bins, color=colour, linestyle=dash, linewidth=0.8, label=label)
            points = np.geomspace(*law.edges, 400)
            axes.plot(points, law.pdf(torch.from_numpy(points)), color=colour, linestyle=dash, linewidth=1.6)
        axes.set_title(title, fontsize=10)
        axes.legend(frameon=False, fontsize=8)
    right.hist(spectra.orthogonal.numpy(), bins=np.linspace(-0.05, 2.05, 43), density=False, color=COLOURS[2])
    right.set_title("orthogonal, H_z", fontsize=10)
    for axes in (left, middle):
        _finish(axes, "eigenvalue, log scale", "density" if axes is left else "")
        axes.set_xscale("log")
    _finish(right, "eigenvalue", "count")
    inputs = 2 * spectra.outputs
    figure.suptitle(f"H_z of layers {inputs} → {spectra.outputs}; half of all eigenvalues are 0", fontsize=11)
    figure.savefig(path, dpi=DPI)


def draw_steps(path: Path, steps: Mapping[str, OneStep]) -> None:
    """Draws what one step of size 1 leaves of the loss, and what the best change of the input would."""
    figure = Figure(figsize=(9, 0.9 + 0.27 * len(steps)), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(steps))[::-1]
    left = np.array([step.left for step in steps.values()])
    least = np.array([step.least for step in steps.values()])
    axes.barh(places, left, color=[COLOURS[1] if value > 1 else COLOURS[2] for value in left], alpha=0.85)
    axes.plot(least, places, "|", color="black", markersize=11, markeredgewidth=2, label="the least that is possible")
    for place, value in zip(places, left, strict=True):
        axes.annotate(
            f"{value:.2g}" if value > 1e-6 else "0",
            (value, place),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.set_yticks(places, list(steps), fontsize=9)
    axes.axvline(1, color="#777777", linewidth=1, linestyle="--", label="as much as before the step")
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    _finish(axes, "left of ‖d‖² after one step of size 1, the step of back-propagation", "")
    figure.savefig(path, dpi=DPI)


def draw_depth(path: Path, cosines: Mapping[str, Sequence[float]]) -> None:
    """Draws the cosine between back-propagation's displacement and the exact one over the blocks passed."""
    figure = Figure(figsize=(7.5, 3.8), layout="constrained")
    axes = figure.subplots()
    for (name, values), colour, dash in zip(cosines.items(), COLOURS * 2, DASHES * 2, strict=False):
        axes.plot(np.arange(1, len(values) + 1), values, color=colour, linestyle=dash, label=name)
    axes.axhline(0, color="black", linewidth=0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside right center", frameon=False, fontsize=8)
    _finish(axes, "blocks passed on the way back", "cosine to the exact displacement")
    figure.savefig(path, dpi=DPI)


def draw_residual(path: Path, looks: Mapping[str, Sequence[OfBlock]]) -> None:
    """Draws remark 1's assumption and its conclusion, for each block and sample."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    assumption, conclusion = figure.subplots(1, 2)
    for offset, (name, blocks), colour in zip((-0.14, 0.14), looks.items(), COLOURS[1:], strict=False):
        for number, of_block in enumerate(blocks, 1):
            label = name if number == 1 else None
            ratios = [block / branch for block, branch in zip(of_block.block, of_block.branch, strict=True)]
            for axes, values in ((assumption, of_block.largest), (conclusion, ratios)):
                axes.plot(
                    [number + offset] * len(values), values, "o", color=colour, markersize=3, alpha=0.5, label=label
                )
    for axes, limit, corner in (
        (assumption, "assumption a) fails above", "upper right"),
        (conclusion, "the conclusion (15) fails above", "lower left"),
    ):
        axes.axhline(1, color="black", linewidth=1, linestyle="--", label=limit)
        axes.set_yscale("log")
        axes.margins(y=0.25)
        axes.legend(frameon=False, fontsize=8, loc=corner)
        _label_ticks(axes)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _finish(assumption, "residual block, from the input", "σ_max(∂φ/∂z), log scale")
    _finish(conclusion, "residual block, from the input", "C(I + ∂φ/∂z) / C(∂φ/∂z), log scale")
    figure.savefig(path, dpi=DPI)


def draw_inputs(path: Path, spectra: Mapping[str, Spectrum]) -> None:
    """Draws the eigenvalues of H_w over their mean, the largest first."""
    figure = Figure(figsize=(7.5, 3.8), layout="constrained")
    axes = figure.subplots()
    for (name, found), colour, dash in zip(spectra.items(), COLOURS, DASHES, strict=False):
        values = found.eigenvalues.flip(0) / found.eigenvalues.mean()
        label = f"{name}\neffective rank {found.effective_rank:.2g} of {len(values)}"
        axes.plot(np.arange(1, len(values) + 1), values.clamp(min=0), color=colour, linestyle=dash, label=label)
    axes.axhline(1, color="#777777", linewidth=0.8)
    axes.set_yscale("log")
    axes.set_ylim(1e-4, 200)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    figure.legend(loc="outside right center", frameon=False, fontsize=8)
    _finish(axes, "eigenvalue of H_w, the largest first, log scale", "over the mean eigenvalue, log scale")
    figure.savefig(path, dpi=DPI)


def draw_distances(path: Path, distances: Distances) -> None:
    """Draws the distance of finite layers to the law over their outputs."""
    figure = Figure(figsize=(6.5, 3.6), layout="constrained")
    axes = figure.subplots()
    for found, label, colour, dash in (
        (distances.linear, "linear, (10) and (11)", COLOURS[1], "-"),
        (distances.normalized, "with batch normalization, (19)", COLOURS[2], "--"),
    ):
        widths = list(found)
        for width, values in found.items():
            axes.plot([width] * len(values), values, "o", color=colour, markersize=3, alpha=0.5)
        axes.plot(widths, [np.mean(values) for values in found.values()], color=colour, linestyle=dash, label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(widths, [str(width) for width in widths])
    axes.xaxis.set_minor_formatter(NullFormatter())
    _label_ticks(axes)
    axes.legend(frameon=False, fontsize=8)
    _finish(axes, "outputs n_b, of 2 n_b inputs, log scale", "Kolmogorov-Smirnov distance")
    figure.savefig(path, dpi=DPI)


def _label_ticks(axes: Axes) -> None:
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _finish(axes: Axes, across: str, up: str) -> None:
    axes.set_xlabel(across, fontsize=9)
    axes.set_ylabel(up, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
