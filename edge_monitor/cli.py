"""The command line: its parser and its entry point; each command is a module of `commands`."""

from __future__ import annotations

import sys

import typer
from typer.main import get_group

from edge_monitor.commands.calibrate import calibrate
from edge_monitor.commands.check import check
from edge_monitor.commands.console import err
from edge_monitor.commands.drill import drill
from edge_monitor.commands.impact import impact
from edge_monitor.commands.replay import replay
from edge_monitor.commands.report import report
from edge_monitor.commands.run import run
from edge_monitor.commands.taps import taps
from edge_monitor.errors import EdgeMonitorError, InputError

WORKSTATION = {"jinja2", "matplotlib", "onnx", "PIL", "scipy", "sklearn"}
"""Packages of the extra ``offline``, which a device does without."""

app = typer.Typer(
    name="edge-monitor",
    help="Health monitor for neural networks: watches activations while the model serves.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for command in (taps, calibrate, impact, drill, check, run, replay, report):
    app.command()(command)


def main() -> None:
    """Entry point: an error on purpose is one line on standard error and exit code 2."""
    try:
        app()
    except EdgeMonitorError as error:
        err.print(f"error: {_said(error)}", style="red", soft_wrap=True)
        sys.exit(2)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in WORKSTATION:
            raise
        err.print(f"error: {error.name} is missing: pip install '.[offline]'", style="red")
        sys.exit(2)


def _said(error: EdgeMonitorError) -> str:
    """Text of an error, in which a setting is called by the option that gives it."""
    if isinstance(error, InputError):
        command = get_group(app).commands.get(sys.argv[1])
        for parameter in command.params if command else ():
            if parameter.name == error.what:
                return f"{parameter.opts[0]}: {error.problem}"
    return str(error)


if __name__ == "__main__":
    main()
