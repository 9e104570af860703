"""Fixtures for all tests."""

import os
import signal
import socket

import pytest
from hypothesis import settings

# A busy machine is no failure: durations are measured by tools/bench, never asserted.
settings.register_profile("busy", deadline=None)
settings.load_profile("busy")

# onnxruntime reads it when imported, and some tests import that first.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

# A shell starts what runs in its background with Ctrl-C ignored, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def start_broker(tmp_path):
    """Start mosquitto on a free loopback port: ``start_broker(*configuration lines)``."""
    from broker import Broker  # noqa: PLC0415 - other tests need neither mosquitto nor paho

    brokers = []

    def start(*lines, **options):
        brokers.append(Broker(tmp_path, *lines, **options))
        return brokers[-1]

    yield start
    for broker in brokers:
        broker.resume()
        broker.kill()


@pytest.fixture
def free_port():
    """Return a loopback port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
