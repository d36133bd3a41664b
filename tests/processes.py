"""Whether a process is still there."""

from __future__ import annotations

from pathlib import Path
from time import monotonic, sleep


def has_ended(pid: int, seconds: float = 5) -> bool:
    """Waits for the end of a process, which comes a moment after its killing; a zombie has ended."""
    state = Path(f"/proc/{pid}/stat")
    end = monotonic() + seconds
    while monotonic() < end:
        try:
            if state.read_text().split()[2] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        sleep(0.05)
    return False
