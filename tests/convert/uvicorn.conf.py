import os

bind = os.getenv("BIND", "0.0.0.0:8000")
workers = int(os.getenv("API_WORKERS", "2"))
worker_class = os.getenv("WORKER_CLASS", "uvicorn.workers.UvicornWorker")
keepalive = 120
