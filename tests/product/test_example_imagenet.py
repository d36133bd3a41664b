"""The ImageNet example: two processes train, one dies, the run goes on to the bit; errors say what is wanted."""

from __future__ import annotations

import math
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD

from sasgd_fused import ScaleAmendedSGD
from tests.helpers import cpu_only

pytest.importorskip("PIL")

from PIL import Image

sys.path.append(str(Path(__file__).parents[2] / "examples"))

import imagenet
import imagenet_data
import resnet

pytestmark = cpu_only("the example is tested there")

SCRIPT = imagenet.__file__
SMALL = ("--arch", "resnet18", "--image-size", "32", "--batch-size", "2")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")

# Each process writes its network. If it is to die, the second is killed in the second epoch, as for too much memory.
TELLS_OR_DIES = """
import os, signal
import torch
import torch.distributed as dist
import imagenet

class Trainer(imagenet.Trainer):
    def train(self, loader, epoch):
        if epoch == 1 and "DIES" in os.environ:
            dist.barrier()  # the first process has written its checkpoint
            if dist.get_rank() == 1:
                os.kill(os.getpid(), signal.SIGKILL)
        loss = super().train(loader, epoch)
        assert loader.sampler.epoch == epoch
        return loss

    def validate(self, loader):
        accuracy = super().validate(loader)
        torch.save(self.network.state_dict(), f"network{dist.get_rank()}.pt")
        return accuracy

imagenet.Trainer = Trainer
imagenet.main()
"""


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
    """Two classes of images in several sizes, modes and formats."""
    draw = random.Random(0)
    for part, names in (("train", ("0.png", "1.jpg", "2.JPEG", "3.png")), ("val", ("0.png", "1.jpg", "2.png"))):
        for label, mode in (("cat", "RGB"), ("dog", "L")):
            (tmp_path / part / label).mkdir(parents=True)
            for name in names:
                width, height = draw.randint(20, 50), draw.randint(20, 50)
                pixels = draw.randbytes(width * height * len(mode))
                Image.frombytes(mode, (width, height), pixels).save(tmp_path / part / label / name)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("not an image")
    yield tmp_path
    shutil.rmtree(tmp_path)  # with its checkpoints, which are large


def run(folder: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs Python in the folder, which is the script's folder of images too."""
    variables["PYTHONPATH"] = os.pathsep.join(str(parent) for parent in Path(SCRIPT).parents[:2])
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", **variables}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8"}
    with subprocess.Popen([sys.executable, *command], cwd=folder, env=environment, **pipes) as process:
        try:
            output, errors = process.communicate(timeout=120)
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


def test_two_processes_train_and_a_run_that_died_goes_on_to_the_bit(folder: Path) -> None:
    """Whatever reads the images: this process in the whole run, another one in that which goes on."""
    options = (".", *SMALL, "--epochs", "2", "--warm-up", "0.5")
    whole = run(folder, *TORCHRUN, SCRIPT, *options, "--workers", "0")
    assert whole.returncode == 0, whole.stderr
    assert len(losses(whole.stdout)) == 2
    assert all(map(math.isfinite, losses(whole.stdout)))
    expected = load(folder / "checkpoint.pt")
    assert expected["epochs"] == 2

    (folder / "script.py").write_text(TELLS_OR_DIES)
    dead = run(folder, *TORCHRUN, "script.py", *options, "--workers", "0", "--checkpoint", "dead.pt", DIES="1")
    assert dead.returncode != 0
    assert "Signal 9 (SIGKILL)" in dead.stderr
    assert losses(dead.stdout) == losses(whole.stdout)[:1]
    half = load(folder / "dead.pt")
    assert half["epochs"] == 1
    assert not torch.equal(half["network"]["conv1.weight"], expected["network"]["conv1.weight"])

    resumed = run(folder, *TORCHRUN, "script.py", *options, "--workers", "1", "--resume", "dead.pt")
    assert resumed.returncode == 0, resumed.stderr
    assert losses(resumed.stdout) == losses(whole.stdout)[1:]
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


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def keep_no_image(path: Path) -> None:
    for image in path.iterdir():
        image.unlink()


@pytest.mark.parametrize(
    ("place", "change", "message"),
    [
        ("train", remove, "train: no classes found, want train/ and val/ there, with a folder for each class"),
        ("val", remove, "val: no classes found, want train/ and val/ there, with a folder for each class"),
        ("val/dog", remove, "val/dog: no images found, want at least one file in it with .*jpg"),
        ("train/cat", keep_no_image, "train/cat: no images found, want at least one file in it with .*jpg"),
        ("val/cow", Path.mkdir, "val/cow: a class that is not in train/, want the same classes in both"),
        ("train/dog/0.png", remove, r"train: got 7 images, want at least one batch: 4 x 2"),
    ],
)
def test_a_folder_that_is_not_as_wanted(place: str, change: Callable[[Path], None], message: str, folder: Path) -> None:
    change(folder / place)
    with pytest.raises(ValueError, match=message):
        make_loaders(folder)


@pytest.mark.parametrize("end", [0, -200], ids=["empty", "cut off"])
def test_a_damaged_image_is_named(end: int, folder: Path) -> None:
    path = folder / "train" / "dog" / "1.jpg"
    path.write_bytes(path.read_bytes()[:end])
    training, _ = make_loaders(folder)
    with pytest.raises(ValueError, match=r"dog/1\.jpg: cannot be read as an image: "):
        training.dataset[0, 0, 5]


def make_loaders(folder: Path, rank: int = 0) -> tuple[imagenet.Loader, imagenet.Loader]:
    return imagenet_data.make_loaders(folder, image_size=16, batch_size=4, workers=0, seed=0, rank=rank, processes=2)


def test_each_image_is_read_once_an_epoch(folder: Path) -> None:
    """By one of the processes, in another order and with other cutouts in the next epoch."""
    read: dict[str, list[Any]] = {"train": [], "next": [], "val": []}
    for rank in (0, 1):
        training, validation = make_loaders(folder, rank)
        read["train"] += list(training.sampler)
        training.sampler.set_epoch(1)  # type: ignore[attr-defined]
        read["next"] += list(training.sampler)
        read["val"] += list(validation.sampler)
    assert sorted(read["val"]) == list(range(6))
    assert sorted(read["train"]) == [(0, 0, index) for index in range(8)]
    assert sorted(read["next"]) == [(0, 1, index) for index in range(8)]
    assert [place[2] for place in read["next"]] != [place[2] for place in read["train"]]
    images = training.dataset
    (first, label), (again, _), (later, _) = images[0, 0, 0], images[0, 0, 0], images[0, 1, 0]
    assert (first.shape, first.dtype, label) == ((16, 16, 3), torch.uint8, 0)
    assert torch.equal(first, again)
    assert not torch.equal(first, later)


def test_boxes_lie_within_the_image() -> None:
    draw = random.Random(0)
    for width, height in [(500, 375), (20, 60), (3000, 10)]:
        for _ in range(100):
            left, top, right, bottom = imagenet_data.random_box(width, height, draw)
            assert 0 <= left < right <= width
            assert 0 <= top < bottom <= height
    assert imagenet_data.central_box(512, 256) == (144, 16, 368, 240)


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
