"""Needs a package that its virtualenv does not have."""

import package_that_nobody_installed


def application(environ, start_response):
    start_response("200 OK", [("Content-Length", "0")])
    return [package_that_nobody_installed.BODY]
