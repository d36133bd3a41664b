"""Predicts a step's microseconds on a GPU, ours and torch's fused one: `python -m tools.gpu_model`.

docs/cuda.md says what is assumed. With `--measured FILE`, the benchmark's JSON, each of its rows that the model knows
is printed beside what it predicts.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from bench.cases import CASES, GRID_CASES, LARGE_CASES, Shape, shapes_of
from bench.measure import Result
from bench.report import table
from bench.rows import AGAINST, GPU_PLACES

# csrc/cuda/tables.h
THREADS = 256
CHUNK = 8192
FAN_IN = 16

# multi_tensor_apply of torch 2.11, for lists of three tensors: of a launch, and of a block.
TORCH_TENSORS = 48
TORCH_BLOCKS = 320
TORCH_ELEMENTS = 65536
TORCH_THREADS = 512
TORCH_VECTOR = 4  # elements that a thread takes at a time

ARRAYS, ARRAYS_READ = 5, 3  # weights, momentum and gradients are read, the first two written

PAIRS = {"native": AGAINST, "native, graph": f"{AGAINST}, graph"}
PLACES = (*GPU_PLACES, ("MobileNetV2", "float32"), ("160x64", "float32"))


@dataclass(frozen=True)
class Card:
    """A card's figures: microseconds where no unit is named. What is estimated may be wrong by half.

    They are those of the SXM cards, and the same for both where nothing says that they differ.
    """

    copy_tb_per_s: float
    multiprocessors: int = 132  # NVIDIA's data sheets
    clock_ghz: float = 1.98  # their 67 TFLOPS: 2 operations x 128 lanes x multiprocessors
    issued: int = 4  # instructions a cycle and multiprocessor: its four schedulers, NVIDIA's description of Hopper
    share_of_copy: float = 0.93  # estimate, the least certain: of a copy's bandwidth, in both steps' streams
    latency: float = 0.9  # estimate: of a load from memory while much is under way
    launch: float = 2.4  # chosen such that the totals are those of a first model by hand: for each launch
    look_up: float = 0.9  # estimate: two loads in a row in a cold cache before a block's first byte
    lone_chunk: float = 3.0  # estimate: a chunk, however small, where few blocks are left: look-up, four rounds, sums
    fence: float = 1.2  # estimate: the fence and the counter by which the last block is found
    level: float = 1.1  # estimate, 0.7 to 1.1: a level of its tree, up to 256 nodes: a node, then two times 8 children
    more_nodes: float = 0.6  # chosen as `launch` was: each further 256 nodes, whose loads overlap
    finish: float = 0.6  # estimate: two loads in a row for what the next step needs
    torch_round: float = 0.83  # estimate: torch's 512 threads load, compute and store a vector each


CARDS = {
    "H100": Card(copy_tb_per_s=3.0),  # said to be measured; 0.9 of the data sheet's 3.35
    "H200": Card(copy_tb_per_s=4.3),  # 0.9 of the data sheet's 4.8, as there
}


class Loop(NamedTuple):
    """What the compiler made of the loop over a chunk: nvcc 13.0, sm_90, momentum without Nesterov."""

    item_size: int  # bytes of an element
    instructions: int  # of a thread for 8 elements
    in_flight: int  # bytes that a thread has under way
    thread_blocks: int  # that a multiprocessor holds: 64 registers


LOOPS = {"float32": Loop(4, 151, 96, 4), "bfloat16": Loop(2, 172, 48, 4)}  # float16 was not looked at


class Prediction(NamedTuple):
    """Microseconds, and what they come from; `copy` is what a copy of as many bytes takes."""

    megabytes: float
    copy: float
    chunks: int
    waves: float
    launch: float
    look_up: float
    stream: float
    tail: float
    last_block: float
    torch_launches: int
    torch_blocks: int
    torch: float

    @property
    def ours(self) -> float:
        return self.launch + self.look_up + self.stream + self.tail + self.last_block

    @property
    def ratio(self) -> float:
        return self.ours / self.torch

    @property
    def share_of_copy(self) -> float:
        return self.copy / self.ours


# What is printed, with so many digits.
DIGITS = {
    "megabytes": 1, "chunks": 0, "waves": 1, "launch": 1, "look_up": 1, "stream": 1, "tail": 1, "last_block": 1,
    "ours": 1, "torch_launches": 0, "torch_blocks": 0, "torch": 1, "ratio": 2, "share_of_copy": 2,
}  # fmt: skip


def predict(shapes: Iterable[Shape], dtype: str, card: Card) -> Prediction:
    """Returns what the model says of a step with tracked norms and momentum, in one launch of ours."""
    shapes, loop = list(shapes), LOOPS[dtype]
    counts = list(map(math.prod, shapes))
    chunks_of = [-(-count // CHUNK) for count in counts]
    chunks, resident = sum(chunks_of), loop.thread_blocks * card.multiprocessors
    stream = stream_time(sum(counts), loop, card)
    in_last_wave = chunks % resident or min(chunks, resident)
    launches, megabytes = torch_launches(counts), ARRAYS * loop.item_size * sum(counts) / 1e6
    return Prediction(
        megabytes=megabytes,
        copy=megabytes / card.copy_tb_per_s,
        chunks=chunks,
        waves=chunks / resident,
        launch=card.launch,
        look_up=card.look_up,
        stream=stream,
        tail=max(0.0, card.lone_chunk - stream * in_last_wave / chunks),
        last_block=last_block_time([n for n, shape in zip(chunks_of, shapes, strict=True) if len(shape) > 1], card),
        torch_launches=len(launches),
        torch_blocks=sum(map(len, launches)),
        torch=sum(torch_time(launch, loop, card) for launch in launches),
    )


def stream_time(elements: int, loop: Loop, card: Card) -> float:
    """Returns the longest of what bandwidth, latency and instructions allow."""
    threads = loop.thread_blocks * THREADS * card.multiprocessors
    return max(
        moving_time(elements, loop, card),
        ARRAYS_READ * loop.item_size * elements / (threads * loop.in_flight) * card.latency,
        elements / 8 / 32 * loop.instructions / (card.multiprocessors * card.issued * card.clock_ghz * 1e3),
    )


def moving_time(elements: int, loop: Loop, card: Card) -> float:
    """Returns how long their bytes take at the bandwidth that a step reaches."""
    return ARRAYS * loop.item_size * elements / (card.share_of_copy * card.copy_tb_per_s * 1e6)


def last_block_time(chunks_of_layers: Sequence[int], card: Card) -> float:
    """Returns what the last block adds: its tree takes the layers together, level by level."""
    time, counts = card.fence + card.finish, list(chunks_of_layers)
    while counts := [count for count in counts if count > 1]:
        counts = [-(-count // FAN_IN) for count in counts]
        time += card.level + card.more_nodes * (-(-sum(counts) // THREADS) - 1)
    return time


def torch_launches(counts: Iterable[int]) -> list[list[int]]:
    """Returns the elements of each block of each launch of torch's."""
    launches: list[list[int]] = []
    blocks: list[int] = []
    tensors = 0
    for count in filter(None, counts):
        tensors += 1
        for first in range(0, count, TORCH_ELEMENTS):
            blocks.append(min(TORCH_ELEMENTS, count - first))
            is_last = first + TORCH_ELEMENTS >= count
            if len(blocks) == TORCH_BLOCKS or (is_last and tensors == TORCH_TENSORS):
                launches.append(blocks)
                blocks, tensors = [], 0 if is_last else 1  # the rest of this tensor comes first
    return [*launches, blocks] if blocks else launches


