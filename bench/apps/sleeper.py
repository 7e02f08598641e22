"""Applications that wait, as for a database."""

import time

import hello


def five_ms(environ, start_response):
    time.sleep(0.005)
    return hello.application(environ, start_response)


def mixed(environ, start_response):
    """200 ms for /slow, nothing for the rest."""
    if environ["PATH_INFO"] == "/slow":
        time.sleep(0.2)
    return hello.application(environ, start_response)


def compute(seconds):
    """So much processor time of this thread, whoever else is on the processor meanwhile."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def database(environ, start_response):
    """Waits for 2 ms and computes for 300 us."""
    time.sleep(0.002)
    compute(0.0003)
    return hello.application(environ, start_response)


def alternating(environ, start_response):
    """/wait waits for 5 ms, /compute computes for 300 us, / does one of the two, each for a second."""
    path = environ["PATH_INFO"]
    if path == "/wait" or path == "/" and int(time.monotonic()) % 2:
        time.sleep(0.005)
    else:
        compute(0.0003)
    return hello.application(environ, start_response)
