"""The MQTT sink against real brokers: kills, pauses, refusals, limits."""

import shutil
import signal
import subprocess
import sys
import threading

import msgspec
import pytest
from broker import Listener, StrictBroker, free_port, wait_for
from handmade import flag, probe_event, report, row, transition

from edge_monitor.config import MqttSettings
from edge_monitor.errors import ConfigError
from edge_monitor.reports import FlagStatus
from edge_monitor.sinks import mqtt, mqtt_link
from edge_monitor.sinks.mqtt import MqttSink
from edge_monitor.sinks.mqtt_link import MqttLink
from edge_monitor.sinks.telemetry import StartMessage
from edge_monitor.types import Tick

ROOT = "em/v1/fleet/van 7/front"


def settings(port, **changes):
    values = {"window_s": 60.0, "fleet": "fleet", "vehicle": "van 7", "monitor": "front"} | changes
    return MqttSettings(host="127.0.0.1", port=port, **values)


@pytest.fixture
def start_sink():
    sinks = []

    def start(port, connect=True, **changes):
        sink = MqttSink(
            settings(port, **changes), versions={"edge_monitor": "1.2.3"}, hashes={"model": "ab12"}
        )
        sinks.append(sink)
        if connect:
            wait_for(lambda: sink.connected, "the sink connects")
        return sink

    yield start
    for sink in sinks:
        sink.close()
        assert not sink._thread.is_alive()


@pytest.fixture
def listen():
    listeners = []

    def start(broker, **options):
        listeners.append(Listener(broker.port, **options))
        return listeners[-1]

    yield start
    for listener in listeners:
        listener.close()


def raise_flags(sink, numbers):
    for n in numbers:
        sink.write(row(n), report(n, transitions=[transition(n)]))


def numbers(messages):
    return [m.seq for m in messages]


def test_a_late_subscriber_sees_the_birth(start_broker, start_sink, listen):
    broker = start_broker()
    sink = start_sink(broker.port)
    early = listen(broker)
    wait_for(lambda: early.of("status"), "birth")
    listener = listen(broker)
    wait_for(lambda: listener.of("status"), "retained birth")
    birth = listener.received[0]
    assert (birth.topic, birth.retain) == (f"{ROOT}/status", True)
    assert birth.message.boot == sink.boot
    assert birth.message.data.state == "online"
    assert birth.message.data.versions == {"edge_monitor": "1.2.3"}
    assert birth.message.data.hashes == {"model": "ab12"}


def test_a_clean_stop_says_offline_and_a_new_boot_starts_at_zero(start_broker, start_sink, listen):
    broker = start_broker()
    listener = listen(broker)
    boots = []
    for _ in range(2):
        sink = start_sink(broker.port)
        boots.append(sink.boot)
        raise_flags(sink, range(2))
        sink.close()
        assert not sink._thread.is_alive()
    wait_for(lambda: len(listener.of("status")) == 4, "two births, two farewells")
    assert [m.data.state for m in listener.of("status")] == ["online", "offline"] * 2
    assert [m.boot for m in listener.of("status")] == [boots[0], boots[0], boots[1], boots[1]]
    assert numbers(listener.of("flag")) == [0, 1, 0, 1]
    assert [type(m) for m in listener.of("event")] == [StartMessage, StartMessage]
    late = listen(broker)
    wait_for(lambda: late.of("status"), "retained status")
    assert late.of("status")[0].data.state == "offline"


CHILD = """
import sys, time
from edge_monitor.config import MqttSettings
from edge_monitor.sinks.mqtt import MqttSink
sink = MqttSink(MqttSettings(host="127.0.0.1", port=int(sys.argv[1]), fleet="f", vehicle="v", monitor="m"))
while not sink.connected:
    time.sleep(0.01)
print(sink.boot, flush=True)
time.sleep(600)
"""


