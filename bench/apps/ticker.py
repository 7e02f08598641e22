"""Hello beside a Python thread that ticks every 10 ms, as the threads of Sentry, ddtrace and APScheduler do."""

import threading
import time

import hello

PERIOD_S = 0.01


class Ticker(threading.Thread):
    def __init__(self):
        super().__init__(daemon=True)
        self.ticks, self.worst, self.due = 0, 0.0, time.monotonic() + PERIOD_S

    def run(self):
        while True:
            time.sleep(PERIOD_S)
            now = time.monotonic()
            self.worst, self.ticks = max(self.worst, now - self.due), self.ticks + 1
            self.due = time.monotonic() + PERIOD_S

    def take(self):
        """Ticks and the worst lateness since the last call. A tick that is overdue counts as late as it is by now."""
        ticks, worst = self.ticks, max(self.worst, time.monotonic() - self.due)
        self.ticks, self.worst = 0, 0.0
        return ticks, worst


_ticker = None


def application(environ, start_response):
    # Not at the import: a thread does not survive the fork of a server that forks after it.
    global _ticker
    if _ticker is None:
        _ticker = Ticker()
        _ticker.start()
    if environ["PATH_INFO"] != "/late":
        return hello.application(environ, start_response)
    body = "{} {:.9f}".format(*_ticker.take()).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
