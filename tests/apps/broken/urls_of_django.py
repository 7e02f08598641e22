"""The broken URLconf of django_urls.py."""

from django.urls import path

import views_that_were_renamed

urlpatterns = [path("", views_that_were_renamed.index)]