def test_a_killed_process_leaves_its_last_will(start_broker, listen):
    broker = start_broker()
    listener = listen(broker)
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(broker.port)], stdout=subprocess.PIPE)
    try:
        boot = child.stdout.readline().decode().strip()
        wait_for(lambda: listener.of("status"), "birth")
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()
    wait_for(lambda: len(listener.of("status")) == 2, "last will")
    assert [(m.data.state, m.boot) for m in listener.of("status")] == [("online", boot), ("lost", boot)]
    late = listen(broker)
    wait_for(lambda: late.of("status"), "retained status")
    assert late.of("status")[0].data.state == "lost"


def test_transitions_arrive_in_order_without_a_gap(start_broker, start_sink, listen):
    broker = start_broker()
    listener = listen(broker)
    sink = start_sink(broker.port)
    raise_flags(sink, range(100))
    sink.write(row(100), report(100, transitions=[transition(100, score=float("nan"), limit=2.5)]))
    wait_for(lambda: len(listener.of("flag")) == 101, "all flags")
    flags = listener.of("flag")
    assert numbers(flags) == list(range(101))
    assert [m.data.cause for m in flags] == [f"cause {n}" for n in range(101)]
    assert flags[-1].data.values == {"score": None, "limit": 2.5}
    assert len({m.id for m in flags}) == 101
    assert not any(m.hist for m in flags)
    assert not any(r.retain for r in listener.received if r.topic == f"{ROOT}/flag")


def test_the_last_value_of_each_flag_is_retained(start_broker, start_sink, listen):
    broker = start_broker()
    sink = start_sink(broker.port)
    sink.write(row(0), report(0, flags=[flag("A", FlagStatus.INACTIVE), flag("B", FlagStatus.PENDING)]))
    sink.write(row(1), report(1, flags=[flag("A", FlagStatus.CONFIRMED), flag("B", FlagStatus.PENDING)]))
    sink.close()
    late = listen(broker)
    wait_for(lambda: len(late.of("flagstate")) == 2, "two flag states")
    assert {r.topic: r.message.data.status for r in late.received if r.message.stream == "flagstate"} == {
        f"{ROOT}/flagstate/A": "confirmed",
        f"{ROOT}/flagstate/B": "pending",
    }


def test_an_unchanged_flag_is_not_published_again(start_broker, start_sink, listen):
    broker = start_broker()
    listener = listen(broker)
    sink = start_sink(broker.port)
    for n in range(2):
        state = msgspec.structs.replace(flag("A"), counter=n)
        sink.write(row(n), report(n, flags=[state]))
        wait_for(lambda: listener.of("flagstate"), "the flag's state")
    sink.close()
    wait_for(lambda: len(listener.of("status")) == 2, "farewell")
    assert len(listener.of("flagstate")) == 1


def test_metrics_come_in_windows_that_expire(start_broker, start_sink, listen):
    broker = start_broker()
    listener = listen(broker)
    sink = start_sink(broker.port)
    for n in range(50):
        sink.write(row(n), report(n))
    sink.write(Tick(50), report(50))
    sink.close()
    wait_for(lambda: listener.of("metric"), "a window")
    (metric,) = (r for r in listener.received if r.message.stream == "metric")
    assert metric.message.data.frames == 50
    assert metric.message.seq == 0
    assert 0 < metric.properties.MessageExpiryInterval <= mqtt.METRIC_EXPIRY_S


def test_a_window_ends_by_itself(start_broker, start_sink, listen):
    broker = start_broker()
    listener = listen(broker)
    sink = start_sink(broker.port, window_s=0.1)
    for n in range(3):
        sink.write(row(n), report(n))
        wait_for(lambda n=n: len(listener.of("metric")) > n, "the window's end")
    assert [m.data.frames for m in listener.of("metric")] == [1, 1, 1]


def test_probe_events_and_the_start_are_events(start_broker, start_sink, listen):
    broker = start_broker()
    listener = listen(broker)
    sink = start_sink(broker.port)
    sink.write(probe_event("PROBE_DETACHED"), report(0))
    wait_for(lambda: len(listener.of("event")) == 2, "events")
    start, probe = listener.of("event")
    assert start.data.versions == {"edge_monitor": "1.2.3"}
    assert probe.data.code == "PROBE_DETACHED"
    assert numbers([start, probe]) == [0, 1]


