"""`edge-monitor taps`: what can be tapped, and whether tapping it changes anything."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge_monitor.commands.console import out
from edge_monitor.commands.options import (
    JsonOption,
    LimitOption,
    MeanOption,
    ModelArg,
    ScaleOption,
    StdOption,
    frame_settings,
)
from edge_monitor.errors import InputError, ModelError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edge_monitor.region_map import Neutrality

CERTIFIED_FRAMES = 8


def taps(
    model: ModelArg,
    certify: Annotated[
        bool, typer.Option("--certify", help="run the model untapped and tapped, and compare")
    ] = False,
    region_map: Annotated[Path | None, typer.Option("--map", help="certify this map's taps")] = None,
    frames: Annotated[
        str | None, typer.Option(help="certify on these (the map's golden frames, else noise)")
    ] = None,
    scale: ScaleOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    limit: LimitOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the tensors that can be tapped, or certify that tapping them changes nothing."""
    given = {"map": region_map, "frames": frames, "scale": scale, "mean": mean, "std": std, "limit": limit}
    of_frames = [f"--{name}" for name, value in given.items() if value is not None]
    if not certify:
        if of_frames:
            raise InputError(of_frames[0], "belongs to --certify")
        _list(model, as_json)
        return
    if frames is None and (alone := [name for name in of_frames if name != "--map"]):
        raise InputError(alone[0], "belongs to --frames")
    from edge_monitor.map_file import load_region_map
    from edge_monitor.neutrality import certify_neutrality
    from edge_monitor.sources.frames import FrameSource

    def from_source(shape: tuple[int, ...]) -> NDArray[np.float32]:
        import numpy as np

        number = CERTIFIED_FRAMES if limit is None else limit
        settings = frame_settings(frames or "", 30.0, scale, mean, std, number)
        chosen = np.stack([frame.array[0] for frame in FrameSource(settings, shape)])
        for i, frame in enumerate(chosen):
            if not np.isfinite(frame).all():  # NaN equals NaN: nothing would be compared
                raise InputError(settings.frames, f"frame {i} holds NaN or Inf; finite frames are needed")
        return chosen

    found = certify_neutrality(
        model,
        region_map=None if region_map is None else load_region_map(region_map),
        choose_frames=None if frames is None else from_source,
    )
    if as_json:
        _echo_certificate(found)
    else:
        kind = f"frames of {frames}" if frames else "golden frames of the map"
        _print_certificate(
            found, model.name, kind if frames or region_map else "frames of seeded noise, for want of others"
        )
    if found.problems:
        raise typer.Exit(1)


def _list(model: Path, as_json: bool) -> None:
    import msgspec
    from rich.table import Table

    from edge_monitor.taps.model_file import is_tflite, load_model

    if is_tflite(*load_model(model)):
        from edge_monitor.taps.tflite_taps import list_taps
    else:
        from edge_monitor.taps.onnx import list_taps

    candidates = list_taps(model)
    if not candidates:
        raise ModelError(model, "no tensor can be tapped: it has no activation before its output")
    if not any(tap.default for tap in candidates):
        names = ", ".join(tap.name for tap in candidates)
        raise ModelError(model, f"no tensor can be tapped: type or shape of {names} cannot be read")
    if as_json:
        typer.echo(msgspec.json.encode(candidates))
        return
    table = Table(title=f"{model.name}: {len(candidates)} tensors can be tapped")
    for title in ("", "tensor", "operator", "shape", "bytes", "cost, µs"):
        table.add_column(title, justify="right" if title in {"bytes", "cost, µs"} else "left")
    for tap in candidates:
        shape = "×".join(map(str, tap.shape))
        mark = "●" if tap.default else ""
        table.add_row(mark, tap.name, tap.op, shape, str(tap.bytes), f"{tap.cost_us:.1f}")
    out.print(table)
    out.print(
        "● default set; cost is an estimate from the tensor's size. Choose others with calibrate --tap."
    )


def _echo_certificate(found: Neutrality) -> None:
    """Print JSON; infinite differences become null there, and the verdicts say what they were."""
    import msgspec

    plain = msgspec.to_builtins(found) | {"verdict": found.verdict, "passed": not found.problems}
    for tap, entry in zip(found.taps, plain["taps"], strict=True):
        entry["verdict"] = tap.verdict
    typer.echo(msgspec.json.encode(plain))


def _print_certificate(found: Neutrality, name: str, kind: str) -> None:
    from rich.box import SIMPLE
    from rich.table import Table

    out.print(f"{name} on {found.runtime}, {found.provider}; {found.frames} {kind}", soft_wrap=True)
    table = Table(box=SIMPLE, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    numbers = ("difference", "tolerated", "mean |a|")
    for title in ("tap", "stored", "read", *numbers, "verdict"):
        table.add_column(title, justify="right" if title in numbers else "left", overflow="fold")
    difference = "–" if found.max_difference is None else f"{found.max_difference:.3g}"
    table.add_row("answers", "", "", difference, f"{found.tolerance:.2g}", "", found.verdict)
    for tap in found.taps:
        difference = "–" if tap.max_difference is None else f"{tap.max_difference:.3g}"
        tolerated, signature = f"{tap.tolerance:.2g}", f"{tap.signature:.6g}"
        table.add_row(tap.name, tap.dtype, tap.reading, difference, tolerated, signature, tap.verdict)
    out.print(table)
    for problem in found.problems:
        out.print(f"REFUSED: {problem}", soft_wrap=True)
    if not found.problems:
        line = "PASSED: tapping changes no answer, and every tap reads what the model computes there."
        out.print(line, soft_wrap=True)
