"""The life cycle of the safety flags (design section 6).

The fault counter of automotive diagnostics (AUTOSAR Diagnostic Event Manager, counter-based
debouncing) turns the answers of the table's tests into pending, confirmed and healed.
"""

from __future__ import annotations

from edge_monitor.findings import UNKNOWN, Findings, Verdict
from edge_monitor.flag_table import FLAGS, FlagRow, is_calm
from edge_monitor.reports import Consistency, FlagState, FlagStatus, Transition

COUNTER_FAILED, COUNTER_PASSED = 127, -128
AGING_NS = 600 * 10**9
"""A healed flag is forgotten after ten minutes without a new occurrence."""
STORAGE_NS = 10 * 10**9
"""Transitions of one flag leave the device at most one pair in this time."""

_INACTIVE = FlagStatus.INACTIVE


class FlagTracker:
    """Runs the life cycle of every flag of the table.

    Inactive -> pending (counter above 0) -> confirmed (127) -> healed (-128) -> inactive again
    after `AGING_NS`. Pending flags that come down again leave without a transition.

    Attributes
    ----------
    states : tuple of FlagState
        One per row of `FLAGS`.
    confirmed : tuple of int
        Which of them are confirmed.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Clear every flag."""
        self.states = tuple(FlagState(row.code, FlagStatus.INACTIVE, COUNTER_PASSED, 0, 0) for row in FLAGS)
        self.confirmed: tuple[int, ...] = ()
        self._released: set[str] = set()
        self._at_rest = True  # every flag is inactive, its counter at the end
        self._told = [(FlagStatus.INACTIVE, -STORAGE_NS)] * len(FLAGS)

    def release(self, code: str) -> None:
        """Let a latched flag heal from the next passed test on; a failed one takes the release back.

        Raises
        ------
        KeyError
            No such flag.
        """
        if code not in {row.code for row in FLAGS}:
            raise KeyError(code)
        self._released.add(code)

    def update(self, frame: int, t_ns: int, findings: Findings) -> tuple[Transition, ...]:
        """Hold every test once and return the transitions to tell; ``states`` is then current."""
        if self._at_rest and is_calm(findings):
            return ()
        # The stream's own age: played faster or slower, a recording has the same grace period.
        age_s = findings.vitals.age_ns / 1e9 if findings.vitals else 0.0
        transitions: list[Transition] = []
        states = list(self.states)
        moved = False
        for i, row in enumerate(FLAGS):
            verdict = row.test(findings) if age_s >= row.grace_s else UNKNOWN
            before = states[i]
            if not verdict.failed and before.counter == COUNTER_PASSED and before.status is _INACTIVE:
                continue  # nothing wrong and nothing to forget: by far the most frequent case
            states[i] = self._advance(row, before, verdict, findings.consistency, t_ns)
            moved = True
            told = self._tell(i, states[i], frame, t_ns)
            if told is not None:
                transitions.append(told)
        if moved:
            self.states = tuple(states)
            self.confirmed = tuple(i for i, flag in enumerate(states) if flag.status is FlagStatus.CONFIRMED)
            self._at_rest = all(
                flag.counter == COUNTER_PASSED and flag.status is _INACTIVE for flag in states
            )
        return tuple(transitions)

    def _advance(
        self, row: FlagRow, flag: FlagState, verdict: Verdict, consistency: Consistency | None, t_ns: int
    ) -> FlagState:
        """Step one fault counter and derive the status."""
        counter, status = flag.counter, flag.status
        cause, values, occurrences = flag.cause, flag.values, flag.occurrences
        if verdict.failed:
            counter = min(COUNTER_FAILED, max(counter, 0) + row.up)
            if status is not FlagStatus.CONFIRMED:  # what confirmed it stays its cause
                cause, values = verdict.cause, {**_terms(consistency), **verdict.values}
            self._released.discard(row.code)
            if counter == COUNTER_FAILED and status is not FlagStatus.CONFIRMED:
                status, occurrences = FlagStatus.CONFIRMED, occurrences + 1
            elif status is FlagStatus.INACTIVE:
                status = FlagStatus.PENDING
        elif verdict.failed is False:
            if status is FlagStatus.CONFIRMED and row.latched and row.code not in self._released:
                return flag
            counter = max(COUNTER_PASSED, counter - row.down)
            if counter == COUNTER_PASSED:
                if status is FlagStatus.CONFIRMED:
                    status = FlagStatus.HEALED
                elif status is FlagStatus.PENDING:
                    status = FlagStatus.INACTIVE
        healed = flag.status is status is FlagStatus.HEALED
        if healed and counter == COUNTER_PASSED and t_ns - flag.since_ns >= AGING_NS:
            status, cause, values = FlagStatus.INACTIVE, "", {}
        since_ns = flag.since_ns if status is flag.status else t_ns
        return FlagState(row.code, status, counter, occurrences, since_ns, cause, values)

    def _tell(self, i: int, flag: FlagState, frame: int, t_ns: int) -> Transition | None:
        """Transition to report, unless the flag flutters: a new pair waits for `STORAGE_NS`."""
        before, opened_ns = self._told[i]
        status = before if flag.status is FlagStatus.PENDING else flag.status
        opens = status is FlagStatus.CONFIRMED
        if status is before or (opens and t_ns - opened_ns < STORAGE_NS):
            return None
        self._told[i] = (status, t_ns if opens else opened_ns)
        return Transition(frame, t_ns, flag.code, before.value, status.value, flag.cause, flag.values)


def _terms(consistency: Consistency | None) -> dict[str, float]:
    """How far the two views agree: it is told with every flag (design D9)."""
    if consistency is None:
        return {}
    c = consistency
    terms = {"consistency": c.score, "rho": c.rho, "agreement": c.agreement, "coherence": c.coherence}
    return {name: term for name, term in terms.items() if term is not None}
