"""A comparison that was killed goes on to the bit, whenever that was, and schedules lower the rate when they should."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from experiments.cli import run
from experiments.data import Dataset
from experiments.methods import METHODS, why_unavailable
from experiments.resume import replacing, save_checkpoint
from experiments.train import train

ROOT = Path(__file__).resolve().parents[2]
MAIN = [name for name in METHODS if "+" not in name and why_unavailable(name) is None]
METHOD_NAMES = ("sgd", "recommended")
COMPARE = ["compare", "--dataset", "digits-tuning", "--seeds", "0", "--epochs", "3", "--methods", *METHOD_NAMES]


def compare(out: Path, *more: str) -> None:
    assert run([*COMPARE, "--out", str(out), *more]) == 0


def figures(out: Path) -> Any:
    """All of results.json but the times."""
    content = json.loads((out / "results.json").read_text())
    for entry in content["summary"] + content["runs"]:
        del entry["step_ms"]
        entry.pop("seconds", None)
    return content


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("uninterrupted")
    compare(out)
    assert not (out / "unfinished").exists()
    return figures(out)


def start(out: Path, code: str) -> subprocess.Popen[bytes]:
    program = f"""
import os, signal, sys
from experiments.cli import run
{code}
run(sys.argv[1:])
"""
    arguments = [*COMPARE, "--out", str(out)]
    return subprocess.Popen([sys.executable, "-c", program, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL)


# The fifth is the second checkpoint of the second run: three of the first run come before.
KILL_IN_THE_WRITE = """
import experiments.resume as resume
save, saved = resume.torch.save, []
def save_a_part(state, file):
    saved.append(state)
    if len(saved) == 5:
        file.write(b"the first bytes")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    save(state, file)
resume.torch.save = save_a_part
"""


def test_killed_while_it_writes_a_checkpoint(tmp_path: Path, uninterrupted: Any) -> None:
    assert start(tmp_path, KILL_IN_THE_WRITE).wait(timeout=300) == -signal.SIGKILL
    kept = json.loads((tmp_path / "unfinished" / "comparison.json").read_text())
    assert [entry["method"] for entry in kept["results"]] == ["sgd"]
    assert (tmp_path / "unfinished" / "0-tuned-recommended.pt.new").read_bytes() == b"the first bytes"
    checkpoint = torch.load(tmp_path / "unfinished" / "0-tuned-recommended.pt", weights_only=True)
    assert len(checkpoint["history"]["train_loss"]) == 1
    compare(tmp_path, "--resume")
    assert figures(tmp_path) == uninterrupted
    assert not (tmp_path / "unfinished").exists()


def test_killed_from_outside_while_it_trains(tmp_path: Path, uninterrupted: Any) -> None:
    process = start(tmp_path, "")
    deadline = time.monotonic() + 300
    while not list((tmp_path / "unfinished").glob("*.pt")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert (tmp_path / "unfinished" / "comparison.json").exists()
    compare(tmp_path, "--resume")
    assert figures(tmp_path) == uninterrupted


def test_the_model_goes_on_to_the_bit_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.train.PATIENCE", 1)  # so that the rate falls after the checkpoint
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(64, 8, generator=generator), torch.arange(64) % 4
    data = Dataset((images, labels), (images, labels), classes=4, validation=(images, labels))

    class Stopped(Exception):
        pass

    for schedule, name in product(("cosine", "plateau"), MAIN):
        models, histories = [], []
        for stop in (None, 2):
            torch.manual_seed(0)
            model = nn.Sequential(
                nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8, affine=False), nn.Linear(8, 4, bias=False)
            )
            calls: list[None] = []

            def on_epoch(stop: int | None = stop, calls: list[None] = calls) -> None:
                calls.append(None)
                if len(calls) == stop:
                    raise Stopped

            options: dict[str, Any] = {"seed": 0, "epochs": 5, "batch_size": 16, "schedule": schedule}
            options["checkpoint"] = tmp_path / f"{schedule}-{name}-{stop}.pt"
            method = METHODS[name].tuned(0.01, 5e-3)
            if stop:
                with pytest.raises(Stopped):
                    train(model, method.build(model, "foreach"), data, on_epoch=on_epoch, **options)
                calls.clear()
                for weight in model.state_dict().values():
                    weight.zero_()  # all that matters is in the checkpoint
            optimizer = method.build(model, "foreach")
            histories.append(train(model, optimizer, data, on_epoch=partial(calls.append, None), **options))
            assert len(calls) == 5
            models.append(model)
        states = [model.state_dict().values() for model in models]
        assert all(map(torch.equal, *states)), (schedule, name)
        curves = [(history.train_loss, history.test_error, history.layer_scale) for history in histories]
        assert curves[0] == curves[1], (schedule, name)


def test_stopped_in_the_middle_of_a_variation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--preset", "deep-plain", "--dataset", "noisy-digits-tuning", "--epochs", "2", "--vary", "init", "width"]
    compare(tmp_path / "whole", *options)
    whole = figures(tmp_path / "whole")
    runs = [(entry["variation"], entry["method"]) for entry in whole["runs"]]
    assert runs == list(product(("tuned", "init", "width x 0.5", "width x 2"), METHOD_NAMES))
    stopped = tmp_path / "stopped"
    saved = []

    def save_and_stop(*arguments: Any) -> None:
        save_checkpoint(*arguments)
        saved.append(arguments)
        if len(saved) == 11:  # the first of two in the second run of the third variation
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("experiments.train.save_checkpoint", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            compare(stopped, *options)
    kept = json.loads((stopped / "unfinished" / "comparison.json").read_text())
    assert [(entry["variation"], entry["method"]) for entry in kept["results"]] == runs[:5]
    assert [path.name for path in (stopped / "unfinished").glob("*.pt")] == ["0-width x 0.5-recommended.pt"]
    compare(stopped, *options, "--resume")
    assert figures(stopped) == whole


def test_an_unfinished_comparison_is_neither_lost_nor_mixed_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("experiments.compare.train", fail)
        with pytest.raises(KeyboardInterrupt):
            compare(tmp_path)
    for more, message in (
        ((), "unfinished holds an unfinished comparison: go on with --resume"),
        (("--resume", "--epochs", "4"), "with epochs 3, this one has 4: want the same"),
        (("--resume", "--lr", "sgd=0.5"), "with methods "),
        (("--resume", "--vary", "init"), 'with variations ["tuned"], this one has ["tuned", "init"]'),
        (("--resume", "--threads", "2"), "with threads 1, this one has 2"),
    ):
        with pytest.raises(SystemExit):
            compare(tmp_path, *more)
        error = capsys.readouterr().err
        assert "argument --out: " in error
        assert message in error
    torch.set_num_threads(1)  # the last one had set it


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(RuntimeError, match="stop"), replacing(path) as file:
        file.write(b"half")
        raise RuntimeError("stop")
    assert path.read_text() == "before"
    with replacing(path) as file:
        file.write(b"whole")
    assert path.read_text() == "whole"
