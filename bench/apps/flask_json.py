"""A Flask application that answers JSON."""

from flask import Flask, jsonify

application = Flask(__name__)


@application.route("/")
def index():
    return jsonify(message="Hello, World!", numbers=list(range(10)))
