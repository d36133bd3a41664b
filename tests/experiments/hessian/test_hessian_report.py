"""The command `hessian` and the report that it leaves."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from experiments.cli import run
from experiments.hessian.report import SECTIONS, Sizes, write_hessian_report

PICTURES = ("spectra", "steps", "depth", "residual", "inputs", "distances")
SMALL = Sizes(
    outputs=20,
    widths=(5, 10),
    units=8,
    depth={"units": 8, "depth": 2, "seeds": range(1)},
    residual={"samples": 1, "steps": 1, "units": 8, "blocks": 2},
    training={"units": 8, "blocks": 2, "steps": 2, "rates": (0.01, 0.1), "seeds": range(1)},
    rates={"rates": (0.1,), "seeds": range(1), "epochs": 1},
    kinds=("Gaussian", "orthogonal", "identity skip"),
    networks=("concatenating MLP, 10 layers",),
    amended=("concatenating MLP, 10 layers",),
)


def small_report(folder: Path) -> Path:
    return write_hessian_report(folder, SMALL, say=lambda _: None)


def test_the_command_leaves_a_report_with_its_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for title in ("Backward factors", "The reports of a ResNet"):  # take seconds
        monkeypatch.delitem(SECTIONS, title)
    monkeypatch.setattr("experiments.hessian.commands.write_hessian_report", small_report)
    out = tmp_path / "new" / "folder"
    assert run(["hessian", "--out", str(out)]) == 0
    report = out / "local-hessian.md"
    assert capsys.readouterr().out == f"report: {report}\n"
    text = report.read_text(encoding="utf-8")
    assert re.findall(r"\]\((.*)\)", text) == [f"local-hessian-{name}.png" for name in PICTURES]
    assert sorted(path.name for path in out.glob("*.png")) == sorted(f"local-hessian-{name}.png" for name in PICTURES)
    assert len(re.findall("^## [1-7]", text, re.MULTILINE)) == 7
    assert "nan" not in text.replace("± nan", "")


@pytest.mark.nightly
def test_the_slow_sections(tmp_path: Path) -> None:
    _, misfits, rates = SECTIONS["Backward factors"](tmp_path, SMALL)
    assert re.search(r"\n\| concatenating MLP, 10 layers \| ×[\d.]+ \([\d.e+]+\) \|", misfits)
    assert re.findall("10 layers: (.*?) ", rates) == ["width", "graph", "measured"]
    _, conditions, shares = SECTIONS["The reports of a ResNet"](tmp_path, SMALL)
    assert conditions.count("one step makes the match worse") >= 6
    assert shares.count(".weight") == 16


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        run(["hessian", "--out", str(tmp_path / "file")])
    assert "argument --out: got" in capsys.readouterr().err
