"""Which candidates of the CUDA kernels to keep, by invented measurements, and the measuring in a dry run on a CPU."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from bench.cases import Setup, setup
from bench.child import CallFailed, ProcessLost
from bench.contenders import CONTENDERS
from bench.turns import Spread
from sasgd_fused.backends import BACKENDS
from tests.bench.inline import Inline
from tools import measure_candidates
from tools.candidate_report import AGAIN, KEPT_IF, KERNELS, Figures, Measurements, markdown, verdict
from tools.cuda_candidates import CANDIDATES, UNCHANGED, build_candidates
from tools.measure_candidates import PLACES, Place, differences, main, measure_alone_where_needed, take_same_steps

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
    candidate: str,
    vgg13: float,
    resnet: float,
    vgg16: float,
    wrong: str = "",
    end: float = -7,
    elsewhere: Mapping[str, list[Figures]] | None = None,
) -> Measurements:
    """Makes measurements of a candidate, and of the others that say what is worth it, in a step of 1000 us on VGG16."""
    others = {"without epilogue": end, "prefetch": -1.2, "tensor trees": -2.0}
    values = {"VGG13-CIFAR": vgg13, "ResNet-50": resnet, "VGG16": vgg16}
    return Measurements(
        {
            place: [figures({**others, candidate: more}, time_us=1000 if place == "VGG16" else 100, wrong=wrong)]
            for place, more in values.items()
        }
        | {**(elsewhere or {})}
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
        (UNCHANGED, (0, 0, 0), "shows what another module costs"),
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


@pytest.mark.parametrize("seed", range(5))
def test_what_counts_is_more_than_the_medians_of_the_same_differ(seed: int) -> None:
    chance = random.Random(seed)

    def gain(saved_us: float, rounds: int) -> float:
        means = {KERNELS: 0.0, AGAIN: 0.0, UNCHANGED: 0.0, "prefetch": -saved_us}
        times = {name: [int(chance.gauss(100 + mean, 2) * 1e3) for _ in range(rounds)] for name, mean in means.items()}
        here = {name: differences(times, name) for name in times if name != KERNELS}
        return Figures(rounds, 100, here, None, {}, {}).gain("prefetch")

    assert gain(1, 500) == pytest.approx(1, abs=0.5) and gain(1, 500) > 0
    assert gain(0, 500) == 0 and gain(0, 50) == 0


def test_noise_is_the_worst_of_both_that_are_the_same() -> None:
    def gain(again: float, unchanged: float) -> float:
        medians = {AGAIN: again, UNCHANGED: unchanged, "prefetch": -1.5}
        here = {name: Spread(median, median, median) for name, median in medians.items()}
        return Figures(200, 100, here, None, {}, {}).gain("prefetch")

    assert (gain(-1.4, 1.4), gain(1.6, 0), gain(0, -1.6)) == (1.5, 0, 0)


def test_trees_are_left_where_the_end_costs_little_and_what_takes_wrong_steps_is() -> None:
    assert verdict("tensor trees", measured("tensor trees", -2, -2, 0, end=-2.9)) == "no"
    slow = {"VGG16, bfloat16": [figures({"tensor trees": 1.0})]}
    assert verdict("tensor trees", measured("tensor trees", -2, -2, 0, elsewhere=slow)) == "no"
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
    assert {*KEPT_IF, UNCHANGED} == {name for name, candidate in CANDIDATES.items() if candidate.takes_right_steps}


def test_a_candidate_that_breaks_down_costs_the_others_nothing() -> None:
    class Calls:
        def call(
            self, limit_s: float, function: object, place: Place, modules: Mapping[str, None], *rest: object
        ) -> Figures:
            if "prefetch" in modules:
                raise CallFailed("misaligned address") if len(modules) == 2 else ProcessLost("it died")
            return figures(dict.fromkeys(modules, 0.0))

    notes: dict[str, str] = {}
    names = dict.fromkeys([UNCHANGED, "evict gradients", "prefetch", "tensor trees"])
    found = measure_alone_where_needed(Calls(), PLACES["VGG16"], names, "cuda", 1, notes)
    beside = {AGAIN, UNCHANGED}
    assert [set(one.differences_us) for one in found] == [beside | {"evict gradients"}, beside | {"tensor trees"}]
    assert notes == {"all at once on VGG16": "it died", "prefetch on VGG16": "misaligned address"}


@pytest.mark.parametrize("name", ["weight", "momentum", "row_norm_sq", "sum_squares", "flags", "stale_steps"])
def test_wrong_steps_are_found_by_all_that_they_leave(name: str) -> None:
    def made() -> Setup:
        return setup("64x64", "native")

    right, wrong = made(), made()
    (backend,) = wrong.optimizer._current_backends()  # type: ignore[attr-defined]
    assert take_same_steps(made(), right)
    if name in ("weight", "momentum"):
        parameter = wrong.parameters[5]
        tensor = parameter.detach() if name == "weight" else wrong.optimizer.state[parameter]["momentum_buffer"]
    else:
        tensor = getattr(backend.device_state.carried, name)
    tensor.view(torch.uint8).view(-1)[7] ^= 1  # one bit
    assert not take_same_steps(wrong, right)


def test_a_nan_is_the_same_and_what_was_found_stale_is_wrong() -> None:
    one, other = setup("64x64", "native"), setup("64x64", "native")
    for made in (one, other):
        made.parameters[0].detach()[0, 0] = float("nan")
    assert take_same_steps(one, other), "the same NaN is the same"
    for made in (one, other):
        (backend,) = made.optimizer._current_backends()  # type: ignore[attr-defined]
        backend.device_state.carried.stale_steps[0] = 1
    assert not take_same_steps(one, other)


@pytest.fixture
def dry_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], Path]:
    """Returns the command of a dry run at two places, and the file that it writes."""
    candidates = [UNCHANGED, "prefetch", "evict gradients"]
    places = {name: Place("64x64", candidates) for name in ("first", "second")}
    monkeypatch.setattr(measure_candidates, "PLACES", places)
    monkeypatch.setattr(measure_candidates, "ROUNDS", 3)
    monkeypatch.setattr(measure_candidates, "Child", Inline)
    monkeypatch.setattr("sasgd_fused.backends.BACKENDS", {**BACKENDS})
    for name in ("candidate", "candidate, graph"):
        monkeypatch.setitem(CONTENDERS, name, CONTENDERS["native"])
    return ["--device", "cpu", "--out", str(tmp_path / "card"), "--seconds", "0"], tmp_path / "card-candidates.json"


def test_a_dry_run_goes_on_where_it_was_stopped(
    dry_run: tuple[list[str], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command, written = dry_run
    main([*command, "--places", "first"])
    first = json.loads(written.read_text())["places"]["first"]
    assert [set(fields["same_bits"].values()) for fields in first] == [{True}, {True}]

    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(measure_candidates, "measure_alone_where_needed", stop)
    main([*command, "--places", "first", "second"])
    found = json.loads(written.read_text())
    assert found["places"] == {"first": first} and found["left_out"] == {"the rest": "stopped"}
    assert "| first | prefetch |" in capsys.readouterr().out


def test_what_matters_most_comes_first_and_a_rerun_measures_what_is_missing(
    dry_run: tuple[list[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    command, written = dry_run
    asked: list[tuple[str, list[str]]] = []
    fails = {"prefetch"}

    def measure(child: object, place: Place, modules: Mapping[str, None], *rest: object) -> list[Figures]:
        asked.append((next(name for name, other in measure_candidates.PLACES.items() if other is place), [*modules]))
        return [figures(dict.fromkeys(modules.keys() - fails, 0.0))]

    def build(names: list[str], *rest: object) -> dict[str, None]:
        asked.append(("build", names))
        return dict.fromkeys(names)

    monkeypatch.setattr(measure_candidates, "measure_alone_where_needed", measure)
    monkeypatch.setattr(measure_candidates, "build", build)
    places = ["--places", "first", "second"]
    main([*command, *places])
    assert asked == [
        (what, [UNCHANGED, name])
        for name in ("prefetch", "evict gradients")
        for what in ("build", "first", "second")
    ]  # fmt: skip
    before = json.loads(written.read_text())["places"]
    asked.clear()
    fails.clear()
    main([*command, *places])
    assert asked == [*[(what, [UNCHANGED, "prefetch"]) for what in ("build", "first", "second")], ("build", [])]
    after = json.loads(written.read_text())["places"]
    assert all(after[place][:-1] == before[place] for place in after), "earlier figures are kept"


@pytest.mark.parametrize(("named", "wanted"), [("", (90,)), ("80", ())])
def test_it_is_built_for_the_gpu_at_hand(named: str, wanted: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    def build_candidates(names: list[str], architectures: tuple[int, ...]) -> dict[str, Path | str]:
        assert architectures == wanted
        return {"prefetch": Path("here"), "tensor trees": "why not"}

    monkeypatch.setenv("SASGD_CUDA_ARCHITECTURES", named)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(measure_candidates, "build_candidates", build_candidates)
    notes: dict[str, str] = {}
    assert measure_candidates.build(["prefetch", "tensor trees"], "cuda", notes) == {"prefetch": Path("here")}
    assert notes == {"tensor trees": "why not"}


def test_candidates_that_cannot_be_built_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_HOME", "/nowhere")
    assert build_candidates(["prefetch"]) == {"prefetch": "CUDA_HOME=/nowhere has no bin/nvcc that can be run"}


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit):
        main([])
    assert "finds no CUDA device here" in capsys.readouterr().err
