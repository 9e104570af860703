"""The command line: every command is thin over a library function, heavy imports inside."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from edge_monitor.errors import EdgeMonitorError, InputError

if TYPE_CHECKING:
    from rich.progress import TaskID

app = typer.Typer(
    name="edge-monitor",
    help="Health monitor for neural networks: watches activations while the model serves.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
out = Console(markup=False, emoji=False, highlight=False)
err = Console(stderr=True, markup=False, emoji=False, highlight=False)

ModelArg = Annotated[Path, typer.Argument(metavar="MODEL", help="ONNX model file")]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON instead of tables")]


@app.command()
def taps(model: ModelArg, as_json: JsonOption = False) -> None:
    """List the tensors that can be tapped, with shapes, bytes and expected cost."""
    import msgspec
    from rich.table import Table

    from edge_monitor.taps.onnx import list_taps

    candidates = list_taps(model)
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


@app.command()
def calibrate(
    model: ModelArg,
    frames: Annotated[
        str | None,
        typer.Argument(help="clean frames: directory of images or .npy, .npy or .npz file, demo:SEED"),
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="the map to write")] = Path("map.npz"),
    rows: Annotated[
        Path | None, typer.Option(help="fit baselines from this recording of the device instead of frames")
    ] = None,
    tap: Annotated[list[str] | None, typer.Option(help="tensor to tap; repeat for several")] = None,
    rate: Annotated[float | None, typer.Option(help="frame rate of the stream, Hz (30)")] = None,
    scale: Annotated[
        float | None, typer.Option(help="model input = (pixel * scale - mean) / std (1)")
    ] = None,
    mean: Annotated[list[float] | None, typer.Option(help="one value, or one per channel")] = None,
    std: Annotated[list[float] | None, typer.Option(help="one value, or one per channel")] = None,
    limit: Annotated[int | None, typer.Option(help="use so many frames (demo: 18000)")] = None,
    alarms_per_hour: Annotated[float, typer.Option(help="false-alarm budget")] = 1.0,
    bands: Annotated[str, typer.Option(help="frequency scale of the bands: nyquist or hz")] = "nyquist",
) -> None:
    """Learn a region map from clean frames."""
    from edge_monitor.config import CalibrationSettings, FrameSettings
    from edge_monitor.offline.calibrate import calibrate as learn
    from edge_monitor.offline.describe import describe_map
    from edge_monitor.offline.observe import observe, observe_recording
    from edge_monitor.region_map import save_region_map

    if (frames is None) == (rows is None):
        raise InputError("FRAMES", "give either frames or --rows RECORDING")
    of_frames = {"tap": tap, "rate": rate, "scale": scale, "mean": mean, "std": std, "limit": limit}
    given = [f"--{name}" for name, value in of_frames.items() if value is not None]
    if rows is not None and given:
        raise InputError(given[0], "belongs to frames; --rows takes it from the recording")
    check_output(output, model)
    try:
        settings = CalibrationSettings(alarms_per_hour=alarms_per_hour, bands=bands)
        stream = FrameSettings(
            frames=frames or "-",
            frame_rate_hz=30.0 if rate is None else rate,
            scale=1.0 if scale is None else scale,
            mean=tuple(mean or (0.0,)),
            std=tuple(std or (1.0,)),
            limit=18_000 if limit is None and str(frames).startswith("demo:") else limit,
        )
    except ValueError as error:
        raise InputError("option", str(error)) from error
    with progress_bar() as progress:
        if rows is not None:
            observed = observe_recording(model, rows)
        else:
            observed = observe(model, stream, tap, progress)
        region_map = learn(observed, settings, progress)
    save_region_map(region_map, output)
    out.print(describe_map(region_map))
    out.print(f"wrote {output}", soft_wrap=True)


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="region map (.npz) or configuration (.yaml)")],
) -> None:
    """Print what a region map or a configuration holds and what is wrong with it."""
    from edge_monitor.offline.describe import check_config, describe_map
    from edge_monitor.region_map import load_region_map

    if not file.is_file():
        raise InputError(file, "no such file")
    with file.open("rb") as opened:
        is_map = opened.read(2) == b"PK" or file.suffix == ".npz"
    if is_map:
        out.print(describe_map(load_region_map(file)))
        return
    config, problems = check_config(file)
    out.print(config)
    for problem in problems:
        err.print(f"{file}: {problem}", style="red", soft_wrap=True)
    if problems:
        raise typer.Exit(2)
    out.print(f"{file}: good")


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="YAML configuration, see firmware_configs/")],
    as_json: JsonOption = False,
) -> None:
    """Serve a model under watch until its frames end or SIGTERM comes."""
    import msgspec

    from edge_monitor.config import load_config
    from edge_monitor.service import Service

    served = Service(load_config(config)).run()
    if as_json:
        typer.echo(msgspec.json.encode(served))
        return
    recording = f", recording {served.recording}" if served.recording else ""
    out.print(
        f"{served.frames} frames, {served.flags} flags, {served.step_us_p50:.0f} µs a step{recording}",
        soft_wrap=True,
    )


@app.command()
def replay(
    recording: Annotated[Path, typer.Argument(help="MCAP file that run or the demo wrote")],
    as_json: JsonOption = False,
) -> None:
    """Feed a recording to a fresh monitor and compare its reports with the recorded ones."""
    import msgspec

    from edge_monitor.offline.replay import replay as again

    with progress_bar() as progress:
        result = again(recording, progress)
    if as_json:
        typer.echo(msgspec.json.encode(result))
    else:
        for line in result.transitions:
            out.print(line, soft_wrap=True)
        cut = ", up to where the file is cut or damaged" if result.truncated else ""
        cut += f"; {result.lost} inputs were not recorded" if result.lost else ""
        out.print(f"{result.identical} of {result.compared} reports identical{cut}")
    if result.identical != result.compared:
        raise typer.Exit(1)


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int | None], None]]:
    """One bar per phase on standard error."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:8}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err) as bars:
        tasks: dict[str, TaskID] = {}

        def update(phase: str, done: int, total: int | None) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase, total=total)
            bars.update(tasks[phase], completed=done, total=total)

        yield update


def check_output(path: Path, model: Path) -> None:
    """Refuse a map file that cannot be written, or holds something else, before hours of work.

    Raises
    ------
    InputError
        The folder does not exist or is read-only, or the file exists and is no map.
    """
    folder = path.absolute().parent
    if not folder.is_dir():
        raise InputError(path, f"{folder} is no directory")
    if not os.access(folder, os.W_OK):
        raise InputError(path, "cannot be written")
    if not path.exists():
        return
    if not path.is_file() or (model.exists() and path.samefile(model)):
        raise InputError(path, "exists and is no region map")
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            raise InputError(path, "exists and is no region map")


def main() -> None:
    """Entry point: an error on purpose is one line on standard error and exit code 2."""
    try:
        app()
    except EdgeMonitorError as error:
        err.print(f"error: {error}", style="red", soft_wrap=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
