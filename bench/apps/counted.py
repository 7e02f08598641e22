"""Hello that counts its requests in a file named for its process, where they can be read while it serves."""

import mmap
import os

import hello

_count = None


def application(environ, start_response):
    # Not at the import: workers that are forked after it must not share a file.
    global _count
    if _count is None:
        with open(os.path.join(os.environ["BENCH_DIRECTORY"], f"count-{os.getpid()}"), "w+b") as file:
            file.truncate(8)
            _count = memoryview(mmap.mmap(file.fileno(), 8)).cast("Q")
    _count[0] += 1
    return hello.application(environ, start_response)
