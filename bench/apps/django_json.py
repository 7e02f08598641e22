"""A Django application in one file that answers JSON, with the middleware of `startproject` that needs no database."""

import django
from django.conf import settings
from django.core.signals import request_finished
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse, JsonResponse
from django.urls import path

settings.configure(
    SECRET_KEY="bench",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    MIDDLEWARE=[
        "django.middleware.security.SecurityMiddleware",
        "django.middleware.common.CommonMiddleware",
        "django.middleware.clickjacking.XFrameOptionsMiddleware",
    ],
)
django.setup()


def index(request):
    return JsonResponse({"message": "Hello, World!", "numbers": list(range(10))})


def count_finished(**_):
    global finished
    finished += 1


def closed(request):
    """How many requests the server has closed since this was first asked: before that nobody counts."""
    request_finished.connect(count_finished)
    return HttpResponse(str(finished))


finished = 0
urlpatterns = [path("", index), path("closed", closed)]
application = get_wsgi_application()
