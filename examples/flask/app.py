"""A Flask application: a page, JSON in and out, an upload and a stream."""

import hashlib
import time

from flask import Flask, Response, jsonify, request

app = Flask(__name__)


@app.get("/healthz")
def healthz():
    return "ok\n"


@app.get("/hello/<name>")
def hello(name):
    return "Hello, {}!\n".format(name)


@app.post("/sum")
def add():
    return jsonify(total=sum(request.get_json()["numbers"]))


@app.post("/upload")
def upload():
    file = request.files["file"]
    return jsonify(name=file.filename, sha256=hashlib.sha256(file.read()).hexdigest())


@app.get("/countdown")
def countdown():
    def lines():
        for number in (3, 2, 1):
            yield "{}\n".format(number)
            time.sleep(0.1)

    return Response(lines(), mimetype="text/plain")
