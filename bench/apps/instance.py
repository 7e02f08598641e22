"""Answers that tell which release and which process gave them, in a header: `X-Instance: RELEASE PID`."""

import os

import hello

# What a deploy changes: read at the import, as code is.
with open(os.path.join(os.environ["BENCH_DIRECTORY"], "release")) as file:
    RELEASE = file.read()


def marked(application):
    def with_header(environ, start_response):
        def start(status, headers, exc_info=None):
            return start_response(status, [*headers, ("X-Instance", f"{RELEASE} {os.getpid()}")], exc_info)

        return application(environ, start)

    return with_header


application = marked(hello.application)
