"""ONNX Runtime sessions that hand taps over.

A tapped session is made from a model whose post-activation tensors were added to its outputs
(`edge_monitor.taps.onnx_graph`, which says why just those). The taps are bound to fixed buffers, as the
kernels keep them (`edge_monitor.taps.onnx_raw`), so that no frame allocates, copies or rearranges them.
Execution providers other than the CPU's hand them over as ordinary outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from edge_monitor.errors import ModelError
from edge_monitor.taps.candidates import check_taps
from edge_monitor.taps.onnx import CPU, DTYPES, FLOATS, is_readable
from edge_monitor.taps.onnx_graph import find_candidates, find_quantised, read_graph
from edge_monitor.taps.onnx_raw import Feed, Options, open_tapped, planar
from edge_monitor.taps.reducer import Reduction, TapReducer, input_spec, match_specs, tap_spec
from edge_monitor.taps.tap_table import Layout, aligned_zeros
from edge_monitor.types import BoolArray, TapSpec

SHORT = 1 << 15
"""Bytes of an input or of all answers that are copied in less time than a binding takes."""


class TappedSession:
    """Session of a model with taps; every run leaves the tapped values in the same memory.

    Parameters
    ----------
    data : bytes
        The model without taps.
    names : sequence of str
        Tensors to tap.
    feeds : sequence of mapping
        Valid feeds; runs on them show the shapes of the taps, and how they lie in memory.
    observed : str
        The input that is tap 0.
    specs : tuple of TapSpec or None
        Specifications of input and taps when a map gives them, else they are made here.
    session_options : mapping
        Keyword arguments of ``onnxruntime.InferenceSession``.

    Raises
    ------
    ModelError
        A tap does not exist, or is neither of floats nor quantised, or not of shape (1, C, H, W) or (1, N).
    MapError
        ``specs`` do not fit the model.
    """

    def __init__(
        self,
        data: bytes,
        names: Sequence[str],
        feeds: Sequence[Feed],
        observed: str,
        specs: tuple[TapSpec, ...] | None,
        session_options: Options,
    ) -> None:
        graph = read_graph(data)
        check_taps(names, find_candidates(graph))
        quantised = find_quantised(graph)
        tensors = [quantised[name].tensor if name in quantised else name for name in names]
        self.session, sources, answers = open_tapped(data, tensors, feeds, session_options)
        outputs = [output.name for output in self.session.get_outputs()]
        self._outputs = outputs[: len(outputs) - len(names)]  # the model's own come first
        for name, source in zip(names, sources, strict=True):
            if not is_readable(source.shape, source.dtype, quantised=name in quantised):
                raise ModelError(
                    name,
                    f"is {source.dtype}{source.shape}, only {' or '.join(FLOATS)} (1, C, H, W) or (1, N)",
                )
        natural = (
            input_spec(observed, feeds[0][observed].shape[1:]),
            *(tap_spec(name, source.shape[1:]) for name, source in zip(names, sources, strict=True)),
        )
        self.specs = match_specs(natural, specs)
        layouts = []
        for name, source in zip(names, sources, strict=True):
            _, scale, zero_point = quantised.get(name, (name, 1.0, 0))
            layouts.append(Layout(source.dtype.name, source.block, scale, zero_point))
        self._blocks = [layout.block for layout in layouts]
        # Binding and reducer know addresses only; the memory is kept here.
        self._memory = [
            aligned_zeros(source.dtype.itemsize * prod(source.stored_shape))
            .view(source.dtype)
            .reshape(source.stored_shape)
            for source in sources
        ]
        self._reducer = TapReducer(self.specs, tuple(layouts))
        self._reducer.place([memory.ctypes.data for memory in self._memory])
        self._binding = self.session.io_binding() if self.session.get_providers() == CPU else None
        self.readings = tuple(source.reading if self._binding else "copied" for source in sources)
        if self._binding is None:
            return
        self._inputs = {name: np.zeros(array.shape, array.dtype) for name, array in feeds[0].items()}
        for name, array in self._inputs.items():
            self._binding.bind_cpu_input(name, array)
        self._answers = short_answers(self.session, answers)
        for name, answer in zip(self._outputs, self._answers or (None,) * len(self._outputs), strict=True):
            # Bound first, so that they come first in the answer.
            if answer is None:
                self._binding.bind_output(name)
            else:
                self._binding.bind_output(name, "cpu", 0, answer.dtype, answer.shape, answer.ctypes.data)
        for source, memory in zip(sources, self._memory, strict=True):
            self._binding.bind_output(
                source.output, "cpu", 0, source.dtype, source.stored_shape, memory.ctypes.data
            )

    def load(self, frame: NDArray[Any]) -> None:
        """Take the observed input of the coming run; the run needs it in the caches as well."""
        self._reducer.load_input(frame)

    def run(self, feed: Feed) -> list[NDArray[Any]]:
        """Run, and return the model's own outputs in memory of their own."""
        binding = self._binding
        if binding is None:
            outputs: list[NDArray[Any]] = self.session.run(None, feed)
            for memory, tap in zip(self._memory, outputs[len(self._outputs) :], strict=True):
                np.copyto(memory, tap)
            return outputs[: len(self._outputs)]
        for name, array in feed.items():
            if array.nbytes <= SHORT:
                np.copyto(self._inputs[name], array)
            else:
                binding.bind_cpu_input(name, array)
        if not self._answers:
            for name in self._outputs:
                # Bound anew for every run, or the runtime would write into the arrays handed out before
                # (test_probe.py::test_later_runs_leave_earlier_answers_alone).
                binding.bind_output(name)
        try:
            self.session.run_with_iobinding(binding)
        finally:
            for name, array in self._inputs.items():
                if array.nbytes > SHORT:
                    # What is bound is held, and the caller may want to close or resize its memory
                    # (test_probe.py::test_an_input_is_the_callers_again_behind_the_run).
                    binding.bind_cpu_input(name, array)
        if self._answers:
            return [answer.copy() for answer in self._answers]
        values = binding.get_outputs_as_ortvaluevector()
        return [values[place].numpy() for place in range(len(self._outputs))]

    def choose(self, scan: BoolArray) -> None:
        """Choose the taps whose voxels are read, see `TapReducer.choose`."""
        self._reducer.choose(scan)

    def values(self) -> list[NDArray[Any]]:
        """Copy the taps of the last run as they are stored: (C, H, W), or (N, 1, 1) for a dense layer."""
        described = zip(self._memory, self.specs[1:], self._blocks, strict=True)
        return [planar(memory, spec.shape, block) for memory, spec, block in described]

    def restart(self) -> None:
        """Forget the pictures so far."""
        self._reducer.restart()

    def reduce(self) -> Reduction:
        """Reduce what was loaded, and the taps of the last run."""
        return self._reducer.reduce()


def short_answers(
    session: onnxruntime.InferenceSession, answers: Sequence[Sequence[NDArray[Any]]]
) -> list[NDArray[Any]] | None:
    """Memory for outputs that are copied sooner than bound anew; None if they are long or of no fixed size.

    A free axis has a fixed length of 1 where it is the batch of an input. What a model declares may be
    wrong, which the runtime only warns of: its ``answers`` to some feeds have to be of that size too
    (test_probe.py::test_a_model_that_declares_another_size_is_observed).
    """
    batch = {arg.shape[0] for arg in session.get_inputs() if arg.shape and isinstance(arg.shape[0], str)}
    memory = []
    for place, arg in enumerate(session.get_outputs()[: len(answers[0])]):
        shape = tuple(1 if axis in batch else axis for axis in arg.shape)
        if arg.type not in DTYPES or any(answer[place].shape != shape or 0 in shape for answer in answers):
            return None
        memory.append(np.zeros(shape, DTYPES[arg.type]))
    return memory if sum(array.nbytes for array in memory) <= SHORT else None
