"""The command line: every command is thin over a library function, heavy imports inside."""

from __future__ import annotations

import os
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from edge_monitor.errors import EdgeMonitorError, InputError

if TYPE_CHECKING:
    from rich.progress import TaskID

    from edge_monitor.config import FrameSettings

WORKSTATION = {"jinja2", "matplotlib", "onnx", "PIL", "scipy", "sklearn"}
"""Packages of the extra ``offline``, which a device does without."""

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
FRAMES_HELP = "clean frames: directory of images or .npy, .npy or .npz file, demo:SEED or demo-b:SEED"
FramesArg = Annotated[str, typer.Argument(help=FRAMES_HELP)]
ScaleOption = Annotated[float | None, typer.Option(help="model input = (pixel * scale - mean) / std (1)")]
MeanOption = Annotated[list[float] | None, typer.Option(help="one value, or one per channel")]
StdOption = Annotated[list[float] | None, typer.Option(help="one value, or one per channel")]
LimitOption = Annotated[int | None, typer.Option(help="use so many frames (demo: 18000)")]
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
    frames: Annotated[str | None, typer.Argument(help=FRAMES_HELP)] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="the map to write")] = Path("map.npz"),
    rows: Annotated[
        Path | None, typer.Option(help="fit baselines from this recording of the device instead of frames")
    ] = None,
    tap: Annotated[list[str] | None, typer.Option(help="tensor to tap; repeat for several")] = None,
    rate: Annotated[float | None, typer.Option(help="frame rate of the stream, Hz (30)")] = None,
    scale: ScaleOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    limit: LimitOption = None,
    alarms_per_hour: Annotated[float, typer.Option(help="false-alarm budget")] = 1.0,
    bands: Annotated[str, typer.Option(help="frequency scale of the bands: nyquist or hz")] = "nyquist",
) -> None:
    """Learn a region map from clean frames."""
    from edge_monitor.config import CalibrationSettings
    from edge_monitor.map_file import save_region_map
    from edge_monitor.offline.calibrate import calibrate as learn
    from edge_monitor.offline.describe import describe_map
    from edge_monitor.offline.observe import observe, observe_recording

    if (frames is None) == (rows is None):
        raise InputError("FRAMES", "give either frames or --rows RECORDING")
    of_frames = {"tap": tap, "rate": rate, "scale": scale, "mean": mean, "std": std, "limit": limit}
    given = [f"--{name}" for name, value in of_frames.items() if value is not None]
    if rows is not None and given:
        raise InputError(given[0], "belongs to frames; --rows takes it from the recording")
    check_output(output, model)
    try:
        settings = CalibrationSettings(alarms_per_hour=alarms_per_hour, bands=bands)
    except ValueError as error:
        raise InputError("option", str(error)) from error
    stream = frame_settings(frames or "-", 30.0 if rate is None else rate, scale, mean, std, limit)
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
def impact(
    model: ModelArg,
    frames: FramesArg,
    region_map: Annotated[Path, typer.Option("--map", help="the map that gets the scores")] = Path("map.npz"),
    output: Annotated[Path | None, typer.Option("-o", "--output", help="write another map instead")] = None,
    scale: ScaleOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    limit: LimitOption = None,
    images: Annotated[int, typer.Option(help="frames to score on, evenly spaced")] = 256,
    labels: Annotated[
        Path | None, typer.Option(help=".npy with the class of every frame: scores accuracy")
    ] = None,
    payoff: Annotated[
        str | None, typer.Option(help="your own payoff, FILE.py:FUNCTION(ablated, whole)")
    ] = None,
    pairs: Annotated[int, typer.Option(help="antithetic pairs of permutations, at least")] = 128,
    max_stderr: Annotated[float | None, typer.Option(help="go on until no score's error is larger")] = None,
    max_evals: Annotated[int | None, typer.Option(help="coalitions to value at most, for each tap")] = None,
    seed: Annotated[int, typer.Option(help="seed of the permutations")] = 0,
) -> None:
    """Add to a map what each region is worth for the result (Shapley scores); takes minutes.

    Ctrl-C keeps what is done; the same command goes on from there.
    """
    import msgspec

    from edge_monitor.map_file import load_region_map, save_region_map
    from edge_monitor.offline.describe import describe_impact
    from edge_monitor.offline.impact import impact_scores
    from edge_monitor.offline.observe import pick_frames, read_labels
    from edge_monitor.offline.payoff import load_payoff
    from edge_monitor.offline.shapley import ShapleySettings
    from edge_monitor.taps.onnx_graph import load_model

    known = load_region_map(region_map)
    known.require_model(load_model(model)[0], str(model))
    target = output or region_map
    check_output(target, model)
    settings = ShapleySettings(pairs=pairs, max_stderr=max_stderr, max_evals=max_evals, seed=seed)
    stream = frame_settings(frames, known.provenance.frame_rate_hz, scale, mean, std, limit)
    own = load_payoff(payoff) if payoff else None
    checkpoint = target.with_name(f"{target.name}.impact")
    with progress_bar() as progress:
        picked, places = pick_frames(stream, known.input_shape, images, progress)
        classes = read_labels(labels, places) if labels else None
        try:
            scores = impact_scores(model, known.taps, picked, own, classes, settings, progress, checkpoint)
        except KeyboardInterrupt:
            kept = (
                f"the same command goes on from {checkpoint}" if checkpoint.exists() else "nothing done yet"
            )
            err.print(f"stopped; {kept}", soft_wrap=True)
            raise typer.Exit(130) from None
    save_region_map(msgspec.structs.replace(known, impact=scores), target)
    checkpoint.unlink(missing_ok=True)
    out.print(describe_impact(scores, known.taps))
    out.print(f"wrote {target}", soft_wrap=True)


