"""The command `compare`: its options reach the runs, and it says which argument is wrong."""

from __future__ import annotations

import dataclasses
import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments.cli import run
from experiments.compare import Settings
from experiments.methods import METHODS, Tuned
from experiments.presets import PRESETS

SHOWN = PRESETS["digits"].methods
ROOT = Path(__file__).resolve().parents[2]


def test_compare_leaves_table_pictures_and_figures(
    small_networks: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "folder"
    assert run(["compare", "--epochs", "1", "--seeds", "0", "1", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    for name, method in SHOWN.items():
        assert method.label in shown, name
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((out / "results.json").read_text())["settings"]["epochs"] == 1


def test_compare_ends_well_in_a_process_of_its_own(tmp_path: Path) -> None:
    options = ["--methods", "sgd", "--epochs", "1", "--seeds", "0", "--out", str(tmp_path)]
    command = [sys.executable, "-m", "experiments", "compare", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stderr
    assert SHOWN["sgd"].label in done.stdout


def test_the_package_is_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delitem(sys.modules, "experiments.__main__")
    monkeypatch.setattr("sys.argv", ["experiments", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("experiments", run_name="__main__")
    assert ended.value.code == 0
    assert "usage: python -m experiments [-h] command" in capsys.readouterr().out


def test_options_reach_the_runs(small_networks: None, tmp_path: Path) -> None:
    options = ["--methods", "paper", "sgd", "--lr", "paper=0.5", "--weight-decay", "paper=0.25"]
    rest = ["--dataset", "digits-tuning", "--seeds", "7", "--epochs", "1", "--backend", "reference"]
    assert run(["compare", *options, *rest, "--threads", "1", "--out", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "results.json").read_text())
    paper, sgd = content["summary"]
    assert (paper["method"], paper["lr"], paper["weight_decay"]) == ("paper", 0.5, 0.25)
    assert (sgd["method"], sgd["lr"], sgd["weight_decay"]) == ("sgd", SHOWN["sgd"].lr, SHOWN["sgd"].weight_decay)
    assert content["settings"] | {"dataset": "digits-tuning", "backend": "reference"} == content["settings"]
    assert (content["settings"]["seeds"], content["settings"]["threads"]) == ([7], 1)


INVALID = [
    ("--methods adam", "argument --methods: invalid choice: 'adam'"),
    ("--methods paper+product+plain-head", "argument --methods: invalid choice: 'paper+product+plain-head'"),
    ("--preset mnist", "argument --preset: invalid choice: 'mnist'"),
    ("--device no", "argument --device: "),
    ("--seeds -1", "argument --seeds: "),
    ("--seeds 0 1 0", "argument --seeds: got 0 twice, want different ones"),
    ("--epochs 0", "argument --epochs: got '0', want an integer from 1 on"),
    ("--threads two", "argument --threads: got 'two', want an integer from 1 on"),
]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        *((f"{command} {arguments}", message) for command in ("compare", "search") for arguments, message in INVALID),
        ("compare --lr adam=0.1", "argument --lr: got 'adam=0.1', want METHOD=VALUE"),
        ("compare --lr sgd", "argument --lr: got 'sgd', want METHOD=VALUE"),
        ("compare --lr sgd=fast", "argument --lr: got 'sgd=fast', want METHOD=VALUE"),
        ("compare --lr sgd=nan", "argument --lr: got 'sgd=nan', want METHOD=VALUE"),
        ("compare --weight-decay sgd=-1", "argument --weight-decay: got 'sgd=-1', want METHOD=VALUE"),
        ("compare --methods sgd --lr paper=1", "argument --lr: got paper, which is not among --methods sgd"),
        ("compare --dataset mnist", "argument --dataset: invalid choice: 'mnist'"),
        ("compare --backend cuda", "argument --backend: invalid choice: 'cuda'"),
        ("compare --preset resnet --dataset digits", "--dataset: got digits for resnet, want noisy-digits"),
        ("compare --vary depth", "argument --vary: invalid choice: 'depth'"),
        ("compare --preset paper-cifar100 --root no", "argument --root: no/cifar-100-python.tar.gz is missing"),
        ("search --dataset digits", "unrecognized arguments: --dataset digits"),
        ("search --sampler grid", "argument --sampler: invalid choice: 'grid'"),
        ("search --trials 0", "argument --trials: got '0', want an integer from 1 on"),
        ("search --workers 0", "argument --workers: got '0', want an integer from 1 on"),
    ],
)
def test_wrong_arguments_are_named(line: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run([*line.split(), "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


class Stopped(Exception):
    pass


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[Settings, dict[str, Tuned]]]:
    """What the command line would compare."""
    taken: list[tuple[Settings, dict[str, Tuned]]] = []

    def take(settings: Settings, methods: dict[str, Tuned], *_: Any, **__: Any) -> None:
        taken.append((settings, methods))
        raise Stopped

    def choose(*arguments: str) -> tuple[Settings, dict[str, Tuned]]:
        with pytest.raises(Stopped):
            run(["compare", *arguments, "--out", str(tmp_path / "out")])
        return taken.pop()

    monkeypatch.setattr("experiments.cli.compare", take)
    return choose


def test_all_but_the_variations_is_the_presets_unless_it_is_given(chosen: Callable[..., Any]) -> None:
    for name, preset in PRESETS.items():
        assert chosen("--preset", name) == (preset.settings, preset.methods)
    settings, methods = chosen("--preset", "resnet", "--vary", "width", "init", "--epochs", "7", "--methods", "paper")
    variations = ("tuned", "init", "width x 0.5", "width x 2")
    assert settings == dataclasses.replace(PRESETS["resnet"].settings, epochs=7, variations=variations)
    assert methods == {"paper": PRESETS["resnet"].methods["paper"]}


@pytest.mark.parametrize(
    "rates", [[], ["--lr", "lars=0.1"], ["--weight-decay", "lars=0.1"], ["--lr", "sgd=0.1", "--weight-decay", "sgd=0"]]
)
def test_a_method_without_rates_is_refused(
    rates: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        methods = ["--preset", "paper-cifar10", "--methods", "sgd", "lars"]
        run(["compare", *methods, *rates, "--out", str(tmp_path / "out")])
    message = (
        "argument --methods: got lars, for which the preset paper-cifar10 has no tuned values: want --settings of a "
        "search, or --lr lars=VALUE and --weight-decay lars=VALUE"
    )
    assert message in capsys.readouterr().err


def test_a_method_without_rates_is_taken_with_those_given(chosen: Callable[..., Any]) -> None:
    rates = ["--lr", "lars=0", "--weight-decay", "lars=0.25", "--weight-decay", "sgd=0"]
    _, methods = chosen("--preset", "paper-cifar10", "--methods", "lars", "sgd", *rates)
    assert methods == {
        "lars": METHODS["lars"].tuned(0, 0.25, "command line"),
        "sgd": METHODS["sgd"].tuned(0.1, 0, "command line"),
    }


def test_a_method_that_is_named_twice_is_compared_once(chosen: Callable[..., Any]) -> None:
    _, methods = chosen("--methods", "sgd", "paper", "sgd")
    assert list(methods) == ["sgd", "paper"]


@pytest.mark.parametrize("command", [["compare"], ["search"], ["report", "results.json"]])
def test_a_file_in_the_place_of_the_folder_is_named(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(SystemExit):
            run([*command, "--out", str(out)])
        assert f"argument --out: got {out}, but {tmp_path / 'file'} is a file" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["compare", "search"])
def test_muon_says_which_torch_it_needs(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr("torch.optim.Muon", raising=False)
    with pytest.raises(SystemExit):
        run([command, "--methods", "sgd", "muon"])
    assert "argument --methods: muon needs torch 2.9 or newer, this is " in capsys.readouterr().err


def test_a_backend_that_cannot_run_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("backend: no")

    monkeypatch.setattr("experiments.cli.ScaleAmendedSGD", refuse)
    with pytest.raises(SystemExit):
        run(["compare", "--backend", "native"])
    assert "argument --backend: backend: no" in capsys.readouterr().err


@pytest.mark.parametrize("library", ["matplotlib", "numpy", "optuna", "pytorch_optimizer", "rich", "scipy", "sklearn"])
def test_a_missing_extra_is_named_in_one_line(
    library: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in list(sys.modules):
        if name.startswith("experiments."):
            monkeypatch.delitem(sys.modules, name)
            if name.count(".") == 1:  # a package that goes takes its own along
                monkeypatch.delattr(name)  # which the import sets anew
        elif name.partition(".")[0] == library:
            monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("experiments", run_name="__main__")
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(library)
    assert line.endswith(' is missing: pip install -e ".[experiments]"')
