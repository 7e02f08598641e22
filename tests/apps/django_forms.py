"""What of Django depends on the server: streaming, chunked bodies, files, the scheme, clients that leave."""

import sys
import tempfile
import threading

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import FileResponse, HttpResponse, StreamingHttpResponse
from django.urls import path

GO = threading.Semaphore(0)
LEFT = []

FILE = tempfile.NamedTemporaryFile(suffix=".txt")
FILE.write(b"0123456789" * 20000)
FILE.flush()


def stream(request):
    def generate():
        for number in range(4):
            yield "step %d\n" % number
            if not GO.acquire(timeout=20):
                yield "nobody said go\n"

    return StreamingHttpResponse(generate(), content_type="text/plain")


def go(request):
    GO.release()
    return HttpResponse("gone")


def echo(request):
    return HttpResponse(request.body)


def file(request):
    return FileResponse(open(FILE.name, "rb"))


def secure(request):
    return HttpResponse(str(request.is_secure()))


def endless(request):
    def generate():
        try:
            while True:
                yield b"x" * 65536
        finally:
            LEFT.append(1)

    return StreamingHttpResponse(generate(), content_type="text/plain")


def left(request):
    return HttpResponse(str(len(LEFT)))


urlpatterns = [path(view.__name__, view) for view in (stream, go, echo, file, secure, endless, left)]

settings.configure(
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=sys.modules[__name__],
    SECRET_KEY="of a test",
    MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
)
django.setup()
application = get_wsgi_application()
