"""Arguments and options that several commands share, and what they are checked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge_monitor.errors import InputError

if TYPE_CHECKING:
    from edge_monitor.config import FrameSettings

ModelArg = Annotated[Path, typer.Argument(metavar="MODEL", help="ONNX or TensorFlow Lite model file")]
FRAMES_HELP = "clean frames: directory of images or .npy, .npy or .npz file, demo:SEED or demo-b:SEED"
FramesArg = Annotated[str, typer.Argument(metavar="FRAMES", help=FRAMES_HELP)]
ScaleOption = Annotated[float | None, typer.Option(help="model input = (pixel * scale - mean) / std (1)")]
MeanOption = Annotated[list[float] | None, typer.Option(help="one value, or one per channel")]
StdOption = Annotated[list[float] | None, typer.Option(help="one value, or one per channel")]
LimitOption = Annotated[int | None, typer.Option(help="use so many frames (demo: 18000)")]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON instead of tables")]


def frame_settings(
    frames: str,
    rate: float,
    scale: float | None,
    mean: list[float] | None,
    std: list[float] | None,
    limit: int | None,
) -> FrameSettings:
    """Return the settings of a stream from the command's options.

    Raises
    ------
    InputError
        An option's value cannot be used.
    """
    from edge_monitor.config import FrameSettings

    try:
        return FrameSettings(
            frames=frames,
            frame_rate_hz=rate,
            scale=1.0 if scale is None else scale,
            mean=tuple(mean or (0.0,)),
            std=tuple(std or (1.0,)),
            limit=18_000 if limit is None and frames.startswith(("demo:", "demo-b:")) else limit,
        )
    except ValueError as error:
        raise refused(error) from error


def refused(error: ValueError) -> InputError:
    """Error about the setting whose key begins the message of ``error``."""
    key, _, problem = str(error).partition(" ")
    return InputError(key, problem)
