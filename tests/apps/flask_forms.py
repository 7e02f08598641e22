"""What of Flask depends on the server: streaming, chunked bodies, files, the scheme, clients that leave."""

import tempfile
import threading

from flask import Flask, Response, request, send_file

application = Flask(__name__)
GO = threading.Semaphore(0)
LEFT = []

FILE = tempfile.NamedTemporaryFile(suffix=".txt")
FILE.write(b"0123456789" * 20000)
FILE.flush()


@application.get("/stream")
def stream():
    def generate():
        for number in range(4):
            yield "step %d\n" % number
            if not GO.acquire(timeout=20):
                yield "nobody said go\n"

    return Response(generate(), mimetype="text/plain")


@application.get("/go")
def go():
    GO.release()
    return "gone"


@application.post("/echo")
def echo():
    return request.get_data()


@application.get("/file")
def file():
    return send_file(FILE.name, conditional=True)


@application.get("/secure")
def secure():
    return str(request.is_secure)


@application.get("/endless")
def endless():
    def generate():
        try:
            while True:
                yield b"x" * 65536
        finally:
            LEFT.append(1)

    return Response(generate(), mimetype="text/plain")


@application.get("/left")
def left():
    return str(len(LEFT))
