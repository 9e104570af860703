"""tools/bench: what it prints, and how it judges. No test here looks at how fast anything is."""

import json
import subprocess
import sys
import zlib
from pathlib import Path

import models
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))

from _bench_datagram import CHECKSUM, HEADER, RowSocket, pack
from _bench_kernel import KernelAlone
from _bench_measure import Benchmark, interleaved, judge
from _bench_models import mobilenet_v1, resnet18
from _bench_rows import synthetic_rows

from edge_monitor.probe import Probe
from edge_monitor.taps.onnx import list_taps

TOOLS = Path(__file__).parent.parent / "tools"

# As the script runs, but in the interpreter of the tests instead of the checkout's own environment.
LAUNCH = f"""
import runpy, sys
sys.path.insert(0, {str(TOOLS)!r})
runpy.run_path({str(TOOLS / "bench")!r}, run_name="bench")["main"](sys.argv[1:])
"""


def bench(*arguments):
    command = [sys.executable, "-c", LAUNCH, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_json_of_one_benchmark():
    finished = bench("--quick", "--json", "--only", "eeg/numpy")
    assert finished.returncode == 0, finished.stderr
    (result,) = json.loads(finished.stdout)
    assert list(result) == ["name", "what", "value", "spread", "unit", "goal", "met"]
    assert (result["name"], result["unit"], result["goal"]) == ("eeg/numpy", "x", 15.0)
    low, high = result["spread"]
    assert 0 < low <= result["value"] <= high
    assert result["met"] is (result["value"] >= 15.0)


@pytest.mark.slow
def test_everything_can_be_measured():
    finished = bench("--quick", "--json")
    assert finished.returncode == 0, finished.stderr
    names = [result["name"] for result in json.loads(finished.stdout) if result["value"] is not None]
    assert {"taps/demo/default", "moments/read", "monitor/p50", "eeg/window"} <= set(names)
    assert {"sinks/page", "sinks/recording", "process/memory", "process/start"} <= set(names)


def test_without_the_model_there_is_no_value(monkeypatch, tmp_path):
    monkeypatch.setenv("EDGE_MONITOR_DATA", str(tmp_path))
    finished = bench("--quick", "--json", "--only", "taps/resnet8/*")
    assert finished.returncode == 0, finished.stderr
    results = json.loads(finished.stdout)
    assert [(r["name"], r["goal"]) for r in results] == [
        ("taps/resnet8/default", 1.0),
        ("taps/resnet8/all", 3.0),
    ]
    assert all(r["value"] is r["spread"] is r["met"] is None for r in results)
    assert f"{tmp_path}/mlperf_tiny/resnet8_float.onnx is missing" in finished.stderr


def test_unknown_pattern():
    finished = bench("--only", "warp drive")
    assert finished.returncode == 2
    assert finished.stdout == ""
    (line,) = finished.stderr.splitlines()
    assert line.startswith("error: --only warp drive: no such benchmark")
    assert "monitor/p50" in line


def test_the_kernel_alone_reads_what_the_probe_reads():
    rows = []
    probe = Probe.onnx(models.cnn(), on_row=rows.append)
    alone = KernelAlone(probe)
    (given,) = probe.get_inputs()
    for seed in range(2):
        frame = np.random.default_rng(seed).random((1, *given.shape[1:]), np.float32)
        probe.run(None, {given.name: frame})
        alone.reduce()
        np.testing.assert_array_equal(alone.signals, rows[-1].signals[1:])


@pytest.mark.parametrize(("network", "n_taps"), [(mobilenet_v1, 27), (resnet18, 17)])
def test_generated_networks_are_of_their_kind_and_always_the_same(network, n_taps):
    assert len(list_taps(network())) == n_taps
    assert network() == network()


def test_a_datagram_is_the_whole_row():
    (row,) = synthetic_rows(1, seed=0)
    data = pack(row)
    body, (checksum,) = data[: -CHECKSUM.size], CHECKSUM.unpack(data[-CHECKSUM.size :])
    assert checksum == zlib.crc32(body)
    assert len(data) < 1 << 16
    version, _, frame, _, t_ns, *_, n_taps, n_voxels, n_channels = HEADER.unpack(body[: HEADER.size])
    assert (version, frame, t_ns) == (1, row.frame, row.t_ns)
    assert (n_taps, n_voxels, n_channels) == (8, len(row.spatial.voxels), row.spatial.channels.size)
    signals = np.frombuffer(body, np.float64, n_taps, HEADER.size)
    np.testing.assert_array_equal(signals, row.signals)
    np.testing.assert_array_equal(np.frombuffer(body[-8 * n_channels :], np.float64), row.spatial.channels)


def test_a_full_socket_drops_and_counts():
    (row,) = synthetic_rows(1, seed=0)
    with RowSocket() as rows:
        while not rows.dropped:
            rows.send(row)
        rows.read()
        rows.send(row)
        assert rows.dropped == 1


@pytest.mark.parametrize(
    ("at_least", "values", "met"),
    [
        (False, [9.0, 10.0, 30.0], True),
        (False, [9.0, 10.5, 11.0], False),
        (True, [1.0, 10.0, 11.0], True),
        (True, [9.0, 9.5, 30.0], False),
    ],
)
def test_the_median_is_judged_and_the_bound_belongs_to_the_goal(at_least, values, met):
    benchmark = Benchmark("b", "", "x", lambda _: values, goal=10.0, at_least=at_least)
    result = judge(benchmark, values)
    assert (result.value, result.spread, result.met) == (values[1], (values[0], values[2]), met)


def test_without_a_goal_nothing_is_judged():
    benchmark = Benchmark("b", "", "us", lambda _: [3.0])
    assert judge(benchmark, [3.0]).met is None


def test_calls_are_interleaved():
    calls = []
    medians = interleaved([lambda: calls.append("a"), lambda: calls.append("b")], 3)
    assert calls == ["a", "b"] * 3
    assert len(medians) == 2
    assert all(median > 0 for median in medians)