def torch_time(blocks: Sequence[int], loop: Loop, card: Card) -> float:
    """Returns what a launch takes: its bytes after a first round, or its longest block where there are few."""
    rounds = -(-max(blocks) // (TORCH_THREADS * TORCH_VECTOR))
    moving = card.torch_round + moving_time(sum(blocks), loop, card)
    return card.launch + max(moving, card.torch_round * rounds)


def prediction_table(places: Iterable[tuple[str, str]], card: Card) -> str:
    """Returns a column for each network: what the model says, part by part."""
    columns = {name_of(*place): predict(shapes_of(place[0]), place[1], card) for place in places}
    lines = [
        [name.replace("_", " "), *(f"{getattr(column, name):.{digits}f}" for column in columns.values())]
        for name, digits in DIGITS.items()
    ]
    return table("|".join(["µs", *columns]), "l" + "r" * len(columns), lines)


def measured_table(results: Iterable[Result], card: Card) -> str:
    """Returns a line for each result that there is a prediction for: predicted, then measured."""
    known = [result for result in results if PAIRS.get(result.row.contender) == result.row.against]
    lines = [
        [
            *(name_of(result.row.case, result.row.dtype), result.row.contender),
            *(f"{of.ours:.1f}", f"{result.time_ms * 1e3:.1f}"),
            *(f"{of.torch:.1f}", f"{result.against_ms * 1e3:.1f}"),
            *(f"{of.ratio:.2f}", str(result.ratio)),
            *(f"{of.share_of_copy:.2f}", f"{result.gb_per_s / result.copy_gb_per_s:.2f}"),
            *(f"{card.copy_tb_per_s * 1e3:.0f}", f"{result.copy_gb_per_s:.0f}"),
        ]
        for result in known
        if result.row.dtype in LOOPS
        for of in [predict(shapes_of(result.row.case), result.row.dtype, card)]
    ]
    quantities = ("ours, µs", "torch, µs", "ratio", "share of a copy", "copy, GB/s")
    head = "|".join(["network", "contender", *(f"{name}|measured" for name in quantities)])
    return table(head, "ll" + "r" * 10, lines)


def name_of(case: str, dtype: str) -> str:
    """Returns the name of a network in a table."""
    return case if dtype == "float32" else f"{case}, {dtype}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_model", description="Predict a step's time on a GPU.")
    parser.add_argument("--card", choices=CARDS, help="default H100, or that of the file")
    parser.add_argument("--networks", nargs="+", choices=[*CASES, *LARGE_CASES, *GRID_CASES], metavar="NAME",
                        help=f"or TENSORSxELEMENTS, default {', '.join(dict(PLACES))}")  # fmt: skip
    parser.add_argument("--measured", type=Path, metavar="FILE", help="what the benchmark wrote on a GPU: its JSON")
    chosen = parser.parse_args(arguments)
    if chosen.measured is None:
        places = PLACES if chosen.networks is None else [(case, "float32") for case in chosen.networks]
        print(prediction_table(places, CARDS[chosen.card or "H100"]))
        return
    figures = json.loads(chosen.measured.read_text()) if chosen.measured.is_file() else {}
    if "results" not in figures:
        parser.error(f"--measured: got {chosen.measured}, where no results are; want the benchmark's JSON")
    device = str(figures["where"].get("device", "a CPU"))
    card = chosen.card or next((name for name in CARDS if name in device), None)
    if card is None:
        parser.error(f"--measured: got figures of {device}; want one of {', '.join(CARDS)}, or --card")
    wanted = chosen.networks or {**CASES, **GRID_CASES, **LARGE_CASES}
    results = [result for result in map(Result.from_json, figures["results"]) if result.row.case in wanted]
    print(f"{device}, predicted for an {card}\n\n{measured_table(results, CARDS[card])}")


if __name__ == "__main__":
    main()
