"""The one compile policy of every kernel.

Kernels are compiled eagerly for one explicit signature, so importing a kernel warms it: no frame
ever waits for the compiler, and an array of another dtype or layout is refused instead of silently
compiled for. Floating point is strict: ``fastmath`` would let the compiler delete NaN checks
(``test_layout.py::test_no_kernel_uses_fastmath``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import numba
import numpy as np

P = ParamSpec("P")
R = TypeVar("R")


def kernel(signature: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Compile a function for one signature: no GIL, IEEE arithmetic, cached on disk when possible."""

    def compile_now(function: Callable[P, R]) -> Callable[P, R]:
        def compiled(*, cache: bool) -> Callable[P, R]:
            jit = numba.njit(signature, nogil=True, cache=cache, error_model="numpy")
            return cast("Callable[P, R]", jit(function))

        if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
            # NumPy's scalars warn where machine code is silent: wrapping integers, Inf - Inf.
            return np.errstate(all="ignore")(function)
        try:
            return compiled(cache=True)
        except Exception:  # noqa: BLE001
            # A cache that has no place, a full disk or files torn by a power cut must not keep the monitor
            # from starting (test_jit.py). What is wrong with the kernel itself is raised again here.
            return compiled(cache=False)

    return compile_now