@pytest.fixture
def gate(monkeypatch):
    """Holds every connection attempt while cleared, so that a listener can be there first."""
    event = threading.Event()
    event.set()
    original = MqttLink.open

    def gated(link):
        assert event.wait(60)
        original(link)

    monkeypatch.setattr(MqttLink, "open", gated)
    monkeypatch.setattr(mqtt, "BACKOFF_S", (0.1, 0.5))
    return event


def test_what_happens_without_a_broker_arrives_afterwards(start_broker, start_sink, listen, gate):
    broker = start_broker()
    sink = start_sink(broker.port)
    sink.write(row(0), report(0, flags=[flag("A")]))
    raise_flags(sink, range(5))
    first = listen(broker)
    wait_for(lambda: first.of("flagstate") and len(sink._queue) == 0, "the sink is idle")
    gate.clear()
    broker.kill()
    wait_for(lambda: not sink.connected, "the loss is seen")
    raise_flags(sink, range(5, 25))
    broker.start()
    listener = listen(broker)
    gate.set()
    raise_flags(sink, range(25, 30))
    wait_for(lambda: any(m.seq == 29 for m in listener.of("flag")), "the last flag")
    # Flags that were acknowledged before the kill need not come again, all others must.
    arrived = numbers(listener.of("flag"))
    assert arrived == list(range(arrived[0], 30))
    assert arrived[0] <= 5
    late = {m.seq: m.hist for m in listener.of("flag")}
    assert all(late[n] for n in range(5, 25))
    # The new broker knows nothing: states are told again, birth first.
    assert listener.received[0].message.data.state == "online"
    assert [m.data.code for m in listener.of("flagstate")] == ["A"]
    assert sink.connected
    assert sink.error is None
    assert sink.dropped == 0


def test_unacknowledged_flags_are_sent_again(start_broker, start_sink, listen, gate):
    broker = start_broker()
    sink = start_sink(broker.port)
    wait_for(lambda: len(sink._queue) == 0, "the start event is out")
    broker.pause()
    raise_flags(sink, range(50))
    wait_for(lambda: len(sink._queue) <= 50 - mqtt_link.MAX_IN_FLIGHT + 2, "messages in flight")
    gate.clear()
    broker.kill()
    wait_for(lambda: not sink.connected, "the loss is seen")
    broker.start()
    listener = listen(broker)
    gate.set()
    wait_for(lambda: len(listener.of("flag")) == 50, "all flags")
    assert numbers(listener.of("flag")) == list(range(50))


def test_writes_return_while_the_broker_hangs_and_losses_are_declared(start_broker, start_sink, listen):
    broker = start_broker()
    listener = listen(broker)
    sink = start_sink(broker.port, queue_messages=100)
    wait_for(lambda: listener.of("event"), "the start event")
    broker.pause()
    done = threading.Event()

    def write():
        raise_flags(sink, range(10_000))
        done.set()

    threading.Thread(target=write, daemon=True).start()
    assert done.wait(60), "write() waits for the broker"
    assert sink.dropped >= 10_000 - 100 - mqtt_link.MAX_IN_FLIGHT
    assert len(sink._queue) <= 100
    broker.resume()

    def accounted():
        gaps = [m.data for m in listener.of("event")[1:]]
        lost = [n for gap in gaps if gap.stream == "flag" for n in range(gap.first, gap.last + 1)]
        return sorted(numbers(listener.of("flag")) + lost)

    wait_for(lambda: len(accounted()) >= 10_000, "every flag arrives or is declared")
    assert accounted() == list(range(10_000))
    assert numbers(listener.of("flag"))[-1] == 9_999


def test_an_unreachable_broker_is_one_line(start_sink):
    port = free_port()
    sink = start_sink(port, connect=False)
    raise_flags(sink, range(10))
    wait_for(lambda: sink.error, "the error")
    assert sink.error == f"mqtt 127.0.0.1:{port}: Connection refused"
    assert not sink.connected
    sink.close()
    assert not sink._thread.is_alive()


