"""The experiments, which need libraries that the package does not."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from experiments.__main__ import EXTRA

if missing := [name for name in EXTRA if find_spec(name) is None]:
    pytest.skip(f"the experiments need {', '.join(missing)}", allow_module_level=True)
