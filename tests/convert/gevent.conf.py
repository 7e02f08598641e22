import multiprocessing

bind = "127.0.0.1:5000"
workers = multiprocessing.cpu_count()
worker_class = "gevent"
worker_connections = 1000
wsgi_app = "shop.wsgi:application"
