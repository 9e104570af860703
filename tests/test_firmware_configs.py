"""What is shipped for devices: configurations load, the unit is sound, the guide names what exists."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from edge_monitor.config import load_config

FOLDER = Path(__file__).parents[1] / "firmware_configs"
UNIT = FOLDER / "edge-monitor.service"
CONFIGS = sorted(FOLDER.glob("*.yaml"))


def settings_of(unit):
    """Values of the unit by key; a key may stand more than once."""
    values = {}
    for line in unit.read_text(encoding="utf-8").splitlines():
        key, found, value = line.partition("=")
        if found and not line.startswith("#"):
            values.setdefault(key, []).append(value)
    return values


SETTINGS = settings_of(UNIT)


def test_there_are_configurations_for_both_boards():
    assert [path.stem for path in CONFIGS] == ["jetson_orin", "raspberry_pi_5"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_fits_the_unit(path):
    """The service may write in its own directories only."""
    config = load_config(path)
    assert config.model.path.startswith("/etc/edge-monitor/")
    assert config.region_map.startswith("/etc/edge-monitor/")
    assert config.sinks.health_page.path.startswith(f"/run/{SETTINGS['RuntimeDirectory'][0]}/")
    assert config.sinks.recording.folder == f"/var/lib/{SETTINGS['StateDirectory'][0]}"
    assert not config.source.frames.startswith("/home")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_finds_nothing_to_say_about_the_unit(tmp_path):
    """An unknown key is only a warning to systemd, so nothing may be said at all."""
    unit = tmp_path / UNIT.name
    text, replaced = re.subn(r"(?m)^ExecStart=\S+", f"ExecStart={shutil.which('true')}", UNIT.read_text())
    assert replaced == 1
    unit.write_text(text)
    result = subprocess.run(
        ["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False, timeout=60
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_the_unit_runs_the_shipped_configuration_in_the_foreground():
    assert SETTINGS["Type"] == ["exec"]
    assert SETTINGS["ExecStart"] == ["/opt/edge-monitor/bin/edge-monitor run /etc/edge-monitor/config.yaml"]
    assert SETTINGS["Restart"] == ["on-failure"]


def test_the_jit_can_work():
    assert SETTINGS.get("MemoryDenyWriteExecute", ["no"]) == ["no"]
    cache = f"NUMBA_CACHE_DIR=%C/{SETTINGS['CacheDirectory'][0]}/numba"
    assert set(SETTINGS["Environment"]) == {cache, "ORT_DISABLE_TELEMETRY=1"}
    assert "ProcSubset" not in SETTINGS


def test_the_health_page_outlives_a_restart_and_is_seen_by_others():
    assert SETTINGS["RuntimeDirectoryPreserve"] == ["yes"]
    assert "RuntimeDirectoryMode" not in SETTINGS  # 0755
    assert "DynamicUser" not in SETTINGS  # would put a preserved runtime directory below /run/private
    assert "User" in SETTINGS


def test_the_guide_names_every_file_and_none_that_is_missing():
    guide = (FOLDER / "README.md").read_text(encoding="utf-8")
    shipped = {path.name for path in FOLDER.iterdir()} - {"README.md"}
    assert set(re.findall(r"`([\w-]+\.(?:yaml|service|h))`", guide)) - {"config.yaml"} == shipped
    assert "/run/credentials/edge-monitor.service/device.key" in guide
    keys = [load_config(path).sinks.mqtt.key_file for path in CONFIGS]
    assert all(key is None or key in guide for key in keys)
