# Hooks of every kind.
import logging
import subprocess

from shop.tasks import start_tracing

bind = "0.0.0.0:8000"
keepalive = 0
raw_env = ["SCRIPT_NAME=/shop"]
wsgi_app = "shop.wsgi:application"
preload_app = True


def on_starting(server):
    subprocess.run(["flask", "db", "upgrade"])


def post_worker_init(worker):
    worker.log.info("tracing begins")
    start_tracing()


def worker_exit(server, worker):
    server.flush(worker)


def when_ready(server):
    subprocess.run(["sh", "-c", "echo $HOSTNAME serves"], check=True)


def on_exit(server):
    logging.info("gone")


def pre_request(worker, req):
    req.started = 1
