"""Vector code and plain code of the strips; elements in memory."""

import subprocess
import sys

import naive
import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from edge_monitor.kernels import strips
from edge_monitor.kernels._jit import kernel
from edge_monitor.kernels.lanes import FULL, LANES, POSITIVE, SIGNAL
from edge_monitor.kernels.memory import FLOAT16, FLOAT32, INT8, UINT8, element, half, item_size

INTERPRETED = numba.config.DISABLE_JIT
EXAMPLES = 10 if INTERPRETED else 200
DTYPES = {FLOAT32: np.float32, FLOAT16: np.float16, INT8: np.int8, UINT8: np.uint8}

compiled = pytest.mark.skipif(INTERPRETED, reason="there is no vector code without a compiler")
plain = kernel("void(" + 7 * "int64, " + "int64[::1], float64[:, ::1], float64[::1])")(strips.run_elements)


@st.composite
def programs(draw, most_folds):
    """Strips as no layout needs them, each with folds that share lanes or leave some out."""
    integers, n_strips, end = [], draw(st.integers(1, 3)), 0
    for _ in range(n_strips):
        period = draw(st.integers(1, LANES))
        rows = LANES // period
        filled, tail = period * draw(st.integers(1, rows)), period * draw(st.integers(0, rows))
        n_outer, n_inner = draw(st.integers(1, 5)), draw(st.integers(0 if tail else 1, 9))
        start, outer, inner = (draw(st.integers(0, 40)) for _ in range(3))
        folds = draw(
            st.lists(
                st.tuples(st.integers(0, 3), st.integers(0, period), st.integers(0, period)),
                max_size=most_folds,
            )
        )
        by_lane = draw(st.integers(0, 1))
        strip = (
            start,
            n_outer,
            outer,
            n_inner,
            inner,
            filled,
            tail,
            period,
            draw(st.integers(0, 4)),
            by_lane,
        )
        integers += [*strip, len(folds), *(number for fold in folds for number in fold)]
        last = start + (n_outer - 1) * outer + n_inner * inner
        end = max(end, last - inner + filled if n_inner else 0, last + tail if tail else 0)
    return np.array(integers), n_strips, end


def draw_elements(rng, kind, n, sign):
    if kind in (INT8, UINT8):
        limits = np.iinfo(DTYPES[kind])
        return rng.integers(limits.min, limits.max + 1, n).astype(DTYPES[kind])
    a = rng.standard_normal(n)
    return (np.abs(a) if sign else a).astype(DTYPES[kind])


def run(function, kind, elements, zero_point, variant, program, n_strips):
    voxels, channels = np.zeros((4, 3)), np.zeros(24)
    address, end = elements.ctypes.data, elements.ctypes.data + elements.nbytes
    last = end - LANES * elements.itemsize
    function(kind, address, last, zero_point, variant, 0, n_strips, program, voxels, channels)
    return voxels, channels


def expected(elements, zero_point, program, n_strips):
    voxels, channels = np.zeros((4, 3)), np.zeros(24)
    for index, channel, into in naive.walk(program, n_strips):
        a = float(elements[index]) - zero_point
        channels[channel] += abs(a)
        for voxel in into:
            voxels[voxel] += abs(a), a, a * a
    return voxels, channels


@given(
    data=st.data(),
    kind=st.sampled_from(sorted(DTYPES)),
    variant=st.sampled_from((SIGNAL, POSITIVE, FULL)),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=EXAMPLES, deadline=None)
def test_any_program(data, kind, variant, seed):
    program, n_strips, end = data.draw(programs(0 if variant == SIGNAL else 3))
    rng = np.random.default_rng(seed)
    floats = kind in (FLOAT32, FLOAT16)
    if variant == POSITIVE and not floats:
        variant = FULL
    elements = draw_elements(rng, kind, end, variant == POSITIVE)
    zero_point = 0 if floats else int(rng.choice(elements))
    want_voxels, want_channels = expected(elements, zero_point, program, n_strips)
    bound = 2e-6 if floats else 0
    for function in (strips.run_strips, plain):
        voxels, channels = run(function, kind, elements, zero_point, variant, program, n_strips)
        assert (np.abs(channels - want_channels) <= bound * want_channels).all()
        scale = np.maximum(want_voxels, want_voxels[:, :1])
        assert (np.abs(voxels - want_voxels) <= bound * scale).all()


