"""The ImageNet example: two processes train, one dies, the run goes on to the bit."""

from __future__ import annotations

import importlib
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from statistics import mean
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD

from sasgd_fused import ScaleAmendedSGD
from tests.distributed.ranks import RankError, run_ranks
from tests.helpers import cpu_only

pytest.importorskip("PIL")

import imagenet
import resnet

from tests.product import imagenet_that_dies
from tests.product.image_folder import write_images

pytestmark = cpu_only("the example is tested there")

SCRIPT = imagenet.__file__
SMALL = ("--arch", "resnet18", "--image-size", "32", "--batch-size", "2")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")

# Runs a script as it is, and looks at what its convolutions do.
WATCHES_CONVOLUTIONS = """
import runpy, sys
import torch
from torch.nn.modules.module import register_module_forward_hook

def watch(module, inputs, output):
    if isinstance(module, torch.nn.Conv2d):
        for tensor in (module.weight, inputs[0], output):
            assert tensor.is_contiguous(memory_format=torch.channels_last)
        assert output.dtype == torch.bfloat16

register_module_forward_hook(watch)
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    write_images(tmp_path)
    yield tmp_path
    shutil.rmtree(tmp_path)  # with its checkpoints, which are large


def run(folder: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs Python in the folder, which is the script's folder of images too."""
    variables["PYTHONPATH"] = os.pathsep.join(str(parent) for parent in Path(SCRIPT).parents[:2])
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", **variables}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8"}
    with subprocess.Popen([sys.executable, *command], cwd=folder, env=environment, **pipes) as process:
        try:
            output, errors = process.communicate(timeout=600)
        except subprocess.TimeoutExpired:
            process.terminate()  # not killed: torchrun is to take its processes with it
            raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def load(path: Path) -> Any:
    return torch.load(path, weights_only=True)


def same(tree: Any, other: Any) -> bool:
    """Whether nested dictionaries and lists hold the same, tensors to the bit."""
    if isinstance(tree, Tensor):
        numbers, others = (tensor.flatten().view(torch.uint8) for tensor in (tree, other))
        return tree.stride() == other.stride() and torch.equal(numbers, others)
    if isinstance(tree, dict):
        return tree.keys() == other.keys() and all(same(value, other[key]) for key, value in tree.items())
    if isinstance(tree, list):
        return len(tree) == len(other) and all(map(same, tree, other))
    return bool(tree == other)


def losses(output: str) -> list[float]:
    return [float(loss) for loss in re.findall(r"^epoch \d+: loss (\S+), top-1 \S+%, \d+ images/s$", output, re.M)]


def by_torchrun(module: ModuleType, folder: Path, *options: str, **variables: str) -> tuple[str, str]:
    """Runs a module as a script in two processes; returns what it printed, and the errors if it failed."""
    done = run(folder, *TORCHRUN, str(module.__file__), *options, **variables)
    return done.stdout, done.stderr if done.returncode else ""


def in_ranks(module: ModuleType, folder: Path, *options: str, **variables: str) -> tuple[str, str]:
    """The same in processes that need not import torch first."""
    errors = ""
    try:
        run_ranks(2, be_rank, module.__name__, folder, options, variables)
    except RankError as error:
        errors = str(error)
    return (folder / "output0").read_text(), errors


def be_rank(rank: int, module: str, folder: Path, options: tuple[str, ...], variables: dict[str, str]) -> None:
    os.chdir(folder)
    os.environ.update(variables)
    sys.argv = [module, *options]
    imagenet.join_processes = lambda: torch.device("cpu")  # they have joined already
    with open(f"output{rank}", "w", encoding="utf-8") as file, redirect_stdout(file):
        importlib.import_module(module).main()


