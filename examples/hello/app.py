"""The smallest application that shows what serves it."""

import os
import sys


def application(environ, start_response):
    body = "Hello from Python {}.{}.{}, worker {}, {}\n".format(
        *sys.version_info[:3], os.getpid(), environ["PATH_INFO"]
    ).encode()
    start_response(
        "200 OK",
        [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))],
    )
    return [body]
