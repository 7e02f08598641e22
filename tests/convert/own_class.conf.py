class TracingWorker:
    pass


bind = "0.0.0.0:8000"
worker_class = TracingWorker
wsgi_app = "shop.wsgi:application"
