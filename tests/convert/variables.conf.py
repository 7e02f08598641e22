# A container that is told by its environment.
import multiprocessing
import os

bind = f"0.0.0.0:{os.environ.get('PORT', '8000')}"
workers = int(os.getenv("WEB_CONCURRENCY", multiprocessing.cpu_count() * 2 + 1))
threads = int(os.getenv("PYTHON_MAX_THREADS", "1"))
timeout = int(os.getenv("GUNICORN_TIMEOUT", "120"))
loglevel = os.getenv("LOG_LEVEL", "WARNING").lower()
max_requests = int(os.getenv("GUNICORN_MAX_REQUESTS", 1000))
max_requests_jitter = max_requests // 10
preload_app = os.getenv("PRELOAD", "true") == "true"
wsgi_app = "shop.wsgi:application"
worker_tmp_dir = "/dev/shm"
