"""How much memory is free on this machine, for this process."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

_SHARE_OF_ALL = 0.7
"""Where the system does not tell what is free: so much of what there is."""


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes that could be taken now; `None` where nobody tells."""
    if sys.platform == "linux":
        found = [one for one in (_available(root), _group(root)) if one is not None]
        return min(found, default=None)
    with suppress(AttributeError, OSError, ValueError):
        return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * _SHARE_OF_ALL)
    return None


def _available(root: Path) -> int | None:
    with suppress(OSError, ValueError):
        for line in (root / "proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _group(root: Path) -> int | None:
    """What is left of a container's share, the tightest of those that it is in."""
    with suppress(OSError, ValueError):
        told = (root / "proc/self/cgroup").read_text(encoding="utf-8")
        top = root / "sys/fs/cgroup"
        group = top / told.rpartition("0::/")[2].strip()
        left = [_left(one) for one in (group, *group.parents) if one.is_relative_to(top)]
        return min((one for one in left if one is not None), default=None)
    return None


def _left(group: Path) -> int | None:
    with suppress(OSError, ValueError):
        most = int((group / "memory.max").read_text(encoding="ascii"))
        used = int((group / "memory.current").read_text(encoding="ascii"))
        # What is only held of files is given back.
        for line in (group / "memory.stat").read_text(encoding="ascii").splitlines():
            if line.startswith(("inactive_file ", "active_file ")):
                used -= int(line.split()[1])
        return max(0, most - used)
    return None
