"""The one compile policy of every kernel.

Kernels are compiled eagerly for one explicit signature, so importing a kernel warms it: no frame
ever waits for the compiler, and an array of another dtype or layout is refused instead of silently
compiled for. Floating point is strict: ``fastmath`` would let the compiler delete NaN checks
(``test_layout.py::test_no_kernel_uses_fastmath``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import numba
import numpy as np
from llvmlite import binding

P = ParamSpec("P")
R = TypeVar("R")


def digest(folder: Path) -> str:
    """Digest of all kernels of a folder."""
    sources = sorted(folder.glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]


_VERSION = digest(Path(__file__).parent)


def kernel(signature: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Compile a function for one signature: no GIL, IEEE arithmetic, cached on disk when possible."""

    def compile_now(function: Callable[P, R]) -> Callable[P, R]:
        def compiled(*, cache: bool) -> Callable[P, R]:
            jit = numba.njit(signature, nogil=True, cache=cache, error_model="numpy")
            # Numba's cache sees changes of a kernel's own file alone, and would go on with machine code of
            # kernels that it calls (test_jit.py::test_a_change_of_any_kernel_compiles_all_anew): the cache's
            # file has the function's name.
            name = function.__qualname__
            function.__qualname__ = f"{name}-{_VERSION}"
            try:
                dispatcher = jit(function)
            finally:
                function.__qualname__ = name
            if dispatcher.stats.cache_hits:
                for overload in dispatcher.overloads.values():
                    pack_bitcode(overload.library)  # type: ignore[attr-defined]
            return cast("Callable[P, R]", dispatcher)

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


PLAIN: set[Callable[..., Any]] = set()
"""Kernels that were to be vector code, but had to be compiled from plain code."""


def vector_kernel(signature: str, plain: Callable[P, R]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Compile vector code; ``plain`` in its place where there is no compiler, or it refuses.

    test_jit.py::test_plain_code_where_vector_code_cannot_be_built
    """

    def compile_now(function: Callable[P, R]) -> Callable[P, R]:
        if not numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
            try:
                return kernel(signature)(function)
            except Exception:  # noqa: BLE001, S110
                # Whatever this Numba or LLVM cannot do, plain code can.
                pass
        compiled = kernel(signature)(plain)
        PLAIN.add(compiled)
        return compiled

    return compile_now


def pack_bitcode(library: Any) -> None:  # noqa: ANN401 - Numba's `CPUCodeLibrary`
    """Keep the bitcode of a kernel from the cache as it is in the file.

    Numba parses it, for callers that are yet to be compiled, and so takes ten times its size: 20 MiB for all
    kernels. When there is such a caller it is parsed again. A Numba that does this otherwise is left alone.
    """
    parsed = getattr(library, "_shared_module", None)
    if parsed is not None:
        bitcode = parsed.as_bitcode()
        library._shared_module = None  # noqa: SLF001
        library._get_module_for_linking = lambda: binding.parse_bitcode(bitcode)  # noqa: SLF001
