"""On-device health monitor for neural networks.

``Probe`` taps a model while it serves, ``Monitor`` turns what the probe sees into health reports,
``load_region_map`` loads what calibration learned. They are imported when first used, so that the
command line answers before compiled kernels are loaded.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge_monitor.map_file import load_region_map
    from edge_monitor.pipeline import Monitor
    from edge_monitor.probe import Probe

__all__ = ["Monitor", "Probe", "__version__", "load_region_map"]

__version__ = version("edge-monitor")

_HOMES = {"Monitor": "pipeline", "Probe": "probe", "load_region_map": "map_file"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
