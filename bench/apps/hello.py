"""The least an application can do. Its import is nearly nothing, so that the start of it is the start of the server."""

BODY = b"Hello, World!"


def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "13")])
    return [BODY]
