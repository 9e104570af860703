"""What commands print to: standard output, standard error, and the progress of long work."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from rich.progress import TaskID

# A file has no width of its own, and nothing that goes there may be cut.
_WIDTH = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 200
out = Console(markup=False, emoji=False, highlight=False, width=_WIDTH)
err = Console(stderr=True, markup=False, emoji=False, highlight=False)


def print_slow_kernels() -> None:
    """Say on standard error what runs slower here than it should, if anything does."""
    from edge_monitor.kernels import cache, product, strips
    from edge_monitor.kernels._jit import PLAIN

    costs = {
        strips.run_strips: "the taps are read thirty times as slowly",
        product.product: "residual and fault head take longer",
        cache.fetch_row: "the bands wait for memory",
    }
    slow = [cost for kernel, cost in costs.items() if kernel in PLAIN]
    if slow:
        err.print(
            f"plain code stands in for vector code that cannot be built here: {', '.join(slow)}",
            soft_wrap=True,
        )


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int | None], None]]:
    """One bar per phase on standard error, one line where that is no terminal.

    Ctrl-C says that nothing was written.
    """
    import typer
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:8}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, disable=not err.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def update(phase: str, done: int, total: int | None) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase, total=total)
                if not err.is_terminal:
                    err.print(f"{phase} ...")
            bars.update(tasks[phase], completed=done, total=total)

        try:
            yield update
        except KeyboardInterrupt:
            err.print("stopped; nothing was written")
            raise typer.Exit(130) from None