# Processes of tests may have none of their own to read the images.
@pytest.mark.parametrize(
    ("launch", "workers"), [(in_ranks, "0"), pytest.param(by_torchrun, "1", marks=pytest.mark.nightly)]
)
def test_two_processes_train_and_a_run_that_died_goes_on_to_the_bit(
    launch: Callable[..., tuple[str, str]], workers: str, folder: Path
) -> None:
    """Whatever reads the images: this process in the whole run, another one in that which goes on."""
    options = (".", *SMALL, "--epochs", "2", "--warm-up", "0.5")
    whole, errors = launch(imagenet, folder, *options, "--workers", "0")
    assert not errors, errors
    assert len(losses(whole)) == 2
    assert all(map(math.isfinite, losses(whole)))
    expected = load(folder / "checkpoint.pt")
    assert expected["epochs"] == 2

    dying = (*options, "--workers", "0", "--checkpoint", "dead.pt")
    printed, errors = launch(imagenet_that_dies, folder, *dying, DIES="1")
    assert "SIGKILL" in errors
    assert losses(printed) == losses(whole)[:1]
    half = load(folder / "dead.pt")
    assert half["epochs"] == 1
    assert not torch.equal(half["network"]["conv1.weight"], expected["network"]["conv1.weight"])

    printed, errors = launch(imagenet_that_dies, folder, *options, "--workers", workers, "--resume", "dead.pt")
    assert not errors, errors
    assert losses(printed) == losses(whole)[1:]
    assert same(load(folder / "checkpoint.pt"), expected)
    for rank in (0, 1):
        assert same(load(folder / f"network{rank}.pt"), expected["network"])


def test_one_process_without_torchrun_in_bfloat16(folder: Path) -> None:
    command = ("-c", WATCHES_CONVOLUTIONS, SCRIPT, ".", *SMALL, "--epochs", "1", "--workers", "0")
    done = run(folder, *command, "--amp", "bf16", "--report")
    assert done.returncode == 0, done.stderr
    assert len(losses(done.stdout)) == 1
    assert "\nlayer4.1.conv2.weight " in done.stdout
    assert load(folder / "checkpoint.pt")["settings"]["processes"] == 1


def test_networks_have_as_many_parameters_as_torchvisions() -> None:
    sizes = {"resnet18": 11_689_512, "resnet50": 25_557_032}
    for name, size in sizes.items():
        assert sum(param.numel() for param in resnet.ARCHITECTURES[name](1000).parameters()) == size


def test_the_learning_rate_is_that_of_sgd_times_outputs_by_mean_rows() -> None:
    network = resnet.ARCHITECTURES["resnet18"](10)
    amended = imagenet.make_optimizer("sasgd", network, 0.4, 1e-4)
    assert isinstance(amended, ScaleAmendedSGD)
    *hidden, head = amended.layer_report()
    assert not head.scaled
    assert amended.param_groups[0]["lr"] == 0.4
    assert amended.param_groups[1]["lr"] == 0.4 * 10 / mean(layer.rows for layer in hidden)
    plain = imagenet.make_optimizer("sgd", network, 0.4, 1e-4)
    assert isinstance(plain, SGD)
    assert [group["lr"] for group in plain.param_groups] == [0.4]


@pytest.mark.parametrize("steps", [10, 4], ids=["with a cosine", "warm-up alone"])
def test_the_schedule_warms_up_and_falls_to_zero(steps: int) -> None:
    optimizer = SGD([torch.zeros(1)], lr=1.0)
    schedule = imagenet.make_schedule(optimizer, 4, steps)
    rates = []
    for _ in range(steps):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0][: len(rates)])
    assert rates[4:] == sorted(rates[4:], reverse=True)
    if steps > 4:
        assert schedule.get_last_lr() == [0.0]


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    parts = {"network": torch.nn.Linear(2, 2)}
    imagenet.save_checkpoint(tmp_path / "file.pt", parts, {"lr": 0.1, "seed": 1}, epochs=3)
    assert [path.name for path in tmp_path.iterdir()] == ["file.pt"]
    assert imagenet.load_checkpoint(tmp_path / "file.pt", parts, {"lr": 0.1, "seed": 1}) == 3
    with pytest.raises(ValueError, match=r"file.pt: seed was 1 and is 2 now, want the same"):
        imagenet.load_checkpoint(tmp_path / "file.pt", parts, {"lr": 0.1, "seed": 2})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--amp", "fp16"], "--amp: got fp16 without CUDA, want bf16 or off"),
        (["--optimizer", "sgd", "--report"], "--report: torch.optim.SGD has no report, want --optimizer sasgd"),
        (["--checkpoint", "nowhere/file.pt"], "--checkpoint: nowhere is not there, want a folder to write to"),
    ],
)
def test_arguments_that_are_refused(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["imagenet.py", "folder", *arguments])
    with pytest.raises(SystemExit, match="2"):
        imagenet.parse_arguments()
    assert message in capsys.readouterr().err
