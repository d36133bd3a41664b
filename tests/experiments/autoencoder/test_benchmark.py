"""The benchmark: what a run records, which rates are chosen, and what the command leaves."""

from __future__ import annotations

import math
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
from experiments.autoencoder.plan import CRITERIA, RATES, SEEDS, choose, compared, plan_evaluation, plan_tuning
from experiments.autoencoder.presets import PRESETS, Preset, load_images, loss_of, make_autoencoder
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


def test_a_run_records_epochs_of_whole_batches_until_both_limits_are_passed(images: Tensor) -> None:
    by_updates = train(TINY, METHODS["sgd"], 0.1, 0, images)
    assert by_updates.updates == (2, 4, 6)
    by_time = train(replace(TINY, seconds=0.05), METHODS["sgd"], 0.1, 0, images)
    assert by_time.seconds[-2] < 0.05 <= by_time.seconds[-1]
    assert by_time.losses[:3] == by_updates.losses


def test_the_loss_of_an_epoch_is_that_of_its_batches_as_they_were_trained_on(images: Tensor) -> None:
    model = make_autoencoder(TINY.widths, 3)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(3))
    losses = [loss_of(model(batch), batch).item() for batch in (images[order[:4]], images[order[4:8]])]
    assert train(TINY, METHODS["sgd"], 0.0, 3, images).losses[0] == pytest.approx(sum(losses) / 2)


def test_a_run_whose_loss_grows_tenfold_ends_as_diverged(images: Tensor) -> None:
    class Worse(Optimizer):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            with torch.no_grad():
                for param in self.param_groups[0]["params"]:
                    param.fill_(math.nan)

    worse = replace(METHODS["sgd"], build=lambda model, lr: Worse(model.parameters(), {}))
    curve = train(TINY, worse, 0.1, 0, images)
    assert curve.losses == (math.inf,)
    assert Curve.from_json(curve.to_json()) == replace(curve, seconds=(pytest.approx(curve.seconds[0], rel=1e-4),))


def test_a_curve_is_read_at_the_last_epoch_within_a_limit() -> None:
    curve = Curve((10, 20, 30), (1.0, 2.0, 3.0), (9.0, 8.0, 7.0))
    assert [curve.after_updates(count) for count in (10, 19, 20, 99)] == [9, 9, 8, 7]
    assert [curve.after_seconds(limit) for limit in (0.5, 1, 2.9, 3)] == [math.inf, 9, 8, 7]
    diverged = replace(curve, losses=(9.0, 8.0, math.inf))
    assert diverged.after_updates(10) == diverged.after_seconds(2) == math.inf


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
    curves = {run: math_or(curve, run) for run, curve in curves.items()}
    assert [choose(SMALL, "sgd", criterion, curves) for criterion in CRITERIA] == [0.3, 0.03]
    evaluation = plan_evaluation(SMALL, ["sgd", "kfac"], curves)
    assert len(evaluation) == len(SEEDS) * 3
    curves |= {run: curve(run) for run in evaluation}
    assert [of_seed.losses[1] for of_seed in compared(SMALL, "kfac", "updates", curves)] == [1.0] * len(SEEDS)


def math_or(curve: Curve, run: Run) -> Curve:
    """The largest rate diverges, whatever it had come to."""
    return replace(curve, losses=(curve.losses[0], math.inf)) if run.lr == max(RATES) else curve


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
    assert "\n18/18, 0 min left: autoencoder-small  kfac-plain  lr 9.5" in capsys.readouterr().out
    report = (tmp_path / "new" / f"{SMALL}.md").read_text()
    assert "## After 10 updates" in report
    assert "| KFAC without momentum |" in report
    assert (tmp_path / "new" / f"{SMALL}.png").stat().st_size > 10_000
    assert run(command) == 0
    assert "min left" not in capsys.readouterr().out
    assert (tmp_path / "new" / f"{SMALL}.md").read_text() == report


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
