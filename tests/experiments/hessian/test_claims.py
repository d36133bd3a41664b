"""What the pictures of the local Hessian show, as inequalities that leave half of the margin that was measured."""

from __future__ import annotations

from statistics import median

import pytest
import torch
from torch import nn

from experiments.hessian.blocks import PLAIN, SKIPS, linear, sample_spectrum, white
from experiments.hessian.factors import Misfit
from experiments.hessian.inputs import EXACT, PRINTED, WITHOUT, take_unit_spectra
from experiments.hessian.residual import OfBlock, take_residual
from experiments.hessian.steps import take_step, through_depth
from experiments.hessian.theory import take_distances
from experiments.hessian.training import KINDS, rank_correlation, take_training
from sasgd_fused.local import local_hessian

UNITS = 48
SEEDS = range(1)


def test_one_step_is_exact_for_orthogonal_blocks_and_good_beside_orthogonal_skips() -> None:
    steps = {name: take_step(make, UNITS, UNITS, SEEDS) for name, make in (PLAIN | SKIPS).items()}
    assert steps["orthogonal"].left < 1e-12
    assert steps["orthogonal"].cosine > 1 - 1e-9
    assert steps["identity skip, I + 0.3 G"].left < 0.3
    assert steps["orthogonal skip, Q + 0.3 G"].left < 0.3
    assert steps["identity skip, I + 0.3 G"].cosine > 0.8
    assert steps["Gaussian skip, G + 0.3 G'"].left > 0.6
    assert steps["Gaussian, variance 1/n"].left > 0.6
    assert steps["Gaussian, variance 2/n"].left > 3
    assert max(steps[name].cosine for name in steps if "Gaussian" in name) < 0.5


def test_narrowing_and_widening_blocks() -> None:
    assert take_step(PLAIN["orthogonal"], UNITS // 2, UNITS, SEEDS).left < 1e-12
    widening = take_step(PLAIN["orthogonal"], UNITS, UNITS // 2, SEEDS)
    assert widening.left == pytest.approx(widening.least)
    assert widening.least == pytest.approx(0.5, abs=0.05)


def test_only_orthogonal_blocks_keep_the_direction_through_depth() -> None:
    orthogonal, skip, gaussian = (
        through_depth(make, units=32, depth=8, seeds=range(1))
        for make in (PLAIN["orthogonal"], SKIPS["identity skip, I + 0.3 G"], PLAIN["Gaussian, variance 1/n"])
    )
    assert min(orthogonal) > 1 - 1e-9
    assert skip[0] > 0.8
    assert skip[0] > skip[1] > skip[4] > skip[7] > 0.2
    assert max(map(abs, gaussian[1:])) < 0.3


def test_batch_normalization_centres_the_inputs_which_equation_18_leaves_out() -> None:
    spectra = take_unit_spectra()
    assert spectra[WITHOUT].largest_over_mean > 1.5 * spectra[PRINTED].largest_over_mean
    assert spectra[PRINTED].largest_over_mean > 2.5 * spectra[EXACT].largest_over_mean
    assert spectra[EXACT].effective_rank > 2 * spectra[PRINTED].effective_rank > 4 * spectra[WITHOUT].effective_rank


def test_spectra_come_nearer_to_the_law_with_the_width() -> None:
    distances = take_distances((25, 100), SEEDS)
    for found in (distances.linear, distances.normalized):
        assert max(found[100]) < 0.7 * min(found[25])
    assert max(distances.linear[100]) < 0.025


def counts(blocks: list[OfBlock]) -> tuple[int, int]:
    """Returns in how many blocks assumption a) of remark 1 holds, and its conclusion, by the median of the samples."""
    small = sum(median(block.largest) < 1 for block in blocks)
    better = sum(median(block.block) < median(block.branch) for block in blocks)
    return small, better


def test_remark_1_concludes_rightly_where_its_assumption_fails() -> None:
    before, after = take_residual(samples=1, steps=60, units=24, blocks=4).values()
    assert counts(before) == (0, 4)
    assert counts(after)[1] == 4


@pytest.mark.nightly
def test_training_brings_about_the_assumption_of_remark_1_in_the_last_blocks() -> None:
    before, after = take_residual().values()
    assert counts(before) == (0, 8)
    small, better = counts(after)
    assert 1 <= small <= 5
    assert better == 8
    assert median(before[0].largest) > 1.5 * median(before[-1].largest)
    assert median(after[-1].largest) < 0.95


@pytest.mark.nightly
def test_what_is_left_says_little_about_training_over_all_kinds_of_blocks() -> None:
    trained = {name: take_training(kind) for name, kind in KINDS.items()}
    correlation, _ = rank_correlation(list(trained.values()))
    assert abs(correlation) < 0.65
    orthogonal, identity, gaussian = (
        trained[f"{skip} skip, branch × 0.3"].loss.mean for skip in ("orthogonal", "identity", "Gaussian")
    )
    assert max(orthogonal, identity) < 0.85 * gaussian


def test_a_misfit_is_up_to_a_common_factor() -> None:
    assert Misfit.of([3.0, 3.0, 3.0]) == Misfit(1.0, 1.0)
    found = Misfit.of([1.0, 4.0, 1.0, 4.0])
    assert found.typical == pytest.approx(2.0)
    assert found.span == pytest.approx(4.0)


def test_equation_24_has_the_mean_eigenvalues_of_a_layer_with_batch_normalization_behind_it() -> None:
    rows, columns, samples = 20, 40, 1000
    generator = torch.Generator().manual_seed(0)
    batch = white(samples, columns, generator)
    block = PLAIN["batch normalization"](rows, columns, generator)
    weight = block.get_parameter("0.weight").detach()

    def of_input(module: nn.Module) -> float:
        return float(sample_spectrum(module, batch).eigenvalues.mean())

    def of_weight(module: nn.Module, name: str) -> float:
        hessian = local_hessian(module, batch, name)
        return hessian.trace(probes=4) / hessian.shape[0] / samples

    with torch.no_grad():
        weight *= torch.linspace(3, 5, rows)[:, None]
    row_norm_sq = float(weight.square().sum() / rows)
    assert of_input(block) == pytest.approx(rows / columns, rel=0.1)
    with torch.no_grad():
        weight *= row_norm_sq**0.5 / weight.norm(dim=1, keepdim=True)
    assert of_weight(block, "0.weight") == pytest.approx(1 / row_norm_sq, rel=0.1)
    alone = linear(weight)
    assert of_input(alone) == pytest.approx(row_norm_sq * rows / columns)
    assert of_weight(alone, "weight") == pytest.approx(float(batch.square().mean()), rel=0.02)


def test_remark_3_lacks_the_batch_size() -> None:
    generator = torch.Generator().manual_seed(0)
    batch, row = white(500, 40, generator), white(1, 40, generator)
    printed = local_hessian(linear(row), batch, "weight").dense() / (batch @ row.T).var(correction=0)  # (18)
    assert float(printed.diagonal().mean() * row.square().sum()) == pytest.approx(500, rel=0.1)
