# Long reports, no limits.
bind = ["0.0.0.0:5000", "[::]:5000"]
workers = 4
threads = 60
timeout = 86400
graceful_timeout = 300
keepalive = 0
limit_request_line = 0
limit_request_fields = 200
limit_request_field_size = 16380
forwarded_allow_ips = "*"
secure_scheme_headers = {"X-FORWARDED-PROTO": "https"}
wsgi_app = "shop.wsgi:application"
reload = False
