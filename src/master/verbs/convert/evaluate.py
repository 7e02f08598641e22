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
goes_through = False


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
        self.note(name)
        return name in self.variables

    def __setitem__(self, name, value):
        self.variables[name] = value

    def __delitem__(self, name):
        del self.variables[name]

    def __iter__(self):
        global goes_through
        goes_through = True
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
goes_through = False
names = {"__file__": path, "__name__": "gunicorn.conf"}
exec(compile(source, path, "exec"), names)
went_through = goes_through


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


def imports_of(body):
    """Which names stand for what, as `module:attribute` or `module:`."""
    names = {}
    for statement in body:
        if isinstance(statement, ast.ImportFrom) and statement.module and not statement.level:
            for alias in statement.names:
                names[alias.asname or alias.name] = f"{statement.module}:{alias.name}"
        elif isinstance(statement, ast.Import):
            for alias in statement.names:
                names[alias.asname or alias.name.split(".")[0]] = (alias.name if alias.asname else alias.name.split(".")[0]) + ":"
    return names


def text_of(node):
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def hook_of(function, imported):
    """What a hook comes to, where it is simple: it only logs, marks a process as dead, runs a command, or calls a function."""
    hook = {"logs": False, "marks": False, "command": None, "function": None}
    imported = {**imported, **imports_of(function.body)}
    rest = [node for node in function.body if not is_logging(node) and not isinstance(node, (ast.Import, ast.ImportFrom))]
    hook["logs"] = not rest
    if len(rest) != 1 or not isinstance(rest[0], ast.Expr) or not isinstance(rest[0].value, ast.Call):
        return hook
    call = rest[0].value
    words = ast.unparse(call.func)
    hook["marks"] = words.endswith("mark_process_dead")
    first = call.args[0] if call.args else None
    if words in ("subprocess.run", "subprocess.call", "subprocess.check_call", "subprocess.Popen") and isinstance(first, ast.List):
        items = [text_of(item) for item in first.elts]
        if items and None not in items:
            hook["command"] = items
    elif words == "os.system" and text_of(first):
        hook["command"] = ["sh", "-c", text_of(first)]
    if not call.args and not call.keywords:
        name, _, attributes = words.partition(".")
        place = imported.get(name, "")
        if place and not place.endswith(":"):
            hook["function"] = place + ("." + attributes if attributes else "")
        elif place and attributes:
            hook["function"] = place + attributes
    return hook


found, imported = {}, imports_of(ast.parse(source).body)
# The values of a name as they are written, and under which conditions; and what depends on variables of the environment.
written, depends = {}, {"environ", "getenv"}


def reads_variables(node):
    for part in ast.walk(node):
        word = part.id if isinstance(part, ast.Name) else part.attr if isinstance(part, ast.Attribute) else None
        if word in depends:
            return True
    return False


def follow(body, conditions):
    """Notes assignments. A condition is None where it reads no variables."""
    for statement in body:
        targets = []
        if isinstance(statement, ast.Assign):
            targets = statement.targets
        elif isinstance(statement, (ast.AnnAssign, ast.AugAssign)) and statement.value is not None:
            targets = [statement.target]
        for target in [name for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]:
            written.setdefault(target.id, []).append((conditions, ast.unparse(statement.value)))
            if conditions or reads_variables(statement.value):
                depends.add(target.id)
        if isinstance(statement, ast.FunctionDef):
            if not conditions:
                found[statement.name] = hook_of(statement, imported)
            if reads_variables(statement):
                depends.add(statement.name)
        elif isinstance(statement, (ast.If, ast.While)):
            under = [ast.unparse(statement.test)] if reads_variables(statement.test) else []
            follow(statement.body, conditions + under)
            follow(statement.orelse, conditions + [f"not ({test})" for test in under])
        elif isinstance(statement, (ast.For, ast.With)):
            under = [ast.unparse(statement.iter)] if isinstance(statement, ast.For) and reads_variables(statement.iter) else []
            follow(statement.body, conditions + under)
        elif isinstance(statement, ast.Try):
            for part in (statement.body, statement.orelse, statement.finalbody, *[one.body for one in statement.handlers]):
                follow(part, conditions)


follow(ast.parse(source).body, [])


def as_written(name):
    """`4`, or `4; if os.getenv('DEBUG'): 1`"""
    shown = []
    for conditions, value in written[name]:
        shown.append(f"if {' and '.join(conditions)}: {value}" if conditions else value)
    return "; ".join(shown[-3:])


def plain(value):
    if isinstance(value, (list, tuple, set)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return os.fspath(value) if isinstance(value, os.PathLike) else repr(value)


settings, hooks = {}, {}
for name, value in names.items():
    if name.startswith("_") or isinstance(value, type(os)):
        continue
    if callable(value) and not isinstance(value, type):
        hooks[name] = found.get(name, {})
    elif isinstance(value, type):
        settings[name] = f"{value.__module__}.{value.__qualname__}"
    else:
        settings[name] = plain(value)
json.dump(
    {
        "settings": settings,
        "hooks": hooks,
        "reads": reads,
        "sources": {name: as_written(name) for name in written},
        "depends": sorted(depends),
        "absent": {name: as_written(name) for name in written if name not in names},
        "went_through": went_through,
    },
    out,
)
