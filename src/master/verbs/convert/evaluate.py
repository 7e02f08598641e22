# Executes a Gunicorn configuration file and prints, as JSON, what it sets and which variables it read. Arguments: the file,
# the number of CPUs it is to see, and variables as JSON that stand above the real ones.
import ast
import collections.abc
import json
import multiprocessing
import os
import sys

path, cpus, above = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
out, sys.stdout = sys.stdout, sys.stderr
reads = {}


class Environ(collections.abc.MutableMapping):
    """Looks like os.environ, and records who is asked for."""

    def __init__(self, variables):
        self.variables = variables

    def note(self, name, default=None):
        reads.setdefault(name, None if default is None else str(default))

    def __getitem__(self, name):
        self.note(name)
        return self.variables[name]

    def get(self, name, default=None):
        self.note(name, default)
        return self.variables.get(name, default)

    def __contains__(self, name):
        return name in self.variables

    def __setitem__(self, name, value):
        self.variables[name] = value

    def __delitem__(self, name):
        del self.variables[name]

    def __iter__(self):
        return iter(self.variables)

    def __len__(self):
        return len(self.variables)

    def setdefault(self, name, default=None):
        self.note(name, default)
        return self.variables.setdefault(name, default)

    def copy(self):
        return dict(self.variables)


os.environ = Environ({**os.environ, **above})
os.cpu_count = multiprocessing.cpu_count = lambda: cpus
os.sched_getaffinity = lambda pid: set(range(cpus))
sys.path.insert(0, os.getcwd())
sys.argv = ["gunicorn"]

with open(path, encoding="utf-8") as file:
    source = file.read()
names = {"__file__": path, "__name__": "gunicorn.conf"}
exec(compile(source, path, "exec"), names)


def is_logging(statement):
    """A statement that only says something: a call of a logger or of print, a docstring, pass."""
    if isinstance(statement, ast.Pass):
        return True
    if not isinstance(statement, ast.Expr):
        return False
    call = statement.value
    if isinstance(call, ast.Constant):
        return True
    if not isinstance(call, ast.Call):
        return False
    words = ast.unparse(call.func).lower()
    return words == "print" or ".log." in words or words.startswith(("log.", "logger.", "logging."))


sources, only_logs = {}, set()
for node in ast.parse(source).body:
    if isinstance(node, ast.Assign):
        for target in node.targets:
            if isinstance(target, ast.Name):
                sources[target.id] = ast.unparse(node.value)
    elif isinstance(node, ast.FunctionDef) and all(map(is_logging, node.body)):
        only_logs.add(node.name)


def plain(value):
    if isinstance(value, (list, tuple, set)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return repr(value)


settings, hooks = {}, {}
for name, value in names.items():
    if name.startswith("_") or isinstance(value, type(os)):
        continue
    if callable(value) and not isinstance(value, type):
        hooks[name] = name in only_logs
    elif isinstance(value, type):
        settings[name] = f"{value.__module__}.{value.__qualname__}"
    else:
        settings[name] = plain(value)
json.dump({"settings": settings, "hooks": hooks, "reads": reads, "sources": sources}, out)
