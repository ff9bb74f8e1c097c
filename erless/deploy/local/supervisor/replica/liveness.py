"""Whether a replica hangs, judged by its answers and by what its process does meanwhile.

A dead process is seen at once; one that lives and answers nobody is not. Silence alone proves
little on a busy machine, so the kernel is asked as well:

- a process that was stopped (SIGSTOP, SIGTTIN, …) serves nobody until somebody continues it;
- one whose main thread sleeps, which has not used any CPU, and which leaves a question unanswered
  all that time waits for something that does not come: its event loop is blocked;
- one that works, waits for a CPU or for a disk may only be slow, and gets much more time.

Where the supervisor itself was stopped or starved, every replica looks silent: samples that lie far
apart conclude nothing.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from erless.deploy.local.supervisor.spec import Timing

__all__ = ["STOPPED", "Liveness", "ProcessSample", "read_process"]

STAT_BYTES = 1024
STATE, USER_TICKS, SYSTEM_TICKS = 0, 11, 12  # fields of /proc/PID/stat behind the command's name
STOPPED, ASLEEP = "T", "S"
AWAY_S = 1.0  # two samples further apart than this, beyond their interval, conclude nothing


class ProcessSample(NamedTuple):
    """The state of a process's main thread, and the CPU time that all of its threads have used."""

    state: str
    cpu_ticks: int


def read_process(pid: int) -> ProcessSample | None:
    """Sample a process; None where it is gone."""
    try:
        descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            text = os.read(descriptor, STAT_BYTES)
        finally:
            os.close(descriptor)
    except OSError:
        return None
    fields = text.rpartition(b")")[2].split()
    return ProcessSample(
        fields[STATE].decode(), int(fields[USER_TICKS]) + int(fields[SYSTEM_TICKS])
    )


class Liveness:
    """Observations of one replica. `now_s` is any clock that only goes forward."""

    def __init__(self, timing: Timing, now_s: float) -> None:
        self._timing = timing
        self.heard_s = now_s  # when it answered last
        self.unanswered = False  # the last question has not been answered
        self._sampled_s = now_s
        self._cpu_ticks = -1
        self._stopped_since_s: float | None = None
        self._quiet_since_s: float | None = None

    def heard(self, now_s: float) -> None:
        """The replica has answered."""
        self.heard_s, self.unanswered, self._quiet_since_s = now_s, False, None

    def judge(self, sample: ProcessSample, now_s: float, *, answers: bool = True) -> str:
        """Why the replica has to be replaced; empty where it need not.

        Args:
            sample: its process now.
            now_s: the time of the sample.
            answers: the replica is in a phase in which it owes answers.
        """
        timing = self._timing
        away = now_s - self._sampled_s > timing.sample_s + AWAY_S
        worked, self._cpu_ticks = sample.cpu_ticks != self._cpu_ticks, sample.cpu_ticks
        self._sampled_s = now_s
        if away:
            self._stopped_since_s = self._quiet_since_s = None
            self.heard_s = now_s
        self._stopped_since_s = (
            (self._stopped_since_s or now_s) if sample.state == STOPPED else None
        )
        if not answers or not self.unanswered or worked or sample.state != ASLEEP:
            self._quiet_since_s = None
        elif self._quiet_since_s is None:
            self._quiet_since_s = now_s
        if self._stopped_since_s is not None and now_s - self._stopped_since_s >= timing.stopped_s:
            return "it was stopped by a signal"
        if self._quiet_since_s is not None and now_s - self._quiet_since_s >= timing.hung_s:
            return f"it hangs: asleep, and no answer for {now_s - self.heard_s:.1f} s"
        if answers and now_s - self.heard_s > timing.silence_s:
            return f"no answer for {now_s - self.heard_s:.0f} s"
        return ""
