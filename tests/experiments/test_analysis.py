"""What the runs of a comparison say: intervals, paired differences, epochs, and their tables."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from experiments.analysis import Estimate, count_near_best, epochs_to, learning_rates, summarise, thresholds
from experiments.compare import TUNED
from experiments.tables import make_changes, make_learning_rates, make_speeds
from tests.experiments.comparisons import make_comparison, make_varied


def test_the_interval_is_students() -> None:
    estimate = Estimate.of([1.0, 2.0, 3.0, 4.0, 5.0])
    assert estimate.mean == 3.0
    assert estimate.half_width == pytest.approx(2.776445 * math.sqrt(2.5 / 5), rel=1e-6)  # t for 4 degrees of freedom
    assert estimate.format(2) == "3.00 ± 1.96"
    assert Estimate.of([-1.0, -3.0]).format(1, "+") == "-2.0 ± 12.7"
    assert Estimate.of([1.0, 1.0]).format(1, "+") == "+1.0 ± 0.0"


def test_what_is_not_finite_has_no_interval() -> None:
    for values in ([1.0, math.nan], [1.0, math.inf]):
        assert Estimate.of(values).format(2) == "nan"
    assert Estimate.of([7.0]).format(1) == "7.0"


def test_differences_are_paired_by_seed() -> None:
    comparison = make_comparison()
    sgd, paper = summarise(comparison)
    assert (sgd.test_error.mean, paper.test_error.mean) == (12.0, 11.0)
    assert sgd.difference is None
    assert paper.difference == Estimate.of([-1.0, 0.0, -2.0])
    assert paper.difference.half_width < paper.test_error.half_width
    assert sgd.train_loss.mean == 1.25
    assert (sgd.runs, sgd.lr, sgd.weight_decay, sgd.step_ms.mean) == (3, 0.5, 1e-3, 0.5)


def test_epochs_are_counted_until_the_error_is_reached_first() -> None:
    assert epochs_to([9.0, 5.0, 7.0, 4.0], 5.0) == 2
    assert epochs_to([9.0, 5.0], 4.9) == math.inf
    assert epochs_to([math.nan, 4.0], 5.0) == 2
    equal = [100 * wrong / 899 for wrong in (33,) * 5]
    assert math.fsum(equal) / 5 < equal[0]  # rounded
    assert epochs_to(equal, math.fsum(equal) / 5) == 1


def test_epochs_are_those_of_the_median_seed() -> None:
    comparison = make_comparison()
    assert thresholds(comparison) == [12.0, 13.0, 15.0, 22.0]
    table = make_speeds(comparison)
    assert table.heading == ("method", "to 12.00 %", "to 13.00 %", "to 15.00 %", "to 22.00 %")
    assert table.rows == [["SGD", "2", "2", "2", "2"], ["amended, paper", "2", "2", "2", "2"]]
    runs = [replace(entry, test_error=[50.0, 13.0]) if entry.seed else entry for entry in comparison.results]
    # SGD ends at 12 with seed 0's 10: two of three seeds do not get there.
    table = make_speeds(replace(comparison, results=runs))
    assert table.rows[0] == ["SGD", "over 2", "2", "2", "2"]


def test_learning_rates_are_in_order_and_count_near_their_own_best() -> None:
    varied = make_varied()
    found = learning_rates(varied, "sgd")
    assert list(found) == pytest.approx([0.1, 10**-0.5, 1.0, 10**0.5, 10.0])
    assert [error.mean for error in found.values()] == pytest.approx([14.0, 16.0, 12.0, 18.0, 20.0])
    assert count_near_best(found) == 1
    # 0.4, 0.8, 0, 1.2 and 1.6 points above its best
    assert count_near_best(learning_rates(varied, "paper")) == 3
    table = make_learning_rates(varied)
    assert table.heading == ("method", "0.1 lr", "0.32 lr", "1 lr", "3.2 lr", "10 lr", "within 1 point of its best")
    cells = [f"{mean} ± 4.3" for mean in (11.4, 11.8, 11.0, 12.2, 12.6)]
    assert table.rows[1] == ["amended, paper", *cells, "3 of 5"]


def test_the_effect_of_a_variation_is_paired_with_the_tuned_run() -> None:
    varied = make_varied()
    place = varied.settings.variations.index("init")
    assert varied.difference(("sgd", "init"), ("sgd", TUNED)) == Estimate.of([place, 2.0 * place, 3.0 * place])
    assert varied.difference(("paper", "init"), ("paper", TUNED)).half_width == pytest.approx(0, abs=1e-6)
    row = make_changes(varied, ["init"], ["bad"]).rows[0]
    assert row[:3] == ["SGD", "12.00 ± 4.97", f"{12 + 2 * place:.2f} ± 17.39"]
    assert row[3].startswith(f"+{2 * place:.2f} ± ")
