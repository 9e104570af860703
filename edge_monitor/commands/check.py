"""`edge-monitor check`: what a map or a configuration holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edge_monitor.commands.console import err, out, print_slow_kernels
from edge_monitor.commands.options import JsonOption
from edge_monitor.errors import InputError


def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="region map (.npz) or configuration (.yaml)")],
    as_json: JsonOption = False,
) -> None:
    """Print what a region map or a configuration holds and what is wrong with it."""
    import msgspec

    from edge_monitor.map_file import load_region_map
    from edge_monitor.offline.describe import check_config, describe_map, map_facts

    if not file.is_file():
        raise InputError(file, "no such file")
    print_slow_kernels()
    with file.open("rb") as opened:
        is_map = opened.read(2) == b"PK" or file.suffix == ".npz"
    if is_map:
        region_map = load_region_map(file)
        if as_json:
            typer.echo(msgspec.json.encode(map_facts(region_map)))
        else:
            out.print(describe_map(region_map))
        return
    config, problems = check_config(file)
    if as_json:
        typer.echo(msgspec.json.encode({"config": config, "problems": problems}))
    else:
        out.print(config)
    for problem in problems:
        err.print(f"{file}: {problem}", style="red", soft_wrap=True)
    if problems:
        raise typer.Exit(2)
    if not as_json:
        out.print(f"{file}: good")
