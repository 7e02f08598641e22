"""A generator of 100 pieces, of a length that the server does not know beforehand."""

PIECE = b"y" * 1024
LARGE_PIECE = b"z" * 50_000


def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return (PIECE for _ in range(100))


def attacked(environ, start_response):
    """Something small, and a generator of 5 MB for attackers."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    if environ["PATH_INFO"] == "/large":
        return (LARGE_PIECE for _ in range(100))
    return [b"small"]
