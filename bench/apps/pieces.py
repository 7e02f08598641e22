"""A generator of 100 pieces, of a length that the server does not know beforehand."""

PIECE = b"y" * 1024


def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return (PIECE for _ in range(100))
