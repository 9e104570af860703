"""What the repository promises about itself."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOP = {
    "LICENSE",
    "README.md",
    "SAFETY.md",
    "edge_monitor",
    "firmware_configs",
    "pyproject.toml",
    "tests",
    "tools",
}


def tracked():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in listed.stdout.splitlines()]


def test_top_level_is_as_documented():
    names = {path.relative_to(ROOT).parts[0] for path in tracked()}
    assert {name for name in names if not name.startswith(".")} == TOP


def test_no_kernel_uses_fastmath():
    """``fastmath`` lets the compiler delete NaN checks."""
    for path in (ROOT / "edge_monitor" / "kernels").glob("*.py"):
        assert not re.search(r"fastmath\s*=", path.read_text()), path


def test_tables_of_the_readme_are_current():
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        program = {"__name__": "readme"}
        exec(compile((ROOT / "tools" / "readme").read_text(), "readme", "exec"), program)
    finally:
        sys.path.pop(0)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert program["flag_table"]() in text, "run tools/readme"
    assert program["studies"]() in text, "run tools/readme"


# Every one of them made unimportable: Numba itself takes SciPy when it is there.
WITHOUT_WORKSTATION = """
import sys
heavy = "onnx", "scipy", "matplotlib", "sklearn", "PIL", "jinja2", "starlette", "sqlalchemy"
sys.modules.update(dict.fromkeys(heavy))
"""


@pytest.mark.parametrize("module", ["service", "probe", "pipeline"])
def test_the_device_needs_no_workstation_library(module):
    program = f"{WITHOUT_WORKSTATION}import edge_monitor.{module}"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_the_device_watches_residual_and_tracts_without_them():
    program = f"""{WITHOUT_WORKSTATION}
from itertools import islice
import numpy as np
from edge_monitor import Monitor, Probe, load_region_map
from edge_monitor.sources.scenes import Road
data = {str(ROOT / "edge_monitor" / "data")!r}
region_map = load_region_map(data + "/demo_map.npz")
monitor = Monitor(region_map)
probe = Probe.onnx(data + "/demo_model.onnx", region_map=region_map, on_row=monitor.step)
for scene in islice(Road(2000), 10):
    probe.run(None, {{"image": scene.image.transpose(2, 0, 1)[None].astype(np.float32)}})
found = monitor.report.connectivity
print(0 < found.residual_score < 1, np.isfinite(found.tract_z).any(), found.root)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.stdout == "True True None\n", result.stderr
