"""The benchmark: what a run records, which rates are chosen, and what the command leaves."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

from experiments.autoencoder import presets
from experiments.autoencoder.methods import METHODS
from experiments.autoencoder.picture import draw_curves
from experiments.autoencoder.plan import CRITERIA, RATES, SEEDS, choose, compared, plan_evaluation, plan_tuning
from experiments.autoencoder.presets import PRESETS, Preset, load_images, loss_of, make_autoencoder
from experiments.autoencoder.report import make_losses
from experiments.autoencoder.training import Curve, train
from experiments.cli import run
from experiments.study.journal import Run

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is:DeprecationWarning")
TINY = Preset((6, 3, 6), batch_size=4, updates=5, seconds=0.0)
SMALL = "autoencoder-small"


@pytest.fixture
def images() -> Tensor:
    return torch.rand(10, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains(name: str, images: Tensor) -> None:
    curves = [train(replace(TINY, updates=60), METHODS[name], 0.1, 0, images) for _ in range(2)]
    assert curves[0].losses == curves[1].losses
    assert curves[0].losses[-1] < curves[0].losses[0]


def test_a_run_records_every_ten_updates_until_both_limits_are_passed(images: Tensor) -> None:
    by_updates = train(replace(TINY, updates=25), METHODS["sgd"], 0.1, 0, images)
    assert by_updates.updates == (10, 20, 30)
    by_time = train(replace(TINY, seconds=0.05), METHODS["sgd"], 0.1, 0, images)
    assert by_time.seconds[-2] < 0.05 <= by_time.seconds[-1]
    assert by_time.losses[:3] == by_updates.losses


def test_the_loss_is_that_of_the_last_ten_batches_as_they_were_trained_on(images: Tensor) -> None:
    model = make_autoencoder(TINY.widths, 3)
    generator = torch.Generator().manual_seed(3)
    losses = []
    for _ in range(5):  # of 10 images two batches, the last two images are left out
        order = torch.randperm(10, generator=generator)
        losses += [loss_of(model(batch), batch).item() for batch in (images[order[:4]], images[order[4:8]])]
    assert train(TINY, METHODS["sgd"], 0.0, 3, images).losses[0] == pytest.approx(sum(losses) / 10)


def test_a_run_whose_loss_is_not_finite_ends(images: Tensor) -> None:
    class Worse(Optimizer):
        steps = 0

        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            self.steps += 1
            if self.steps == 13:
                with torch.no_grad():
                    self.param_groups[0]["params"][0].fill_(math.nan)

    worse = replace(METHODS["sgd"], build=lambda model, *_: Worse(model.parameters(), {}))
    curve = train(replace(TINY, updates=100), worse, 0.1, 0, images)
    assert curve.updates == (10, 14)
    assert curve.losses[1] == math.inf
    assert math.isfinite(curve.after_updates(13))
    kept = Curve.from_json(json.loads(json.dumps(curve.to_json(), allow_nan=False)))
    assert kept.updates == curve.updates
    assert kept.losses == pytest.approx(curve.losses, rel=1e-4)


def test_a_curve_is_read_at_the_last_epoch_within_a_limit() -> None:
    curve = Curve((10, 20, 30), (1.0, 2.0, 3.0), (9.0, 8.0, 7.0))
    assert [curve.after_updates(count) for count in (10, 19, 20, 99)] == [9, 9, 8, 7]
    assert [curve.after_seconds(limit) for limit in (0.5, 1, 2.9, 3)] == [math.inf, 9, 8, 7]
    diverged = replace(curve, losses=(9.0, 8.0, math.inf))
    assert [diverged.after_updates(count) for count in (20, 30)] == [8, math.inf]


def test_every_method_is_tried_at_the_same_rates_and_compared_at_the_best_by_each_criterion() -> None:
    tuning = plan_tuning(SMALL, ["sgd", "kfac"])
    assert {(run.method, run.lr) for run in tuning} == {(name, lr) for name in ("sgd", "kfac") for lr in RATES}
    assert {run.seed for run in tuning}.isdisjoint(SEEDS)
    preset = PRESETS[SMALL]

    def curve(run: Run) -> Curve:
        """The fastest rates lead until the limit of time, those that are half as fast at the limit of updates."""
        best = {"sgd": (0.3, 0.03), "kfac": (0.3, 0.3)}[run.method]
        by_updates, by_time = (1 + abs(math.log(run.lr / lr)) for lr in best)
        updates = (preset.updates // 2, preset.updates)
        return Curve(updates, (preset.seconds, 2 * preset.seconds), (by_time, by_updates))

    curves = {run: curve(run) for run in tuning}
    assert [choose(SMALL, "sgd", criterion, curves) for criterion in CRITERIA] == [0.3, 0.03]
    evaluation = plan_evaluation(SMALL, ["sgd", "kfac"], curves)
    assert len(evaluation) == len(SEEDS) * 3
    curves |= {run: curve(run) for run in evaluation}
    assert [of_seed.losses[1] for of_seed in compared(SMALL, "kfac", "updates", curves)] == [1.0] * len(SEEDS)


def made_up(losses: Mapping[str, tuple[float, float]]) -> dict[Run, Curve]:
    """Returns curves of methods that come to one loss with odd seeds and another with even ones, at the limits."""
    preset = PRESETS[SMALL]
    return {
        Run(SMALL, method, lr, 0.0, seed, tuning): Curve(
            (preset.updates,), (preset.seconds,), (of_method[seed % 2 == 0] + abs(math.log(lr / 0.3)),)
        )
        for method, of_method in losses.items()
        for lr in RATES
        for seed, tuning in [(100, True), *((seed, False) for seed in SEEDS)]
    }


def test_the_table_has_the_lowest_loss_first_and_differences_paired_by_seed() -> None:
    table = make_losses(SMALL, ["sgd", "adamw"], "updates", made_up({"sgd": (20.0, 30.0), "adamw": (19.0, 29.0)}))
    adamw, sgd = table.rows
    assert adamw[:4] == ["AdamW", "0.3", "25.00 ± 6.80", "-1.00 ± 0.00"]
    assert sgd[:5] == ["SGD", "0.3", "26.00 ± 6.80", "", ""]
    assert adamw[5] == f"{1e3 * PRESETS[SMALL].seconds / PRESETS[SMALL].updates:.1f}"


def test_the_order_is_that_of_the_means_which_the_table_shows() -> None:
    table = make_losses(SMALL, ["sgd", "adamw"], "updates", made_up({"sgd": (20.0, 30.0), "adamw": (29.0, 27.0)}))
    assert [row[0] for row in table.rows] == ["SGD", "AdamW"]


def test_the_table_says_how_many_runs_have_no_loss() -> None:
    table = make_losses(SMALL, ["sgd", "adamw"], "seconds", made_up({"sgd": (20.0, 30.0), "adamw": (19.0, math.inf)}))
    assert table.rows[1][:4] == ["AdamW", "9.5e-05 (an end of what was tried)", "3 of 5 have none", ""]


def test_the_command_leaves_its_report_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = torch.rand(40, 1, 2, 3, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(presets, "read_carried", lambda: (images, None))
    monkeypatch.setitem(presets.PRESETS, SMALL, replace(TINY, updates=10))
    monkeypatch.setattr("experiments.study.study.ProcessPoolExecutor", lambda count, *_, **__: ThreadPoolExecutor(1))
    monkeypatch.setattr("os.fsync", lambda _: None)
    command = ["autoencoder", "--methods", "sgd", "kfac-plain", "sgd", "--out", str(tmp_path / "new")]
    assert run(command) == 0
    assert "\n22/22, 0 min left: autoencoder-small  kfac-plain  lr 9.5" in capsys.readouterr().out
    report = (tmp_path / "new" / f"{SMALL}.md").read_text()
    assert "## After 10 updates" in report
    assert "| KFAC without momentum |" in report
    assert (tmp_path / "new" / f"{SMALL}.png").stat().st_size > 10_000
    assert run(command) == 0
    assert "min left" not in capsys.readouterr().out
    assert (tmp_path / "new" / f"{SMALL}.md").read_text() == report
    with pytest.raises(SystemExit):
        run([*command, "--damping", "0.5"])
    assert "'damping': 0.5" in capsys.readouterr().err


@pytest.mark.parametrize("damping", ["0", "-1", "inf", "nan"])
def test_a_damping_that_is_none_is_refused(damping: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(["autoencoder", "--damping", damping])
    assert "argument --damping: got " in capsys.readouterr().err


@pytest.mark.parametrize("method", ["sgd-plain", "kfac"])
def test_one_method_alone_has_its_picture(method: str, tmp_path: Path) -> None:
    draw_curves(tmp_path / "one.png", SMALL, [method], made_up({method: (20.0, math.inf)}))
    assert (tmp_path / "one.png").exists()


def test_files_that_are_missing_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(["autoencoder", "--preset", "autoencoder-mnist", "--root", str(tmp_path), "--out", str(tmp_path / "out")])
    assert "argument --preset: " in (error := capsys.readouterr().err)
    assert "train-images-idx3-ubyte.gz is missing" in error
    assert not (tmp_path / "out").exists()


def test_images_have_pixels_from_0_to_1() -> None:
    images = load_images(PRESETS["autoencoder"], Path())
    assert images.shape == (5000, 784)
    assert (float(images.min()), float(images.max())) == (0.0, 1.0)
