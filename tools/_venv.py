"""Runs a script in the checkout's own virtual environment; needs nothing but Python itself."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TFLITE_FOLDER = ".venv-tflite"
"""Environment of tflite-runtime, which does not work with the NumPy of the other one."""
OPENVINO_FOLDER = ".venv-openvino"
"""Environment of onnxruntime-openvino, which takes the place of onnxruntime."""


def ensure(extras: str, folder: str = ".venv") -> None:
    """Go on inside ``folder``, as `build` leaves it; the first call starts the script again there."""
    python = build(extras, folder)
    if not python.parent.parent.samefile(sys.prefix):
        os.execv(str(python), [str(python), *sys.argv])


def build(extras: str, folder: str) -> Path:
    """Install the project and its ``extras`` in ``folder``; return that environment's Python.

    ``extras`` is a comma-separated list, "" for none. Installing is repeated only when pyproject.toml has
    changed since.
    """
    if not (3, 10) <= sys.version_info[:2] < (3, 14):
        found = ".".join(map(str, sys.version_info[:3]))
        sys.exit(f"edge_monitor needs Python 3.10 to 3.13; {sys.executable} is {found}")
    home = ROOT / folder
    python = home / "bin" / "python"
    if not (home / "bin" / "pip").exists():  # pip comes last: without it the environment is incomplete
        _step(f"creating {folder}", [sys.executable, "-m", "venv", str(home)])
    extra = f"[{extras}]" if extras else ""
    stamp = home / f"installed-{extras.replace(',', '-')}"
    wanted = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text() != wanted:
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _step(f"installing edge_monitor{extra} in {folder}", [*install, "--editable", f"{ROOT}{extra}"])
        stamp.write_text(wanted)
    return python


def tflite_problem() -> str | None:
    """Say why tflite-runtime cannot be installed here, None when it can."""
    version = ".".join(map(str, sys.version_info[:2]))
    newest = (3, 11)
    if sys.version_info[:2] <= newest:
        return None
    return f"tflite-runtime is there for Python up to {'.'.join(map(str, newest))}, this is {version}"


def openvino_problem() -> str | None:
    """Say why onnxruntime-openvino cannot be installed here, None when it can."""
    machine = platform.machine()
    if machine == "x86_64":
        return None
    return f"onnxruntime-openvino is there for x86-64, this is {machine}"


def build_openvino() -> Path:
    """Return the Python of an environment for tests in which ONNX Runtime has OpenVINO's provider."""
    python = build("test", OPENVINO_FOLDER)
    ask = "import onnxruntime; exit('OpenVINOExecutionProvider' not in onnxruntime.get_available_providers())"
    if subprocess.run([str(python), "-c", ask], check=False).returncode:  # new, or installed over again
        pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
        # Both packages hold the module onnxruntime: who goes last would take it along.
        _step(f"removing onnxruntime from {OPENVINO_FOLDER}", [*pip, "uninstall", "--yes", "onnxruntime"])
        name = "onnxruntime-openvino"
        _step(
            f"installing {name} in {OPENVINO_FOLDER}",
            [*pip, "install", "--force-reinstall", "--no-deps", name],
        )
        _step("looking for OpenVINO's provider", [str(python), "-c", ask])
    return python


def _step(title: str, command: list[str]) -> None:
    print(f"{title} ...", file=sys.stderr, flush=True)
    code = subprocess.run(command, check=False).returncode
    if code:
        sys.exit(f"{title} failed: {' '.join(command)}")
