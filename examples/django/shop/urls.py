from django.contrib import admin
from django.contrib.staticfiles.urls import staticfiles_urlpatterns
from django.urls import path

from catalogue import views

urlpatterns = [
    path("", views.index),
    path("healthz", views.healthz),
    path("connections", views.connections),
    path("admin/", admin.site.urls),
]
# The admin's stylesheets, where no nginx serves them. Only with DEBUG.
urlpatterns += staticfiles_urlpatterns()