@app.command()
def drill(
    model: ModelArg,
    frames: Annotated[str, typer.Argument(help=f"{FRAMES_HELP}; not those that the map was calibrated on")],
    region_map: Annotated[Path, typer.Option("--map", help="the map to drill")] = Path("map.npz"),
    output: Annotated[Path | None, typer.Option("-o", "--output", help="write an HTML page too")] = None,
    scenes: Annotated[int, typer.Option(help="scenes, evenly spaced, 20 s of frames each")] = 8,
    fault: Annotated[list[str] | None, typer.Option(help="only this fault; repeat for several")] = None,
    severity: Annotated[
        list[float] | None, typer.Option(help="1 (mild), 2, 3; repeat for several (all three)")
    ] = None,
    ramps: Annotated[bool, typer.Option(help="gradual faults also growing over 10 s")] = True,
    seed: Annotated[int, typer.Option(help="seed of the faults' places, phases and noise")] = 0,
    scale: ScaleOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    limit: LimitOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put known faults into clean frames, and see whether and how fast the monitor finds them.

    FRAMES have to be clean, and others than those that the map was calibrated on.
    """
    import msgspec

    from edge_monitor.map_file import load_region_map
    from edge_monitor.offline.drill import UNBROKEN, Case, choose_cases
    from edge_monitor.offline.drill import drill as break_scenes
    from edge_monitor.offline.drill_scenes import CleanScenes
    from edge_monitor.offline.drill_table import describe_drill, summarize
    from edge_monitor.offline.faults import SEVERITIES
    from edge_monitor.offline.injection import Injector, Range
    from edge_monitor.offline.observe import N_IMAGES, pick_frames
    from edge_monitor.offline.page import check_page_file, write_page
    from edge_monitor.offline.report_drill import drill_page
    from edge_monitor.taps.onnx_graph import load_model

    known = load_region_map(region_map)
    data = load_model(model)[0]
    known.require_model(data, str(model))
    cases = [Case(UNBROKEN, 0.0), *choose_cases(fault or (), severity or SEVERITIES, ramps=ramps)]
    if output is not None:
        check_page_file(output)
    rate_hz = known.provenance.frame_rate_hz
    stream = frame_settings(frames, rate_hz, scale, mean, std, limit)
    clean = CleanScenes(model, known, stream, scenes)
    if frames == known.provenance.source:
        err.print(
            f"warning: the map was calibrated on {frames}: what it finds there, it knows", soft_wrap=True
        )
    skipped: list[tuple[Case, str]] = []
    with progress_bar() as progress:
        picked, _ = pick_frames(stream, known.input_shape, N_IMAGES, progress)
        injector = Injector(data, known.taps, Range.of(picked), rate_hz)
        told = break_scenes(
            injector, known, clean, cases, seed, progress, lambda case, why: skipped.append((case, why))
        )
        drilled = summarize(known, frames, list(told), skipped, seed)
    if output is not None:
        write_page(drill_page(drilled), output)
    if as_json:
        typer.echo(msgspec.json.encode(drilled))
        return
    out.print(describe_drill(drilled))
    if output is not None:
        out.print(f"wrote {output}", soft_wrap=True)


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="region map (.npz) or configuration (.yaml)")],
) -> None:
    """Print what a region map or a configuration holds and what is wrong with it."""
    from edge_monitor.map_file import load_region_map
    from edge_monitor.offline.describe import check_config, describe_map

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


@app.command()
def report(
    file: Annotated[Path, typer.Argument(help="region map (.npz) or recording (.mcap)")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="the page to write (FILE's name with .html, here)")
    ] = None,
) -> None:
    """Write what a region map or a recording holds as one HTML page."""
    from edge_monitor.offline.report import report as write

    with progress_bar() as progress:
        page = write(file, output, progress)
    out.print(f"wrote {page}", soft_wrap=True)


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
        raise InputError("option", str(error)) from error


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
    try:
        with zipfile.ZipFile(path) as archive:
            is_map = {"meta.npy", "eeg.floor.npy"} <= set(archive.namelist())
    except zipfile.BadZipFile:
        is_map = False
    if not is_map:  # frames are archives as well, and must not be lost (tests/test_cli.py)
        raise InputError(path, "exists and is no region map")


def main() -> None:
    """Entry point: an error on purpose is one line on standard error and exit code 2."""
    try:
        app()
    except EdgeMonitorError as error:
        err.print(f"error: {error}", style="red", soft_wrap=True)
        sys.exit(2)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in WORKSTATION:
            raise
        err.print(f"error: {error.name} is missing: pip install 'edge-monitor[offline]'", style="red")
        sys.exit(2)


if __name__ == "__main__":
    main()
