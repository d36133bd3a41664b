"""The command that times the kernels alone has a row for each variant."""

from __future__ import annotations

from typing import Any

import pytest

from bench.kernels import KINDS, main
from tests.helpers import cpu_only

pytestmark = cpu_only("its kernels")


@pytest.mark.usefixtures("set_num_threads")
def test_every_variant_has_a_row(core: Any, capsys: pytest.CaptureFixture[str]) -> None:
    sets = core.instruction_sets()
    few = ["--networks", "64x64", "--rounds", "2", "--seconds", "0", "--distances", "0", "64"]
    main([*few, "--kinds", *KINDS, "--instruction-sets", *sets])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| 64x64")]
    assert [row[1:4] for row in rows] == [[kind, name, far] for kind in KINDS for name in sets for far in ("0", "64")]
    with pytest.raises(SystemExit):
        main([*few, "--distances", "0"])
    assert all(float(row[4]) > 0 for row in rows)
