"""The model of a step on a GPU says what was worked out by hand, and is held against what was measured."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from bench.cases import shapes_of
from bench.measure import Result
from bench.rows import Row
from bench.turns import Spread
from tools.gpu_model import CARDS, LOOPS, last_block_time, main, predict, stream_time, torch_launches

# By hand it was done for kernels that waited for five loads, one after the other, where two are left.
THEN = {name: replace(card, look_up=2.3, lone_chunk=4.4, finish=1.4) for name, card in CARDS.items()}
# Microseconds of ours and of torch's step on an H100, and the ratios there and on an H200, by hand from the same facts.
BY_HAND = {
    "160x64": (12, 13, 0.90, 0.90),
    "VGG13-CIFAR": (78, 70, 1.10, 1.16),
    "ResNet-50": (195, 215, 0.90, 0.84),
    "DenseNet-201": (155, 361, 0.43, 0.31),
    "ResNet-152": (443, 495, 0.89, 0.84),
    "VGG16": (1009, 1013, 1.00, 1.00),
    "Pythia-1B": (7285, 7400, 0.98, 0.98),
}


@pytest.mark.parametrize("network", BY_HAND)
def test_the_figures_are_those_by_hand(network: str) -> None:
    ours, torch, ratio, ratio_h200 = BY_HAND[network]
    predicted = predict(shapes_of(network), "float32", THEN["H100"])
    assert predicted.ours == pytest.approx(ours, rel=0.03)
    assert predicted.torch == pytest.approx(torch, rel=0.03)
    assert predicted.ratio == pytest.approx(ratio, abs=0.02)
    assert predict(shapes_of(network), "float32", CARDS["H100"]).ours < predicted.ours
    assert predict(shapes_of(network), "float32", THEN["H200"]).ratio == pytest.approx(ratio_h200, abs=0.02)


def test_torchs_blocks_take_as_long_as_their_elements() -> None:
    """By hand, 104 us, each of MobileNetV2's four launches was taken for one with a full block; two have none."""
    predicted = predict(shapes_of("MobileNetV2"), "float32", THEN["H100"])
    launches = torch_launches(map(math.prod, shapes_of("MobileNetV2")))
    assert [max(blocks) for blocks in launches] == [6144, 24576, 65536, 65536]
    assert predicted.ours == pytest.approx(37, rel=0.03)
    assert predicted.torch == pytest.approx(75.2, abs=0.1)
    assert predict(shapes_of("MobileNetV2"), "float32", CARDS["H200"]).torch == pytest.approx(75.2, abs=0.1)


@pytest.mark.parametrize(
    ("counts", "blocks"),
    [
        (map(math.prod, shapes_of("ResNet-50")), [51, 90, 204, 163]),
        ([1] * 96, [48, 48]),
        ([], []),
        ([0, 1, 0], [1]),
        ([320 * 65536], [320]),
        ([320 * 65536, 1], [320, 1]),
        ([320 * 65536 + 1, *[1] * 48], [320, 48, 1]),  # what is left of the first counts as a tensor
    ],
)
def test_blocks_of_torchs_launches(counts: Iterable[int], blocks: list[int]) -> None:
    assert [len(launch) for launch in torch_launches(counts)] == blocks


@pytest.mark.parametrize(
    ("chunks", "levels", "more"),
    [([], 0, 0), ([1, 1], 0, 0), ([16], 1, 0), ([17, 2], 2, 0), ([16 * 256], 3, 0), ([16 * 256, 2], 3, 1)],
)
def test_the_tree_costs_its_levels(chunks: list[int], levels: int, more: int) -> None:
    card = CARDS["H100"]
    expected = card.fence + card.finish + levels * card.level + more * card.more_nodes
    assert last_block_time(chunks, card) == pytest.approx(expected)


def test_a_stream_takes_what_its_narrowest_place_takes() -> None:
    card, loop = CARDS["H100"], LOOPS["float32"]
    assert stream_time(10**8, loop, card) == pytest.approx(20 * 10**8 / 2.79e6)
    few_loads = stream_time(10**8, loop._replace(in_flight=4), card)
    assert few_loads == pytest.approx(12 * 10**8 / (132 * 4 * 256 * 4) * 0.9)
    many_instructions = stream_time(10**8, loop._replace(instructions=2000), card)
    assert many_instructions == pytest.approx(10**8 / 256 * 2000 / (132 * 4 * 1.98e3))


def results_file(folder: Path, device: str | None) -> Path:
    def result(contender: str, against: str = "torch fused", dtype: str = "float32") -> dict[str, Any]:
        row = Row("ResNet-50", contender, against, dtype=dtype)
        spread = Spread(0.9, 0.8, 1.1)
        return asdict(Result(row, 1, 20, 0.2, 0.25, spread, Spread(1, 1, 1), 20.0, 2600.0, 2900.0, host_us=40.0))

    results = [
        *(result("native"), result("native", dtype="bfloat16"), result("native, graph", "torch fused, graph")),
        *(result("triton"), result("native", "reference"), result("native", dtype="float16")),
    ]
    where = {} if device is None else {"device": device}
    path = folder / "measured.json"
    path.write_text(json.dumps({"where": where, "left_out": {}, "results": results, "memory": []}))
    return path


def test_what_was_measured_stands_beside_what_was_predicted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = results_file(tmp_path, "NVIDIA H200")
    main(["--measured", str(path)])
    head, *lines = capsys.readouterr().out.strip().splitlines()
    assert head == "NVIDIA H200, predicted for an H200"
    of = predict(shapes_of("ResNet-50"), "float32", CARDS["H200"])
    assert lines[3] == (
        f"| ResNet-50 | native | {of.ours:.1f} | 200.0 | {of.torch:.1f} | 250.0 "
        f"| {of.ratio:.2f} | 0.900 [0.800, 1.100] | {of.share_of_copy:.2f} | 0.90 | 4300 | 2900 |"
    )
    assert [line.split(" | ")[:2] for line in lines[4:]] == [
        ["| ResNet-50, bfloat16", "native"],
        ["| ResNet-50", "native, graph"],
    ]
    main(["--measured", str(path), "--networks", "VGG16", "--card", "H100"])
    assert "ResNet-50" not in capsys.readouterr().out


@pytest.mark.parametrize("device", [None, "NVIDIA T4"])
def test_a_card_that_is_not_known_has_to_be_named(
    tmp_path: Path, device: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = results_file(tmp_path, device)
    with pytest.raises(SystemExit):
        main(["--measured", str(path)])
    assert f"--measured: got figures of {device or 'a CPU'}; want one of H100, H200" in capsys.readouterr().err
    main(["--measured", str(path), "--card", "H100"])


@pytest.mark.parametrize("text", [None, "{}"])
def test_a_file_without_results_is_refused(
    tmp_path: Path, text: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "checks.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit):
        main(["--measured", str(path)])
    assert "checks.json, where no results are; want the benchmark's JSON" in capsys.readouterr().err


def test_a_table_has_a_column_for_each_network(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--networks", "VGG13-CIFAR", "64x1024"])
    head, _, *lines = capsys.readouterr().out.strip().splitlines()
    assert head == "| µs | VGG13-CIFAR | 64x1024 |"
    of = predict(shapes_of("VGG13-CIFAR"), "float32", CARDS["H100"])
    assert {line.split(" | ")[0]: line.split(" | ")[1] for line in lines}["| ratio"] == f"{of.ratio:.2f}"
