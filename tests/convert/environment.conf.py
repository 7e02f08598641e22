# Settings of the application, some of them secret.
chdir = "@ROOT@/site"
pythonpath = "@ROOT@/site,@ROOT@/lib"
raw_env = ["DJANGO_SETTINGS_MODULE=shop.settings", "SECRET_KEY=it's $ecret", "EMPTY="]
wsgi_app = "shop.wsgi:application"
bind = "127.0.0.1:8001"
workers = 3
user = "nobody-of-that-name"
proc_name = "shop web"
statsd_host = "localhost:8125"
logconfig_dict = {"version": 1}
certfile = "/etc/ssl/shop.pem"
keyfile = "/etc/ssl/shop.key"
