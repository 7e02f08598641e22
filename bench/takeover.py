"""A reload of many workers as clients see it who ask all the time: when it is over, how long the longest of them waited,
and whether the old release answered anybody after the new one had."""

import dataclasses
import os
import signal
import subprocess
import threading
import time

import clients

CLIENTS = 4
PAUSE_S = 0.002
# From the first answer of the new release on, without one of the old: then it is over.
QUIET_S = 1.0
DEADLINE_S = 30


@dataclasses.dataclass
class Seen:
    begun: float
    ended: float
    # None: the request failed.
    release: str | None


class Watch:
    """Clients that ask, each on one connection after the other, until they are told to stop."""

    def __init__(self, port):
        self.port, self.seen, self.over = port, [], threading.Event()
        self.threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(CLIENTS)]
        for thread in self.threads:
            thread.start()

    def _ask(self):
        while not self.over.wait(PAUSE_S):
            begun, release = time.monotonic(), None
            try:
                release = clients.ask(self.port).header("X-Instance").split()[0]
            except OSError:
                pass
            self.seen.append(Seen(begun, time.monotonic(), release))

    def until_quiet(self, begun):
        """Waits until only the new release answers."""
        while time.monotonic() < begun + DEADLINE_S:
            seen = list(self.seen)
            old = max((one.ended for one in seen if one.release == "1"), default=begun)
            if any(one.release == "2" for one in seen) and time.monotonic() > old + QUIET_S:
                return
            time.sleep(0.05)
        raise TimeoutError(f"the old release still answers after {DEADLINE_S} s")

    def stop(self):
        self.over.set()
        for thread in self.threads:
            thread.join()
        return self.seen


def take_over(server):
    """Figures of one reload to release 2."""
    watch = Watch(server.port)
    time.sleep(0.2)
    server.release("2")
    begun = time.monotonic()
    committed_s = None
    if server.name.startswith("forkmaster"):
        command = [server.binary, "reload", "--socket", os.path.join(server.directory, "control.sock")]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        committed_s = time.monotonic() - begun
    else:
        os.kill(server.process.pid, signal.SIGHUP)
    watch.until_quiet(begun)
    seen = watch.stop()
    answers = [one for one in seen if one.release]
    first_new = min(one.ended for one in answers if one.release == "2")
    last_old = max((one.ended for one in answers if one.release == "1"), default=begun)
    return {
        # Nobody else says when it is over.
        "seconds": committed_s if committed_s is not None else max(first_new, last_old) - begun,
        "longest_s": max(one.ended - one.begun for one in answers if one.ended > begun),
        "old_after_new": sum(one.release == "1" and one.begun > first_new for one in answers),
        "failed": sum(one.release is None for one in seen),
    }
