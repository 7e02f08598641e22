# prometheus_client in many processes.
from prometheus_that_is_there import multiprocess

bind = "0.0.0.0:8000"
workers = 2
wsgi_app = "shop.wsgi:application"


def child_exit(server, worker):
    multiprocess.mark_process_dead(worker.pid)


def when_ready(server):
    multiprocess.serve(8001)
