"""Three pages: the catalogue, a check for the probe, and how many database connections this process has made."""

import os
import threading

from django.db import connection
from django.db.backends.signals import connection_created
from django.http import HttpResponse, JsonResponse

from .models import Product

made = []
connection_created.connect(lambda **_: made.append(threading.get_ident()), weak=False)


def index(request):
    products = ["{} {}".format(product.name, product.price) for product in Product.objects.all()]
    return HttpResponse("\n".join(products) + "\n", content_type="text/plain; charset=utf-8")


def healthz(request):
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    return HttpResponse("ok\n", content_type="text/plain")


def connections(request):
    Product.objects.count()
    return JsonResponse({"pid": os.getpid(), "thread": threading.get_ident(), "made": len(made)})
