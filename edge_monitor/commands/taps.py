"""`edge-monitor taps`: what can be tapped."""

from __future__ import annotations

import typer

from edge_monitor.commands.console import out
from edge_monitor.commands.options import JsonOption, ModelArg


def taps(model: ModelArg, as_json: JsonOption = False) -> None:
    """List the tensors that can be tapped, with shapes, bytes and expected cost."""
    import msgspec
    from rich.table import Table

    from edge_monitor.taps.model_file import is_tflite, load_model

    if is_tflite(*load_model(model)):
        from edge_monitor.taps.tflite_taps import list_taps
    else:
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
