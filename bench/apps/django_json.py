"""A Django application in one file that answers JSON, with the middleware of `startproject` that needs no database."""

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import JsonResponse
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


urlpatterns = [path("", index)]
application = get_wsgi_application()
