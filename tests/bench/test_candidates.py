"""Which candidates of the CUDA kernels to keep, by invented measurements, and the measuring in a dry run on a CPU."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from bench.child import CallFailed, ProcessLost
from bench.contenders import CONTENDERS
from bench.turns import Spread
from sasgd_fused.backends import BACKENDS
from tests.bench.inline import Inline
from tools import measure_candidates
from tools.candidate_report import AGAIN, KEPT_IF, Figures, Measurements, markdown, verdict
from tools.cuda_candidates import CANDIDATES, build_candidates
from tools.measure_candidates import PLACES, Place, main, measure_alone_where_needed

NOISE = 0.3  # microseconds: by so much the kernels differ from themselves


def figures(
    more: Mapping[str, float], more_on_host: Mapping[str, float] | None = None, time_us: float = 100, wrong: str = ""
) -> Figures:
    """Makes figures in which a candidate takes so many microseconds more than the kernels."""

    def spreads(values: Mapping[str, float]) -> dict[str, Spread]:
        return {name: Spread(value, value - NOISE, value + NOISE) for name, value in {AGAIN: 0.0, **values}.items()}

    same_bits = {name: name != wrong for name in (AGAIN, *more)}
    on_host = {} if more_on_host is None else spreads(more_on_host)
    return Figures(200, time_us, spreads(more), 40.0 if on_host else None, on_host, same_bits)


def measured(
    candidate: str, vgg13: float, resnet: float, vgg16: float, wrong: str = "", end: float = -7
) -> Measurements:
    """Makes measurements of a candidate, and of the others that say what is worth it, in a step of 1000 us on VGG16."""
    others = {"without epilogue": end, "prefetch": -1.2, "tensor trees": -2.0}
    values = {"VGG13-CIFAR": vgg13, "ResNet-50": resnet, "VGG16": vgg16}
    return Measurements(
        {
            place: [figures({**others, candidate: more}, time_us=1000 if place == "VGG16" else 100, wrong=wrong)]
            for place, more in values.items()
        }
    )


@pytest.mark.parametrize(
    ("candidate", "more", "expected"),
    [
        ("prefetch", (-2, -1.1, 0), "yes"),
        ("prefetch", (-2, -0.9, 0), "no"),
        ("prefetch", (-2, -2, 0.5), "no"),  # a loss
        ("prefetch", (-2, -2, 0.2), "yes"),  # which is noise
        ("tensor trees", (-2, -2, 0.2), "yes"),
        ("tensor trees", (-2, -2, 3), "no"),  # fences cost bandwidth
        ("tensor trees", (-2, -1, 0), "no"),
        ("prefetch, tensor trees", (-2.6, -2.6, 0), "yes"),
        ("prefetch, tensor trees", (-2.6, -2.4, 0), "no"),
        ("evict gradients", (0, 0, -11), "yes"),
        ("evict gradients", (0, 0, -9), "no"),
        ("evict momentum", (0, 0.5, -30), "no"),
        ("without epilogue", (-7, -7, -7), "shows what a part costs"),
    ],
)
def test_what_is_kept(candidate: str, more: tuple[float, float, float], expected: str) -> None:
    assert verdict(candidate, measured(candidate, *more)) == expected


def test_trees_are_left_where_the_end_costs_little_and_what_takes_wrong_steps_is() -> None:
    assert verdict("tensor trees", measured("tensor trees", -2, -2, 0, end=-2.9)) == "no"
    wrong = measured("prefetch", -9, -9, -9, wrong="prefetch")
    assert verdict("prefetch", wrong) == "no: its steps are wrong"
    assert verdict("without epilogue", measured("without epilogue", -9, -9, -9, wrong="without epilogue")).startswith(
        "sh"
    )


def test_nothing_is_concluded_from_half_of_the_places() -> None:
    for candidate in KEPT_IF:
        assert verdict(candidate, Measurements({})).startswith("not known without ")


@pytest.mark.parametrize(("device", "host", "expected"), [(0, -2, "yes"), (-2, 0, "yes"), (-0.9, -0.9, "no")])
def test_arguments_may_save_on_either_side(device: float, host: float, expected: str) -> None:
    here = [figures({"short arguments": device}, {"short arguments": host})]
    places = {"DenseNet-201": here, "ResNet-50, bfloat16 momentum": here}
    assert verdict("short arguments", Measurements(places)) == expected


def test_the_report_has_a_line_for_each_candidate_and_what_was_left_out() -> None:
    here = [figures({"prefetch": -2.34}, {"prefetch": 1.0}), figures({"tensor trees": 1.0}, wrong="tensor trees")]
    report = markdown({"ResNet-50": here}, {"evict momentum": "it could\nnot"}, {"device": "H100", "driver": None})
    lines = report.splitlines()
    assert "| prefetch | -1 to -2 | ResNet-50 -2.3 | over 1 µs on VGG13-CIFAR and ResNet-50, no loss |" in report
    assert "| tensor trees | -2 to -4 | ResNet-50 +1.0 |" in report and "no: its steps are wrong |" in report
    assert (
        "| ResNet-50 | prefetch | 100.0 | 200 | -2.3 [-2.6, -2.0] | +0.0 [-0.3, +0.3] "
        "| 40.0 | +1.0 [+0.7, +1.3] | +0.0 [-0.3, +0.3] | yes |"
    ) in lines
    assert all(f"| {name} |" in report for name in CANDIDATES)
    assert "Not measured: evict momentum (it could not)." in lines and lines[-1] == "device: H100"


def test_every_candidate_has_a_place_and_all_but_those_with_wrong_steps_a_rule() -> None:
    assert {name for place in PLACES.values() for name in place.candidates} == set(CANDIDATES)
    assert set(KEPT_IF) == {name for name, candidate in CANDIDATES.items() if candidate.takes_right_steps}


def test_a_candidate_that_breaks_down_costs_the_others_nothing() -> None:
    class Calls:
        def call(
            self, limit_s: float, function: object, place: Place, modules: Mapping[str, None], *rest: object
        ) -> Figures:
            if "prefetch" in modules:
                raise CallFailed("misaligned address") if len(modules) == 1 else ProcessLost("it died")
            return figures(dict.fromkeys(modules, 0.0))

    notes: dict[str, str] = {}
    names = dict.fromkeys(["evict gradients", "prefetch", "tensor trees"])
    found = measure_alone_where_needed(Calls(), PLACES["VGG16"], names, "cuda", 1, notes)
    assert [set(one.differences_us) - {AGAIN} for one in found] == [{"evict gradients"}, {"tensor trees"}]
    assert notes == {"all at once on VGG16": "it died", "prefetch on VGG16": "misaligned address"}


def test_a_dry_run_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {name: Place("1x1048576", ["prefetch", "tensor trees"]) for name in ("first", "second")}
    monkeypatch.setattr(measure_candidates, "PLACES", places)
    monkeypatch.setattr(measure_candidates, "ROUNDS", 3)
    monkeypatch.setattr(measure_candidates, "Child", Inline)
    monkeypatch.setattr("sasgd_fused.backends.BACKENDS", {**BACKENDS})
    for name in ("candidate", "candidate, graph"):
        monkeypatch.setitem(CONTENDERS, name, CONTENDERS["native"])
    command = ["--device", "cpu", "--out", str(tmp_path / "card"), "--seconds", "0"]
    main([*command, "--places", "first"])
    written = tmp_path / "card-candidates.json"
    first = json.loads(written.read_text())["places"]["first"]
    assert [fields["same_bits"]["tensor trees"] for fields in first] == [True]

    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(measure_candidates, "measure_alone_where_needed", stop)
    main([*command, "--places", "first", "second"])
    found = json.loads(written.read_text())
    assert found["places"] == {"first": first} and found["left_out"] == {"the rest": "stopped"}
    assert "| first | prefetch |" in capsys.readouterr().out


def test_candidates_that_cannot_be_built_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_HOME", "/nowhere")
    assert build_candidates(["prefetch"]) == {"prefetch": "CUDA_HOME=/nowhere has no bin/nvcc that can be run"}


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit):
        main([])
    assert "finds no CUDA device here" in capsys.readouterr().err
