# As images of containers compute it: a variable, or else a value of the file's own.
import multiprocessing
import os

concurrency = os.getenv("CONCURRENCY")
workers = int(concurrency) if concurrency else max(2, multiprocessing.cpu_count())
host = os.getenv("HOST", "0.0.0.0")
port = os.getenv("HTTP_PORT", "80")
bind_all = os.getenv("BIND_ALL")
bind = bind_all if bind_all else f"{host}:{port}"
timeout = int(os.getenv("WORKER_TIMEOUT") or 90)
worker_class = "egg:gunicorn#sync"
preload_app = "True"
certfile = os.getenv("TLS_CERTIFICATE")
wsgi_app = "shop.wsgi:application"

for name, value in os.environ.items():
    if name.startswith("GUNICORN_THAT_NOBODY_HAS_"):
        globals()[name[25:].lower()] = value
