"""The benchmark's layer profiles are those of the published networks, and its figures are sound."""

from __future__ import annotations

import json
from itertools import islice, pairwise
from pathlib import Path

import pytest
import torch

from bench.cases import parameter_count, setup, shapes_of
from bench.contenders import CONTENDERS, OTHERS, why_unavailable
from bench.interleave import Spread, paired_ratios, time_in_turns, turns
from bench.measure import Effort, Result, measure
from bench.report import markdown
from bench.rows import Row
from bench.table import main

# VGG13 for CIFAR by hand: nine weights for each pair of channels, then the head.
VGG13_PAIRS = (
    3 * 64 + 64 * 64 + 64 * 128 + 128 * 128 + 128 * 256
    + 256 * 256 + 256 * 512 + 512 * 512 + 512 * 512 + 512 * 512
)  # fmt: skip


@pytest.mark.parametrize(
    ("case", "parameters", "tensors"),
    [
        ("VGG13-CIFAR", 9 * VGG13_PAIRS + 10 * 512, 11),
        ("ResNet-50", 25_557_032, 161),
        ("VGG16", 138_357_544, 32),
        ("DenseNet-121", 7_978_856, 364),
        ("MobileNetV2", 3_504_872, 158),
        ("160x64", 10_240, 160),
        ("ResNet-152", 60_192_808, 467),
        ("DenseNet-201", 20_013_928, 604),
        ("Pythia-1B", 1_011_781_632, 196),
    ],
)
def test_profiles_have_the_published_totals(case: str, parameters: int, tensors: int) -> None:
    assert parameter_count(case) == parameters
    assert len(shapes_of(case)) == tensors


@pytest.mark.filterwarnings("ignore:Parameter `foreach` is deprecated:DeprecationWarning")  # optimi
@pytest.mark.parametrize("contender", CONTENDERS)
def test_values_stay_normal_and_put(contender: str) -> None:
    if contender.startswith(("native", *OTHERS)) and (reason := why_unavailable(contender)):
        pytest.skip(reason)  # built without a compiler, or not installed
    made = setup("160x64", contender)
    before = [parameter.detach().clone() for parameter in made.parameters]
    for _ in range(100):
        made.step()
    made.check_values()
    moved = [(now.detach() - then).abs().max() for now, then in zip(made.parameters, before, strict=True)]
    assert 0 < max(moved) < 1e-3 * torch.stack(before).std()


@pytest.mark.parametrize("value", [1e-40, float("inf"), float("nan")])
@pytest.mark.parametrize("place", ["weight", "grad", "momentum_buffer"])
def test_a_denormal_or_infinite_value_voids_a_measurement(place: str, value: float) -> None:
    made = setup("160x64", "torch for-loop")
    parameter = made.parameters[3]
    momentum = made.optimizer.state[parameter]["momentum_buffer"]
    {"weight": parameter.detach(), "grad": parameter.grad, "momentum_buffer": momentum}[place][2, 5] = value
    with pytest.raises(RuntimeError, match=f"{place} of parameter 3 has denormal or non-finite"):
        made.check_values()


def test_each_setup_has_the_same_values_in_its_own_memory() -> None:
    one, other = setup("160x64", "torch fused"), setup("160x64", "torch fused")
    for mine, theirs in zip(one.parameters, other.parameters, strict=True):
        assert torch.equal(mine, theirs)
        assert mine.grad is not None and theirs.grad is not None
        assert torch.equal(mine.grad, theirs.grad)
        assert mine.data_ptr() != theirs.data_ptr()
        assert mine.grad.data_ptr() != theirs.grad.data_ptr()


def test_contenders_take_turns_and_never_follow_themselves() -> None:
    assert len({tuple(order) for order in islice(turns("AB"), 20)}) == 1
    sequence = [name for order in islice(turns("ABC"), 200) for name in order]
    assert all(now != then for now, then in pairwise(sequence))
    followers = set(pairwise(sequence))
    assert len(followers) == 6, "each follows each of the others"


def test_every_round_times_every_contender_once() -> None:
    calls: list[str] = []
    steps = {name: (lambda name=name: calls.append(name)) for name in "ABC"}
    times = time_in_turns(steps, rounds=20, seconds=0)
    assert {name: len(samples) for name, samples in times.items()} == dict.fromkeys("ABC", 20)
    assert len(calls) == 3 * (20 + 2), "two warm-up rounds are not timed"


def test_ratios_are_paired_before_they_are_summarised() -> None:
    # The machine slows down tenfold half way: the ratio of each round does not notice.
    against = [10, 10, 10, 100, 100]
    assert paired_ratios([5, 5, 5, 50, 50], against) == [0.5] * 5
    assert Spread.of([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == Spread(median=3.5, low=2.0, high=5.0)


def test_the_table_shows_missed_aims_small_units_and_what_was_left_out() -> None:
    ratio, control = Spread(0.8, 0.7, 0.9), Spread(1.0, 0.99, 1.01)
    result = Result(Row("160x64", "native", aim=0.6), 1, 100, 0.16, 0.2, ratio, control, 20, 1.28, 40.0)
    table = markdown([result], [], {"foreach": "ImportError: none"}, {"cpu": "some"})
    assert (
        "| 160x64 | 1 | native | 160 us | torch fused | 200 us | 0.800 [0.700, 0.900] "
        "| 0.6 (missed) | 1.000 [0.990, 1.010] | 20 | 1.3 | 40.0 |"
    ) in table
    assert "Not measured: foreach (ImportError: none)." in table


def test_a_measurement_counts_the_rounds_of_all_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.interleave.COPY_BYTES", 2**20)
    (result,) = measure([Row("160x64", "torch for-loop")], threads=1, effort=Effort(rounds=3, seconds=0, blocks=2))
    assert result.rounds == 6
    assert result.gb_per_s == pytest.approx(20 * 10_240 / (result.time_ms * 1e6))
    assert result.ratio.low <= result.ratio.median <= result.ratio.high


def test_the_command_prints_what_it_writes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bench.interleave.COPY_BYTES", 2**20)
    monkeypatch.setattr("bench.table.RESULTS", tmp_path / "results")
    main(["--quick", "--cases", "160x64", "--threads", "1", "--out", "smoke"])
    printed = capsys.readouterr().out
    assert (tmp_path / "results" / "smoke.md").read_text() == printed
    figures = json.loads((tmp_path / "results" / "smoke.json").read_text())
    measured = [result["row"]["contender"] for result in figures["results"]]
    assert "torch foreach" in measured and "torch for-loop" in measured
    assert all(f"| {contender} |" in printed for contender in measured)
