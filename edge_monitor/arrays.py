"""The check of an array that goes into a kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_monitor.errors import InputError

FLOAT, BOOL = np.dtype(np.float64), np.dtype(np.bool_)


def require_array(name: str, array: NDArray[Any], shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Refuse an array that a kernel's signature would not accept, or read beyond its end.

    Raises
    ------
    InputError
        Another shape or type; strided or read-only.
    """
    if array.shape != shape or array.dtype != dtype or not array.flags.carray:
        kind = f"{array.dtype}{array.shape}" + ("" if array.flags.carray else ", strided or read-only")
        raise InputError(name, f"{kind}, expected {dtype}{shape}, contiguous and writeable")
