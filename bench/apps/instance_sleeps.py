"""As instance.py, for an import that waits for something else: a database, a remote configuration."""

import time

import hello
import instance

time.sleep(0.5)

application = instance.marked(hello.application)