def test_a_host_that_breaks_the_resolver_does_not_end_the_sink(start_sink, monkeypatch):
    monkeypatch.setattr(mqtt, "BACKOFF_S", (0.01, 0.01))
    sink = start_sink(1, connect=False)
    sink._settings = msgspec.structs.replace(sink._settings, host="a" * 70 + ".test", allow_plaintext=True)
    wait_for(lambda: "Unicode" in (sink.error or ""), "the resolver's error")
    attempts = sink._attempt
    wait_for(lambda: sink._attempt > attempts + 1, "further attempts")
    assert "\n" not in sink.error


def test_receive_maximum_is_respected(start_sink):
    broker = StrictBroker(receive_maximum=3)
    try:
        sink = start_sink(broker.port, connect=False)
        broker.accept()
        wait_for(lambda: sink.connected, "the sink connects")
        raise_flags(sink, range(10))
        waiting = [broker.publish() for _ in range(3)]
        for _ in range(12 - 3):  # birth, start and ten flags in all
            assert broker.silent(0.15), "more in flight than the broker allows"
            broker.acknowledge(waiting.pop(0))
            waiting.append(broker.publish())
        assert len(set(waiting)) == 3
    finally:
        broker.close()


def test_without_a_receive_maximum_twenty_are_in_flight(start_sink):
    broker = StrictBroker(receive_maximum=65535)
    try:
        sink = start_sink(broker.port, connect=False)
        broker.accept()
        raise_flags(sink, range(50))
        for _ in range(20):
            broker.publish()
        assert broker.silent(0.3)
    finally:
        broker.close()


def test_a_refused_publish_is_reported_and_declared(start_broker, start_sink, listen, tmp_path):
    acl = tmp_path / "acl"
    acl.write_text("topic read em/#\ntopic write em/v1/+/+/+/status\ntopic write em/v1/+/+/+/event\n")
    broker = start_broker(f"acl_file {acl}")
    listener = listen(broker)
    sink = start_sink(broker.port)
    raise_flags(sink, range(3))
    wait_for(lambda: sink.dropped == 3, "three refusals")
    assert sink.error == f"mqtt 127.0.0.1:{broker.port}: {ROOT}/flag refused: Not authorized"
    assert sink.connected

    def declared():
        return [n for m in listener.of("event")[1:] for n in range(m.data.first, m.data.last + 1)]

    wait_for(lambda: declared() == [0, 1, 2], "the declaration")
    assert {m.data.reason for m in listener.of("event")[1:]} == {"Not authorized"}


def test_refused_events_are_counted_and_not_declared_for_ever(start_broker, start_sink, tmp_path):
    acl = tmp_path / "acl"
    acl.write_text("topic write em/v1/+/+/+/status\n")
    broker = start_broker(f"acl_file {acl}")
    sink = start_sink(broker.port)
    raise_flags(sink, range(3))
    # The start event, three flags and at most one declaration for each flag.
    wait_for(lambda: sink.dropped >= 5 and not len(sink._queue), "refusals")
    sink.close()
    assert sink.dropped <= 7


def test_the_broker_s_reason_to_disconnect_is_named(start_sink):
    broker = StrictBroker(receive_maximum=20)
    try:
        sink = start_sink(broker.port, connect=False)
        broker.accept()
        broker.publish()
        broker.disconnect(0x8E)
        error = wait_for(lambda: sink.error, "the end of the connection")
        assert error == f"mqtt 127.0.0.1:{broker.port}: Session taken over"
    finally:
        broker.close()


def test_an_exception_in_a_callback_costs_one_connection_only(start_broker, start_sink, listen, monkeypatch):
    broker = start_broker()
    listener = listen(broker)
    original = MqttLink._on_publish
    bad = iter([True])

    def fails_once(*arguments):
        if next(bad, False):
            raise RuntimeError("broken callback")
        original(*arguments)

    monkeypatch.setattr(MqttLink, "_on_publish", fails_once)
    monkeypatch.setattr(mqtt, "BACKOFF_S", (0.01, 0.01))
    sink = start_sink(broker.port)
    raise_flags(sink, range(5))
    wait_for(lambda: {*numbers(listener.of("flag"))} == set(range(5)), "the flags")
    wait_for(lambda: sum(m.data.state == "online" for m in listener.of("status")) == 2, "a second birth")


