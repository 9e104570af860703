"""The compile policy: what Numba's cache does not break."""

import errno

import numba
import pytest
from numba.core import caching

from edge_monitor.kernels._jit import kernel

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
