"""An application without a server: `in_process.py call APP SECONDS` prints the processor time of a call in a loop with
a prepared environ, `in_process.py import APP` the time of its import. What a server takes beyond that is its own."""

import importlib
import io
import json
import os
import sys
import time

sys.path[0] = os.path.join(os.path.dirname(os.path.abspath(__file__)), "apps")

# What a server makes of wrk's request.
ENVIRON = {
    "REQUEST_METHOD": "GET",
    "SCRIPT_NAME": "",
    "PATH_INFO": "/",
    "QUERY_STRING": "",
    "SERVER_NAME": "127.0.0.1",
    "SERVER_PORT": "8000",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "REMOTE_ADDR": "127.0.0.1",
    "REMOTE_PORT": "40000",
    "HTTP_HOST": "127.0.0.1:8000",
    "wsgi.version": (1, 0),
    "wsgi.url_scheme": "http",
    "wsgi.errors": sys.stderr,
    "wsgi.multithread": False,
    "wsgi.multiprocess": True,
    "wsgi.run_once": False,
}


def load(app):
    module, name = app.split(":")
    return getattr(importlib.import_module(module), name)


def start_response(status, headers, exc_info=None):
    return None


def call_for(application, seconds):
    """Calls, and their processor time."""
    calls, end, begun = 0, time.monotonic() + seconds, time.process_time()
    while time.monotonic() < end:
        answer = application({**ENVIRON, "wsgi.input": io.BytesIO()}, start_response)
        for _ in answer:
            pass
        if hasattr(answer, "close"):
            answer.close()
        calls += 1
    return calls, time.process_time() - begun


def main():
    what, app = sys.argv[1:3]
    begun = time.perf_counter()
    application = load(app)
    if what == "import":
        print(json.dumps({"seconds": time.perf_counter() - begun}))
        return
    call_for(application, 0.5)
    calls, cpu_s = call_for(application, float(sys.argv[3]))
    print(json.dumps({"per_second": calls / cpu_s, "cpu_us": cpu_s / calls * 1e6}))


if __name__ == "__main__":
    main()
