"""ONNX Runtime: sessions whose taps are handed over as the kernels keep them.

On the CPU, convolutions run in a blocked layout of the channels (NCHWc), those of integers with channels
last; a tap is put in order for its reader, at a cost of about its own size. So the runtime optimises the
tapped model and saves it, and its graph is edited: what is put in order becomes the output instead
(``ReorderOutput``, or ``Transpose``). How it lies in memory depends on the processor. Nothing of that is
assumed: the values have to be those of the plain taps, bit by bit, in one layout and in no other, or the
plain taps are used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from edge_monitor.taps.onnx import CPU, OPENING
from edge_monitor.taps.onnx_edit import append_outputs, replace_outputs
from edge_monitor.taps.onnx_graph import Graph, find_readers, read_graph

Feed = Mapping[str, NDArray[Any]]
Options = Mapping[str, object]


class Source(NamedTuple):
    """Output of a session that holds a tap.

    ``shape`` is the tap's, (1, C, H, W) or (1, N); ``stored_shape`` the output's. Memory is
    [ceil(C / block), H, W, block].
    """

    output: str
    shape: tuple[int, ...]
    stored_shape: tuple[int, ...]
    dtype: np.dtype[Any]
    block: int = 1

    @property
    def reading(self) -> str:
        """What `edge_monitor.observer.Observer.readings` says of it."""
        if self.block == 1:
            return "plain"
        return "channels last" if self.block == self.shape[1] else "blocked"


class Tapped(NamedTuple):
    """A session, where it leaves its taps, and its answers to the feeds; its other outputs come first."""

    session: onnxruntime.InferenceSession
    sources: tuple[Source, ...]
    answers: tuple[list[NDArray[Any]], ...]


def open_tapped(data: bytes, taps: Sequence[str], feeds: Sequence[Feed], session_options: Options) -> Tapped:
    """Open a session of a model with taps; of those that are built on the way one is alive at a time.

    Parameters
    ----------
    data : bytes
        The model without taps.
    taps : sequence of str
        Tensors of the model.
    feeds : sequence of mapping
        Valid feeds, on which the taps' values are compared.
    session_options : mapping
        Keyword arguments of ``onnxruntime.InferenceSession``.

    Raises
    ------
    What the runtime raises.
    """
    model = append_outputs(data, taps)
    session, optimised = _open_and_save(model, session_options)
    expected = [session.run(None, feed) for feed in feeds]
    n_own = len(expected[0]) - len(taps)
    tensors, answers = expected[0][n_own:], tuple(outputs[:n_own] for outputs in expected)
    plain = tuple(
        Source(tap, tensor.shape, tensor.shape, tensor.dtype)
        for tap, tensor in zip(taps, tensors, strict=True)
    )
    if not optimised or session.get_providers() != CPU:
        return Tapped(session, plain, answers)
    try:
        stored = find_stored(read_graph(optimised), taps)
        if not stored:
            return Tapped(session, plain, answers)
        del session
        sure = _open_stored(optimised, plain, stored, feeds, expected, session_options)
        if isinstance(sure, Tapped):
            return sure
        if sure:  # the others stay plain
            sure = _open_stored(optimised, plain, sure, feeds, expected, session_options)
            if isinstance(sure, Tapped):
                return sure
    except Exception:  # noqa: BLE001, S110  # plain taps are right, only slower
        pass
    return Tapped(_open(model, session_options), plain, answers)


def find_stored(graph: Graph, taps: Sequence[str]) -> dict[str, str]:
    """Tensor that is put in order into a tap, or that a tap is put in order into, by the tap's name."""
    makers = {output: node for node in graph.nodes for output in node.outputs}
    readers = find_readers(graph)
    found = {}
    for tap in taps:
        maker = makers.get(tap)
        if maker is not None and maker.op in {"ReorderOutput", "Transpose"}:
            found[tap] = maker.inputs[0]
            continue
        for reader in readers.get(tap, ()):
            if reader.op == "Transpose":
                found[tap] = reader.outputs[0]
    taken = [*graph.outputs, *found.values()]
    return {tap: tensor for tap, tensor in found.items() if tensor in makers and taken.count(tensor) == 1}


