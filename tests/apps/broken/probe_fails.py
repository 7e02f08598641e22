"""Imports well and fails every request."""


def application(environ, start_response):
    body = b"the database is not there"
    start_response("500 Internal Server Error", [("Content-Length", str(len(body)))])
    return [body]
