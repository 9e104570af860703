"""tools/soak_probe: a short soak of each runtime, and what it makes of Valgrind's log."""

import runpy
import sys
from pathlib import Path

import numba
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))

import _soak_child as soak

from edge_monitor.kernels.tap_moments import tap_moments

PROGRAM = runpy.run_path(str(Path(soak.__file__).with_name("soak_probe")), run_name="soak_probe")

LOG = """\
==7== Memcheck, a memory error detector
==7==
==7== Invalid read of size 4
==7==    at 0x4C2A1B0: ???
==7==    by 0x51F2B6C: _PyEval_EvalFrameDefault (in /usr/bin/python3)
==7==  Address 0x1ffe is 2 bytes after a block of size 64 alloc'd
==7==    at 0x4846828: malloc (in /usr/libexec/vgpreload_memcheck.so)
==7==
==7== Conditional jump or move depends on uninitialised value(s)
==7==    at 0x9C2A1B0: ??? (in /site/onnxruntime.so)
==7==
==7== ERROR SUMMARY: 2 errors
"""


@pytest.mark.parametrize("runtime", ["onnx", "litert"])
def test_a_short_soak(runtime):
    one = soak.Soak(runtime, seed=1)
    memory = one.run(1500)
    assert one.served >= 1500
    assert len(memory) >= 100  # the last burst ends behind the last frame
    assert one.done["serve"] > 1
    assert not one.alive


@pytest.mark.parametrize("event", ["batch", "allocate", "threads", "serve"])
@pytest.mark.parametrize("runtime", ["onnx", "litert"])
def test_every_event(runtime, event):
    one = soak.Soak(runtime, seed=2)
    one.open()
    one.open()
    getattr(one, event)()
    one.close()
    assert len(one.alive) == 1


def test_a_row_of_another_frame_is_found():
    one = soak.Soak("onnx", seed=0)
    one.open()
    kind = one.alive[0].kind
    kind.signals = kind.signals[::-1]
    with pytest.raises(AssertionError):
        one.serve()


def test_another_answer_is_found():
    one = soak.Soak("onnx", seed=0)
    one.open()
    kind = one.alive[0].kind
    kind.answers = [[answer + np.float32(1e-6) for answer in answers] for answers in kind.answers]
    with pytest.raises(AssertionError):
        one.serve()


def test_a_row_that_is_missing_is_found():
    one = soak.Soak("litert", seed=0)
    one.open()
    one.alive[0].calls += 1
    with pytest.raises(AssertionError):
        one.serve()


def test_fixed_batches_are_refused(capsys):
    soak.check_fixed_batch()
    assert "a batch of 2: " in capsys.readouterr().out


def test_errors_with_a_kernel_in_their_stack_are_ours():
    read, jump = PROGRAM["find_errors"](LOG)
    assert (read.title, read.functions[0]) == ("Invalid read of size 4", "???")
    assert read.addresses[0] == 0x4C2A1B0
    assert jump == (
        "Conditional jump or move depends on uninitialised value(s)",
        (0x9C2A1B0,),
        ("??? (in /site/onnxruntime.so)",),
    )
    page, other = [0x4C2A000, 0x4C2B000], [0x4C2A000, 0x4C2A1B0]
    assert [PROGRAM["is_in"]([page, other], error) for error in (read, jump)] == [True, False]
    assert not PROGRAM["is_in"]([other], read)  # code of no file, and none of ours


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="kernels run as Python")
def test_the_code_of_every_kernel_is_known():
    entry = tap_moments.overloads[tap_moments.signatures[0]]
    address = entry.library.get_pointer_to_function(entry.fndesc.llvm_func_name)
    code = soak.kernel_code()
    assert any(start <= address < end for start, end in code)
    assert not any(start <= id(address) < end for start, end in code)
