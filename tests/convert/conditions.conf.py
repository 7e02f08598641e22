# Variables that decide rather than being values, and what the file sets only in some cases.
import os
from pathlib import Path

HERE = Path(__file__).resolve().parent
ENV = os.getenv("DEPLOY_ENV", "staging")
env = {"A": "1"}

bind: str = f"unix://{HERE}/run/shop.sock"
umask: int = 0o007
workers: int = 4
threads = 8 if ENV == "production" else 2
max_requests = int(os.getenv("WEB_MAX_REQUESTS", 0)) or 500
backlog = int(os.environ["WEB_BACKLOG"]) if "WEB_BACKLOG" in os.environ else 512
level = {"quiet": "error", "usual": "info"}[os.environ.get("WEB_NOISE", "usual")]
loglevel = level
chdir = HERE / "site"
wsgi_app = "shop.wsgi:application"
dirty_workers = 1
if os.environ.get("WEB_DEBUG") == "true":
    workers = 1
    reload = True
elif os.getenv("STATSD"):
    statsd_host = os.environ["STATSD"]
