"""Each recipe of docs/frameworks.md runs as it stands there, and trains."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from sasgd_fused import ScaleAmendedSGD, parameter_groups
from tests.frameworks.recipes import SHARED, read_recipes
from tests.helpers import cpu_only

pytestmark = [
    pytest.mark.nightly,
    cpu_only("the recipes' data lie there"),
    # Of Ignite, fastai and MMEngine, when they are imported.
    pytest.mark.filterwarnings(r"ignore:`torch\.jit\.\w+` is deprecated:DeprecationWarning"),
    # fastai's, of pandas.
    pytest.mark.filterwarnings("ignore:The 'mode.chained_assignment' option is deprecated"),
    # Lightning's, from torch and of the small data.
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The .* does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    # transformers', where there is no GPU.
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning"),
]

RECIPES = read_recipes()
PLAIN = "A plain loop with mixed precision"
TRAIN = [
    PLAIN,
    "Lightning",
    "accelerate",
    "transformers",
    "timm",
    "Ignite",
    "skorch",
    "fastai",
    "MMEngine",
]
LOG = ["TensorBoard", "Weights & Biases"]
MAKE = ["Hydra", "The relative scale"]

Run = Callable[[str], tuple[dict[str, Any], ScaleAmendedSGD]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a recipe after the lines that all share; returns what it has set, and the optimizer that it has made."""
    monkeypatch.chdir(tmp_path)
    made: list[ScaleAmendedSGD] = []
    make = ScaleAmendedSGD.__init__

    def make_and_keep(self: ScaleAmendedSGD, *args: Any, **options: Any) -> None:
        make(self, *args, **options)
        made.append(self)

    monkeypatch.setattr(ScaleAmendedSGD, "__init__", make_and_keep)

    def run(title: str) -> tuple[dict[str, Any], ScaleAmendedSGD]:
        torch.manual_seed(0)
        names: dict[str, Any] = {}
        exec(RECIPES[SHARED], names)
        names["data"] = names["images"], names["labels"]
        made.clear()
        try:
            exec(RECIPES[title], names)
        except ModuleNotFoundError as error:
            if title == PLAIN or (error.name or "").startswith("sasgd_fused"):
                raise
            pytest.skip(f"{error.name} is not installed")
        return names, made[-1]

    return run


def test_every_recipe_is_run() -> None:
    assert sorted(RECIPES) == sorted([SHARED, *TRAIN, *LOG, *MAKE])


@pytest.mark.parametrize("title", TRAIN)
def test_it_trains_layers_that_are_known_by_name(title: str, run: Run) -> None:
    """A network that knows nothing has a loss of log 4 = 1.386, and one that knows half of each label's bits log 2."""
    names, optimizer = run(title)
    model = names.get("vit", names["model"]).eval()
    images, labels = names["data"]
    with torch.no_grad():
        output = model(images)
    assert cross_entropy(getattr(output, "logits", output), labels) < math.log(2)
    rows = {row.name.removeprefix("network."): row for row in optimizer.layer_report()}
    assert set(rows) <= {name for name, _ in model.named_parameters()}
    assert all(row.gradient_norm is not None for row in rows.values())


@pytest.mark.parametrize("title", MAKE)
def test_it_makes_the_optimizer(title: str, run: Run) -> None:
    names, optimizer = run(title)
    assert names["optimizer"] is optimizer
    other = ScaleAmendedSGD(parameter_groups(names["model"]), **names["OPTIONS"])
    assert optimizer.defaults == other.defaults
    assert repr(optimizer) == repr(other)


def test_tensorboard_has_all_scalars_of_each_step(run: Run) -> None:
    names, optimizer = run("TensorBoard")
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = events.EventAccumulator("runs/tensorboard").Reload()
    scalars = optimizer.layer_report().scalars()
    assert set(log.Tags()["scalars"]) == set(scalars)
    for name, value in scalars.items():
        logged = log.Scalars(name)
        assert [event.step for event in logged] == list(range(len(names["loader"])))
        assert logged[-1].value == pytest.approx(value, rel=1e-6)


def test_wandb_has_all_scalars(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the file of an offline run, each by its name."""
    monkeypatch.setenv("WANDB_SILENT", "true")
    names, optimizer = run("Weights & Biases")
    names["wandb"].teardown()  # waits for the process that writes
    (file,) = Path("wandb").glob("offline-run-*/*.wandb")
    written = file.read_bytes()
    for name in ("loss", *optimizer.layer_report().scalars()):
        assert written.count(name.encode()) >= 8, name