def test_a_password_comes_from_its_file(start_broker, start_sink, tmp_path):
    users = tmp_path / "users"
    users.write_text("van:secret-1\n")
    subprocess.run([shutil.which("mosquitto_passwd"), "-U", users], check=True)
    broker = start_broker(f"password_file {users}", allow_anonymous=False)
    password = tmp_path / "password"
    password.write_text("secret-1\n")
    sink = start_sink(broker.port, username="van", password_file=str(password))
    assert "secret-1" not in repr(sink._settings)
    password.write_text("secret-2\n")
    wrong = start_sink(broker.port, connect=False, username="van", password_file=str(password))
    wait_for(lambda: wrong.error, "the refusal")
    assert wrong.error == f"mqtt 127.0.0.1:{broker.port}: Not authorized"
    with pytest.raises(ConfigError, match=r"password_file: /no/such/file: No such file or directory"):
        start_sink(broker.port, connect=False, username="van", password_file="/no/such/file")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")
# paho leaves the socket of a failed handshake to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")
def test_tls_verifies_the_broker(start_broker, start_sink, tmp_path):
    for name in ("broker", "stranger"):
        subprocess.run(
            f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN={name}"
            f" -addext subjectAltName=IP:127.0.0.1 -keyout {name}.key -out {name}.crt",
            shell=True,
            cwd=tmp_path,
            check=True,
            capture_output=True,
        )
    broker = start_broker(f"certfile {tmp_path / 'broker.crt'}", f"keyfile {tmp_path / 'broker.key'}")
    start_sink(broker.port, ca_file=str(tmp_path / "broker.crt"))
    sink = start_sink(broker.port, connect=False, ca_file=str(tmp_path / "stranger.crt"), monitor="rear")
    wait_for(lambda: sink.error, "the refusal")
    assert "CERTIFICATE_VERIFY_FAILED" in sink.error


def test_reports_beyond_the_bound_are_counted(start_sink, gate, start_broker, listen):
    broker = start_broker()
    listener = listen(broker)
    gate.clear()
    sink = start_sink(broker.port, connect=False)
    for n in range(mqtt.MAX_REPORTS + 10):
        sink.write(row(n), report(n))
    gate.set()
    wait_for(lambda: sink.connected, "the sink connects")
    sink.close()
    wait_for(lambda: listener.of("metric"), "a window")
    window = listener.of("metric")[0].data
    assert (window.frames, window.skipped) == (mqtt.MAX_REPORTS, 10)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fleet": "a/b"}, "mqtt.fleet: 'a/b'"),
        ({"vehicle": ""}, "mqtt.vehicle: ''"),
        ({"monitor": "+"}, "mqtt.monitor: '+'"),
        ({"host": ""}, "mqtt.host: ''"),
        ({"host": "broker.example"}, "allow_plaintext: true"),
        ({"port": 0}, "mqtt.port: 0"),
        ({"keepalive_s": 0}, "mqtt.keepalive_s: 0"),
        ({"window_s": float("nan")}, "mqtt.window_s: nan"),
        ({"queue_messages": 0}, "mqtt.queue_messages: 0"),
        ({"cert_file": "c", "ca_file": "a"}, "go together"),
        ({"cert_file": "c", "key_file": "k"}, "needs ca_file"),
        ({"password_file": "p"}, "needs a username"),
    ],
)
def test_unusable_settings_are_named(changes, words):
    values = {"host": "127.0.0.1", "fleet": "f", "vehicle": "v", "monitor": "m"} | changes
    with pytest.raises(ConfigError) as caught:
        MqttSettings(**values)
    assert words in str(caught.value)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1", "127.1.2.3"])
def test_plaintext_is_fine_on_this_machine(host):
    assert MqttSettings(host=host, fleet="f", vehicle="v", monitor="m").ca_file is None


@pytest.mark.parametrize("change", [{"ca_file": "ca.pem"}, {"allow_plaintext": True}])
def test_another_machine_needs_tls_or_a_choice(change):
    assert MqttSettings(host="broker.example", fleet="f", vehicle="v", monitor="m", **change)