def find_blocks(tap: Sequence[NDArray[Any]], stored: Sequence[NDArray[Any]]) -> set[int]:
    """Blocks in which ``stored`` (one array per feed) holds the values of ``tap`` (1, C, H, W).

    Memory is read as [ceil(C / block), H, W, block]. With channels last the block is C. On maps of one
    element, and in tensors of one value, blocks look alike: there are several.
    """
    if tap[0].ndim != 4:
        return set()
    channels, height, width = tap[0].shape[1:]
    filled, rest = divmod(stored[0].size, height * width)
    blocks = [b for b in range(1, filled + 1) if filled % b == 0 and 0 <= filled - channels < b]

    def is_tap(block: int) -> bool:
        return all(
            np.array_equal(planar(s, tap[0].shape[1:], block), t[0], equal_nan=True)
            for s, t in zip(stored, tap, strict=True)
        )

    return {block for block in blocks if rest == 0 and is_tap(block)}


def planar(stored: NDArray[Any], shape: tuple[int, ...], block: int) -> NDArray[Any]:
    """Copy of stored memory, [ceil(C / block), H, W, block], in the order of its ``shape`` (C, H, W)."""
    channels, height, width = shape
    blocks = stored.reshape(-1, height, width, block).transpose(0, 3, 1, 2)
    return blocks.reshape(-1, height, width)[:channels].copy()


def _open_stored(
    optimised: bytes,
    plain: Sequence[Source],
    stored: Mapping[str, str],
    feeds: Sequence[Feed],
    expected: Sequence[list[NDArray[Any]]],
    session_options: Options,
) -> Tapped | dict[str, str]:
    """Open the edited model; those taps of ``stored`` that are in one layout and in no other, if not all are.

    Of these there are none when an answer or a tap is not what is expected at all.
    """
    session = _open(replace_outputs(optimised, stored), session_options)
    found = [session.run(None, feed) for feed in feeds]
    first = len(found[0]) - len(plain)
    blocks = []
    for place in range(len(found[0])):
        name = plain[place - first].output if place >= first else ""
        before, now = ([answer[place] for answer in answers] for answers in (expected, found))
        if name in stored:
            blocks.append(find_blocks(before, now))
            if not blocks[-1]:
                return {}
        elif not all(np.array_equal(a, b, equal_nan=True) for a, b in zip(before, now, strict=True)):
            return {}
        elif name:
            blocks.append({1})
    # On maps of one element all layouts are one; a tap of one value says nothing of its own.
    sure = [
        len(fitting) == 1 or source.shape[2:] == (1, 1) for source, fitting in zip(plain, blocks, strict=True)
    ]
    if not all(sure):
        names = {source.output for source, is_sure in zip(plain, sure, strict=True) if is_sure}
        return {tap: tensor for tap, tensor in stored.items() if tap in names}
    return Tapped(
        session,
        tuple(
            source._replace(
                output=stored.get(source.output, source.output), stored_shape=array.shape, block=min(fitting)
            )
            for source, fitting, array in zip(plain, blocks, found[0][first:], strict=True)
        ),
        tuple(outputs[:first] for outputs in found),
    )


def _open_and_save(model: bytes, session_options: Options) -> tuple[onnxruntime.InferenceSession, bytes]:
    """Open a session, and the model as the runtime optimised it; empty where that cannot be saved."""
    try:
        with TemporaryDirectory(prefix="edge_monitor_") as folder:
            path = Path(folder) / "optimised.onnx"
            return _open(model, session_options, path), path.read_bytes()
    except Exception:  # noqa: BLE001  # no place for a file, a provider whose graphs cannot be saved
        return _open(model, session_options), b""


def _open(
    model: bytes, session_options: Options, save_as: Path | None = None
) -> onnxruntime.InferenceSession:
    options = session_options.get("sess_options") or onnxruntime.SessionOptions()
    with _saving(options, "" if save_as is None else str(save_as)):
        return onnxruntime.InferenceSession(model, **{**session_options, "sess_options": options})


@contextmanager
def _saving(options: onnxruntime.SessionOptions, path: str) -> Iterator[None]:
    """Have sessions saved; a file that the caller wants is of the caller's own session.

    Probes that are made at once may share their options, which must be left as they were
    (test_onnx_raw.py::test_options_that_two_threads_share_stay_as_they_are). A session that the caller opens
    with the same options meanwhile does see the change: a copy of them would lack custom operators.
    """
    with OPENING:
        wanted, severity = options.optimized_model_filepath, options.log_severity_level
        options.optimized_model_filepath = path
        if path:
            options.log_severity_level = max(3, severity)  # it warns that the file is of this processor alone
        try:
            yield
        finally:
            options.optimized_model_filepath, options.log_severity_level = wanted, severity
