"""The compile policy: what Numba's cache does not break."""

import errno
import importlib
import shutil
import sys

import numba
import numpy as np
import pytest
from numba.core import caching
from numba.extending import intrinsic
from numpy.testing import assert_array_equal

from edge_monitor.kernels import _jit, cache, product, strips
from edge_monitor.kernels._jit import PLAIN, kernel, vector_kernel
from edge_monitor.kernels.lanes import FULL
from edge_monitor.kernels.memory import INT8

pytestmark = pytest.mark.skipif(numba.config.DISABLE_JIT, reason="kernels run as Python")


def twice(x):
    return x + x


def torn(folder, patch):
    """A power cut leaves files without content."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    for path in files:
        path.write_bytes(b"")


def full(folder, patch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    patch.setattr(caching.IndexDataCacheFile, "save", refuse)
    patch.setattr(caching.IndexDataCacheFile, "load", lambda *_: None)


def nowhere(folder, patch):
    patch.setattr(caching.CacheImpl, "_locator_classes", [])


@pytest.mark.parametrize("damage", [torn, full, nowhere])
def test_a_useless_cache_keeps_no_kernel_from_compiling(tmp_path, monkeypatch, damage):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    assert kernel("float64(float64)")(twice)(1.5) == 3.0
    damage(tmp_path, monkeypatch)
    assert kernel("float64(float64)")(twice)(1.5) == 3.0


def test_a_kernel_that_cannot_be_compiled_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    with pytest.raises(numba.TypingError):
        kernel("float64(float64[::1], unicode_type)")(lambda x, y: x + y)


def test_a_change_of_any_kernel_compiles_all_anew(tmp_path, monkeypatch):
    """The machine code of a kernel holds that of the kernels it calls."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    shutil.copy(_jit.__file__, package)
    (package / "called.py").write_text(
        'from ._jit import kernel\n\n\n@kernel("float64()")\ndef called():\n    return 1.0\n'
    )
    (package / "caller.py").write_text(
        "from ._jit import kernel\nfrom .called import called\n\n\n"
        '@kernel("float64()")\ndef caller():\n    return called()\n'
    )
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path)

    def answer():
        for name in [name for name in sys.modules if name.split(".")[0] == "package"]:
            del sys.modules[name]
        importlib.invalidate_caches()
        return importlib.import_module("package.caller").caller()

    assert answer() == 1.0
    called = package / "called.py"
    called.write_text(called.read_text().replace("1.0", "22.0"))
    assert answer() == 22.0
    n_files = len(list((tmp_path / "cache").rglob("*.nbi")))
    assert answer() == 22.0
    assert len(list((tmp_path / "cache").rglob("*.nbi"))) == n_files  # from the cache this time


def test_bitcode_of_a_kernel_from_the_cache_is_parsed_when_it_is_called_for(tmp_path, monkeypatch):
    """Parsed all the time, it would be most of the memory that kernels take."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    kernel("float64(float64)")(twice)
    cached = kernel("float64(float64)")(twice)
    assert sum(cached.stats.cache_hits.values()) == 1
    assert [overload.library._shared_module for overload in cached.overloads.values()] == [None]

    def caller(x):
        return cached(x) + 1.0

    assert numba.njit("float64(float64)")(caller)(1.5) == 4.0
    assert numba.njit("float64(float64)")(lambda x: cached(x) + 2.0)(1.5) == 5.0  # and once more
    assert cached(1.5) == 3.0


def integers_summed(run_strips):
    """Integers: floats are summed in another order, see test_vector.py::test_any_program."""
    elements = np.random.default_rng(0).integers(-128, 128, 600).astype(np.int8)
    program = np.array([5, 2, 200, 3, 24, 12, 6, 6, 0, 1, 2, 0, 0, 6, 1, 2, 4])
    voxels, channels = np.zeros((2, 3)), np.zeros(6)
    address = elements.ctypes.data
    run_strips(INT8, address, address + elements.nbytes - 16, 7, FULL, 0, 1, program, voxels, channels)
    return np.append(voxels, channels)


def columns_summed(multiply):
    rng = np.random.default_rng(0)
    vector, matrix = (rng.normal(size=n).astype(np.float32) for n in (37, 38 * 45))
    out = np.zeros(45, np.float32)
    multiply(vector, matrix, True, out)
    return out


def array_fetched(fetch_row):
    array = np.arange(40.0)
    fetch_row(array, 3, 30)
    return array


@pytest.mark.parametrize(
    ("module", "name", "code", "plain", "numbers"),
    [
        (strips, "run_strips", "run_vector_code", "run_elements", integers_summed),
        (product, "product", "add_lanes", "in_columns", columns_summed),
        (cache, "fetch_row", "fetch", "fetch_nothing", array_fetched),
    ],
)
def test_plain_code_where_vector_code_cannot_be_built(
    tmp_path, monkeypatch, module, name, code, plain, numbers
):
    def refuse(*_):
        raise NotImplementedError("no such vectors")

    built = getattr(module, name)
    assert built not in PLAIN
    monkeypatch.setattr(_jit, "PLAIN", set())
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(module, code, intrinsic(refuse))
    (signature,) = built.nopython_signatures
    instead = vector_kernel(signature, plain=getattr(module, plain))(built.py_func)
    assert instead.py_func is getattr(module, plain)
    assert {instead} == _jit.PLAIN
    assert_array_equal(numbers(instead), numbers(built))
    assert numbers(built).any()
