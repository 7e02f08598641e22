# Threads, and hooks that only log.
import multiprocessing

bind = "unix:@ROOT@/run/shop.sock"
workers = min(multiprocessing.cpu_count() * 2 + 1, 8)
worker_class = "gthread"
threads = 4
timeout = 120
graceful_timeout = 30
keepalive = 5
max_requests = 2000
max_requests_jitter = 100
preload_app = True
accesslog = "@ROOT@/log/access.log"
errorlog = "@ROOT@/log/error.log"
capture_output = True
enable_stdio_inheritance = True
pidfile = "@ROOT@/run/shop.pid"
umask = 0o007
wsgi_app = "shop.wsgi"


def on_starting(server):
    """Called before the master starts."""
    server.log.info("starting")


def post_fork(server, worker):
    from shop import database

    database.engine.dispose()


def worker_abort(worker):
    worker.log.warning("aborted")
