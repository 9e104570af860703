"""The send queue: order, bound, and an account of every number."""

from handmade import probe_event, report, row, transition
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from edge_monitor.sinks.metric_window import WindowBuilder
from edge_monitor.sinks.send_queue import SendQueue
from edge_monitor.sinks.telemetry import STREAMS, Author, Dropped

AUTHOR = Author("f", "v", "m", {}, {})


def flag():
    return AUTHOR.flag(transition())


def event():
    return AUTHOR.probe(probe_event())


def metric():
    builder = WindowBuilder()
    builder.update(row(), report())
    return AUTHOR.metric(builder.build(skipped=0))


MAKE = {"flag": flag, "event": event, "metric": metric}


def drain(queue):
    taken = []
    while (message := queue.take()) is not None:
        taken.append((message.stream, message.seq))
    return taken


def test_flags_come_first_then_events_then_metrics():
    queue = SendQueue(10)
    for stream in ("metric", "event", "flag", "metric", "flag"):
        queue.put(MAKE[stream]())
    assert drain(queue) == [("flag", 0), ("flag", 1), ("event", 0), ("metric", 0), ("metric", 1)]


def test_a_full_queue_drops_the_oldest_of_the_least_important():
    queue = SendQueue(3)
    for stream in ("metric", "metric", "event", "flag", "flag"):
        queue.put(MAKE[stream]())
    assert queue.dropped == 2
    queue.put(flag())
    queue.put(flag())
    assert queue.dropped == 4
    assert drain(queue) == [("flag", 1), ("flag", 2), ("flag", 3)]
    gaps = [queue.next_gap() for _ in range(4)]
    assert gaps == [
        Dropped("metric", 0, 1, "queue full"),
        Dropped("event", 0, 0, "queue full"),
        Dropped("flag", 0, 0, "queue full"),
        None,
    ]


def test_a_gap_waits_for_room():
    queue = SendQueue(1)
    queue.put(flag())
    queue.put(flag())
    assert queue.next_gap() is None
    queue.take()
    assert queue.next_gap() == Dropped("flag", 0, 0, "queue full")


def test_a_dropped_declaration_is_declared_again():
    queue = SendQueue(1)
    queue.put(AUTHOR.dropped(Dropped("flag", 3, 9, "queue full")))
    queue.put(flag())
    queue.take()
    assert queue.next_gap() == Dropped("flag", 3, 9, "queue full")
    assert queue.next_gap() == Dropped("event", 0, 0, "queue full")


def test_what_is_given_back_goes_first():
    queue = SendQueue(10)
    for _ in range(4):
        queue.put(flag())
    queue.give_back([queue.take(), queue.take()])
    assert drain(queue) == [("flag", n) for n in range(4)]


def test_a_refused_flag_is_declared_and_a_refused_event_only_counted():
    queue = SendQueue(10)
    queue.put(flag())
    queue.put(event())
    queue.drop(queue.take(), "Not authorized")
    queue.drop(queue.take(), "Not authorized")
    assert queue.dropped == 2
    assert queue.next_gap() == Dropped("flag", 0, 0, "Not authorized")
    assert queue.next_gap() is None


class Account(RuleBasedStateMachine):
    """Whatever happens: a number is queued, in flight, delivered or in exactly one declared gap."""

    def __init__(self):
        super().__init__()
        self.queue = SendQueue(4)
        self.flight = []
        self.delivered = {stream: [] for stream in STREAMS}

    @rule(stream=st.sampled_from(STREAMS))
    def put(self, stream):
        self.queue.put(MAKE[stream]())

    @rule()
    def take(self):
        message = self.queue.take()
        if message is not None:
            self.flight.append(message)

    @rule()
    def declare(self):
        gap = self.queue.next_gap()
        if gap is not None:
            self.queue.put(AUTHOR.dropped(gap))

    @rule()
    def acknowledge(self):
        if self.flight:
            message = self.flight.pop(0)
            self.delivered[message.stream].append(message)

    @rule()
    def lose_the_connection(self):
        self.queue.give_back(self.flight)
        self.flight = []

    @invariant()
    def is_bounded(self):
        assert len(self.queue) <= 4

    @invariant()
    def arrives_in_order(self):
        for messages in self.delivered.values():
            numbers = [m.seq for m in messages]
            assert numbers == sorted(set(numbers))

    def teardown(self):
        self.queue.give_back(self.flight)
        for _ in range(1000):
            while (message := self.queue.take()) is not None:
                self.delivered[message.stream].append(message)
            gap = self.queue.next_gap()
            if gap is None:
                break
            self.queue.put(AUTHOR.dropped(gap))
        gaps = [m.data for m in self.delivered["event"] if isinstance(m.data, Dropped)]
        for stream, count in self.queue.next_numbers().items():
            lost = [n for g in gaps if g.stream == stream for n in range(g.first, g.last + 1)]
            arrived = [m.seq for m in self.delivered[stream]]
            assert sorted(arrived + lost) == list(range(count))


TestAccount = Account.TestCase
TestAccount.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
