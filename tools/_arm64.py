"""A 64-bit ARM Python on another processor: QEMU's user mode, a Debian root, wheels for ARM beside it.

Nothing is installed on the machine itself but QEMU and mmdebstrap. Times under emulation say nothing.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

from _venv import ROOT

HOME = ROOT / ".venv-arm64"
"""Holds everything; git ignores it."""

RELEASE, PYTHON, TAG = "bookworm", "python3.11", "311"
PROCESSOR = "cortex-a72"
"""A Raspberry Pi 4's. QEMU's ``max`` changes last bits."""

PROGRAMS = {"qemu-aarch64-static": "qemu-user-static", "mmdebstrap": "mmdebstrap"}
PACKAGES = ("python3", "libstdc++6", "libgomp1")
WHEELS = (
    *("numpy", "numba", "onnxruntime", "ai-edge-litert", "msgspec", "pyyaml", "mcap", "zstandard", "typer"),
    *("rich", "paho-mqtt", "onnx", "scipy", "scikit-learn"),
    *("pytest", "pytest-timeout", "pytest-benchmark", "hypothesis"),
)
TAGS = (
    *("--implementation", "cp", "--python-version", TAG),
    *(word for abi in (f"cp{TAG}", "abi3", "none") for word in ("--abi", abi)),
    # pip does not know that a system of glibc 2.36 takes what is built for an older one.
    *(
        word
        for glibc in ("2014", "_2_27", "_2_28", "_2_34")
        for word in ("--platform", f"manylinux{glibc}_aarch64")
    ),
)

CPUINFO = """\
processor\t: {number}
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3

"""
"""Read by onnxruntime at import, which crashes on the host's."""

LAUNCHER = """\
#!/bin/sh
export QEMU_LD_PREFIX={root} QEMU_CPU={processor} PYTHONHOME={root}/usr
export PYTHONPATH={path}${{PYTHONPATH:+:$PYTHONPATH}}
export NUMBA_CACHE_DIR={home}/numba ORT_DISABLE_TELEMETRY=1
export PYTHONPYCACHEPREFIX={home}/bytecode PYTHONDONTWRITEBYTECODE=
exec qemu-aarch64-static -0 "$0" {root}/usr/bin/{python} "$@"
"""


def ensure() -> Path:
    """Python for 64-bit ARM that has this checkout and the versions of the running environment.

    Its path is that of a shell script, which a Python that starts a Python finds in ``sys.executable``.
    Built by the first call, and again when what it is made of has changed.
    """
    pins = {found.metadata["Name"]: found.version for found in distributions()}
    version = pins.pop("edge-monitor")
    constraints = "".join(f"{name}=={version}\n" for name, version in sorted(pins.items()))
    recipe = Path(__file__).read_text(encoding="utf-8") + constraints
    wanted = hashlib.sha256(recipe.encode()).hexdigest()
    stamp, launcher = HOME / "made", HOME / "bin" / "python"
    if not stamp.exists() or stamp.read_text() != wanted:
        need_programs()
        shutil.rmtree(HOME, ignore_errors=True)
        launcher.parent.mkdir(parents=True)
        make_root(HOME / "root")
        (HOME / "constraints").write_text(constraints)
        pip = [sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-compile"]
        only = ["--only-binary=:all:", "--target", f"{HOME}/site", "--constraint", f"{HOME}/constraints"]
        run("wheels for 64-bit ARM", [*pip, *only, *TAGS, *WHEELS], "it takes a package index")
        # The checkout itself is found by its path; its version is read from its metadata.
        metadata = HOME / "site" / f"edge_monitor-{version}.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text(f"Metadata-Version: 2.1\nName: edge-monitor\nVersion: {version}\n")
        launcher.write_text(
            LAUNCHER.format(
                home=shlex.quote(str(HOME)),
                root=shlex.quote(f"{HOME}/root"),
                path=shlex.quote(f"{ROOT}:{HOME}/site"),
                processor=PROCESSOR,
                python=PYTHON,
            )
        )
        launcher.chmod(0o755)
        stamp.write_text(wanted)
    return launcher


def need_programs() -> None:
    """Install QEMU and mmdebstrap where they are missing."""
    missing = [package for program, package in PROGRAMS.items() if not shutil.which(program)]
    if not missing:
        return
    command = f"apt-get install -y --no-install-recommends {' '.join(missing)}"
    if not shutil.which("apt-get"):
        sys.exit(f"{' and '.join(missing)} must be installed; without apt, by hand")
    if os.geteuid() != 0:
        sys.exit(f"64-bit ARM is emulated, which takes:\n  sudo {command}")
    run("package lists", ["apt-get", "update", "-qq"], "it takes a Debian mirror")
    run("programs", [*command.split(), "-qq"], "it takes a Debian mirror")


def make_root(root: Path) -> None:
    """Unpack Debian's Python for ARM; nothing of it is run."""
    options = ["-q", "--variant=extract", "--architectures=arm64", f"--include={','.join(PACKAGES)}"]
    run("Debian root", ["mmdebstrap", *options, RELEASE, str(root), mirror()], "it takes a Debian mirror")
    (root / "proc").mkdir()
    (root / "proc" / "cpuinfo").write_text(
        "".join(CPUINFO.format(number=i) for i in range(os.cpu_count() or 1))
    )


def mirror() -> str:
    """Return the first Debian mirror among apt's own sources."""
    if not shutil.which("apt-get"):
        sys.exit("the root's packages come from apt's mirror, and there is no apt-get")
    command = ["apt-get", "indextargets", "--format", "$(LABEL) $(COMPONENT) $(REPO_URI)"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    for line in listed.splitlines():
        label, component, *uri = line.split()
        if (label, component) == ("Debian", "main") and uri:  # not "Debian-Security"
            return uri[0]
    sys.exit("apt has no Debian mirror among its sources, or no lists of it yet: apt-get update")


def run(title: str, command: list[str], needs: str) -> None:
    """Run one step of the making, or end the script."""
    print(f"{title} ...", file=sys.stderr, flush=True)
    if subprocess.run(command, check=False).returncode:
        sys.exit(f"{title}: failed ({needs}): {shlex.join(command)}")
