"""Imports well and sends everybody away, as a Django project with SECURE_SSL_REDIRECT does."""


def application(environ, start_response):
    start_response("301 Moved Permanently", [("Location", "https://localhost/"), ("Content-Length", "0")])
    return []
