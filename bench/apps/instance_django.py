"""As instance.py, for an application that takes its time to import."""

import django_json
import instance

application = instance.marked(django_json.application)
