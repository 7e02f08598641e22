"""Reads a body to its end and says how long it was."""


def application(environ, start_response):
    # No more than was promised is read: PEP 3333 does not demand an end of the stream, and some servers have none.
    stream, left = environ["wsgi.input"], int(environ.get("CONTENT_LENGTH") or 0)
    read = 0
    while left:
        piece = stream.read(min(left, 65_536))
        if not piece:
            break
        read += len(piece)
        left -= len(piece)
    body = str(read).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


def beside(environ, start_response):
    """The same, and hello for those who send nothing."""
    if environ["REQUEST_METHOD"] == "POST":
        return application(environ, start_response)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "13")])
    return [b"Hello, World!"]
