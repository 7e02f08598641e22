# What a tutorial says.
bind = "localhost:8000"
workers = 1
reload = True
reload_extra_files = ["shop/templates"]
loglevel = "debug"
accesslog = "-"
spew = False
check_config = False
wsgi_app = "shop.wsgi:application"