@compiled
@pytest.mark.parametrize("value", [-1.0, -0.0, np.nan, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_sign_shows_wherever_it_is(dtype, value):
    """What is taken for a ReLU's output and is none has no sum |a|."""
    kind = FLOAT32 if dtype == np.float32 else FLOAT16
    program = np.array([0, 2, 37, 2, 16, 16, 5, 16, 0, 0, 1, 0, 0, 16])  # 2 x (2 x 16 + 5)
    for bad in range(74):
        elements = np.ones(74, dtype)
        elements[bad] = value
        voxels, channels = run(strips.run_strips, kind, elements, 0, POSITIVE, program, 1)
        assert np.isnan(channels[bad // 37]), bad
        assert np.isnan(voxels[0, 0]), bad


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize("end", ["min", "max"])
def test_integers_at_their_limits(dtype, end):
    """128 vectors of the largest distance in each accumulator: it fits, with nothing to spare."""
    limits = np.iinfo(dtype)
    elements = np.full(256 * 16, getattr(limits, end), dtype)
    zero_point = limits.max if end == "min" else limits.min
    kind = INT8 if dtype == np.int8 else UINT8
    program = np.array([0, 1, 0, 256, 16, 16, 0, 16, 0, 1, 1, 0, 0, 16])
    voxels, channels = run(strips.run_strips, kind, elements, zero_point, FULL, program, 1)
    d = 255 if end == "max" else -255
    assert_array_equal(voxels[0], [4096 * 255, 4096 * d, 4096 * d * d])
    assert_array_equal(channels[:16], 256 * 255)


BEHIND = """
import ctypes, mmap, sys
import numpy as np
from edge_monitor.kernels import strips
from edge_monitor.kernels.lanes import FULL
libc = ctypes.CDLL(None, use_errno=True)
region = mmap.mmap(-1, 2 * mmap.PAGESIZE)
start = ctypes.addressof(ctypes.c_char.from_buffer(region))
memory = np.frombuffer(region, np.uint8)
memory[: mmap.PAGESIZE] = 1
assert libc.mprotect(ctypes.c_void_p(start + mmap.PAGESIZE), mmap.PAGESIZE, 0) == 0
end = start + mmap.PAGESIZE
for kind, size in enumerate((4, 2, 1, 1)):
    for filled in range(1, 17):
        for tail in range(filled + 1):
            n = 3 * filled + tail
            program = np.array([0, 1, 0, 3, filled, filled, tail, max(filled, tail), 0, 1, 0])
            voxels, channels = np.zeros((1, 3)), np.zeros(16)
            strips.run_strips(
                kind, end - n * size, end - 16 * size, 0, FULL, 0, 1, program, voxels, channels
            )
            if size == 1:
                assert channels.sum() == n, (kind, filled, tail, channels)
print("nothing behind the end was read")
"""


@compiled
@pytest.mark.skipif(sys.platform != "linux", reason="needs mprotect")
def test_reads_nothing_behind_the_end():
    done = subprocess.run([sys.executable, "-c", BEHIND], capture_output=True, text=True, check=False)
    assert done.stdout == "nothing behind the end was read\n", (done.returncode, done.stderr)


def test_half_equals_definition():
    bits = range(0, 2**16, 37 if INTERPRETED else 1)
    assert_array_equal([half(b) for b in bits], [naive.half(b) for b in bits])


@compiled
def test_vector_code_widens_every_half():
    """All float16 with a sign of plus, Inf and NaN among them, one lane each."""
    elements = np.arange(2**15, dtype=np.uint16).view(np.float16)
    program = np.array([[16 * i, 1, 0, 1, 16, 16, 0, 16, 16 * i, 1, 0] for i in range(2**11)]).ravel()
    channels = np.zeros(2**15)
    address = elements.ctypes.data
    last = address + elements.nbytes - 32
    strips.run_strips(FLOAT16, address, last, 0, SIGNAL, 0, 2**11, program, np.zeros((1, 3)), channels)
    with np.errstate(invalid="ignore"):  # NumPy warns of a signalling NaN on ARM
        assert_array_equal(channels, elements.astype(np.float64))


@pytest.mark.parametrize("kind", sorted(DTYPES))
def test_element(kind):
    elements = draw_elements(np.random.default_rng(0), kind, 9, sign=False)
    size = item_size(kind)
    assert size == elements.itemsize
    got = [element(kind, elements.ctypes.data + size * i) for i in range(9)]
    assert_allclose(got, elements.astype(np.float64), rtol=0)
