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
