"""Keeps Open MPI from ending a rank whose launcher is gone, so that the rank can write a checkpoint."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

_LOST_CONNECTION = -61  # PMIX_ERR_LOST_CONNECTION: the launcher's daemon has ended
_LIBRARY = re.compile(r"\S*/libpmix\.so\S*$")


def survive_lost_connection(maps: Path = Path("/proc/self/maps")) -> bool:
    """Ignore PMIx's event that the connection to the launcher was lost; return True if PMIx is in use.

    Open MPI's own handler, which is the last in PMIx's chain of handlers, ends the process in the next MPI call. So a
    handler before it never passes the event on. It is a function of libc that does nothing: one in Python would need
    the GIL in PMIx's thread, also while the interpreter ends.

    Args:
        maps: lists the libraries that this process has loaded.
    """
    try:
        paths = {match[0] for line in maps.read_text().splitlines() if (match := _LIBRARY.search(line))}
    except OSError:
        return False
    for path in paths:
        pmix = ctypes.CDLL(path)
        if pmix.PMIx_Initialized():
            codes = (ctypes.c_int * 1)(_LOST_CONNECTION)
            nothing = ctypes.cast(ctypes.CDLL(None).getpid, ctypes.c_void_p)
            none, size = ctypes.c_void_p(), ctypes.c_size_t
            return bool(pmix.PMIx_Register_event_handler(codes, size(1), none, size(0), nothing, none, none) >= 0)
    return False
