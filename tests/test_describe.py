"""What a map says of itself in the terminal."""

import io

import models
import msgspec
import numpy as np
import pytest
from maps import minimal_map
from rich.console import Console

from edge_monitor.offline.describe import describe_map
from edge_monitor.reports import CHANNELS


def told(region_map) -> str:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(describe_map(region_map))
    return console.export_text()


@pytest.fixture(scope="module")
def silent():
    """A map without thresholds, fault head, tracts and impact."""
    region_map = minimal_map(models.cnn())
    threshold = np.full_like(region_map.evidence.threshold, np.nan)
    scale = np.full_like(region_map.tracts.scale, np.nan)
    return msgspec.structs.replace(
        region_map,
        evidence=msgspec.structs.replace(region_map.evidence, threshold=threshold),
        tracts=msgspec.structs.replace(region_map.tracts, scale=scale),
        faults=None,
        impact=None,
    )


def test_a_channel_that_is_off_says_why(silent):
    lines = {line.split()[0]: line for line in told(silent).splitlines() if " off: " in line}
    assert set(lines) == set(CHANNELS)
    assert "off: no fault head" in lines["faults"]
    assert "off: none is watched" in lines["tracts"]
    assert "off: no score, or always the same" in lines["stall"]
    known = msgspec.structs.replace(silent.tracts, scale=np.ones_like(silent.tracts.scale))
    watched = told(msgspec.structs.replace(silent, tracts=known))
    assert "none is watched" not in watched


def test_missing_impact_scores_say_what_that_means_and_what_computes_them(silent):
    assert "not computed, all voxels count alike; `edge-monitor impact` computes them" in told(silent)


def test_no_line_is_cut(silent):
    assert "…" not in told(silent).replace(f"{silent.provenance.model_sha256[:16]}…", "")
