"""What is measured. A scenario is a name, what it asks of the servers, and the figure that counts."""

import dataclasses
import os

HERE = os.path.dirname(os.path.abspath(__file__))


@dataclasses.dataclass(frozen=True)
class Scenario:
    name: str
    app: str = "plain:hello"
    connections: int = 32
    workers: int = 1
    threads: int = 1
    close: bool = False
    # A body to POST, in bytes.
    post: int = 0
    # throughput (by wrk), mixed, idle, start, memory
    kind: str = "throughput"
    # Whether the floor, which only says hello, is a limit here.
    floor: bool = True
    options: dict = dataclasses.field(default_factory=dict)


SCENARIOS = [
    Scenario("hello keep-alive"),
    Scenario("hello close", close=True),
    Scenario("hello 1 connection", connections=1),
    Scenario("hello 256 connections", connections=256),
    Scenario("hello 2000 connections", connections=2000),
    Scenario("hello 4 threads", threads=4),
    Scenario("hello access log", options={"access_log": True}),
    Scenario("hello 2 workers", workers=2, floor=False),
    Scenario("flask json", app="flask_json:application", floor=False),
    Scenario("django json", app="django_json:application", floor=False),
    Scenario("body 64 kB", app="plain:body_64k", floor=False),
    Scenario("memory 5 MB", app="plain:memory_5m", connections=8, floor=False),
    Scenario("file_wrapper 5 MB", app="plain:file_5m", connections=8, floor=False),
    Scenario("post 1 kB", app="plain:upload", post=1024, floor=False),
    Scenario("post 200 kB", app="plain:upload", post=200_000, floor=False),
    Scenario("post 50 MB", app="plain:upload", post=50_000_000, connections=2, floor=False),
    Scenario("100 pieces", app="plain:pieces_100", floor=False),
    Scenario("sleep 5 ms, 8 threads", app="plain:sleep_5ms", threads=8, floor=False),
    Scenario("mixed keep-alive", app="plain:mixed", workers=4, kind="mixed", floor=False),
    Scenario("mixed close", app="plain:mixed", workers=4, kind="mixed", close=True, floor=False),
    Scenario("10000 idle connections", kind="idle", floor=False),
    Scenario("start", kind="start", floor=False),
    Scenario("4 django workers", app="django_json:application", workers=4, kind="memory", floor=False),
    Scenario(
        "4 django workers preloaded",
        app="django_json:application",
        workers=4,
        kind="memory",
        floor=False,
        options={"preload": True},
    ),
]


def post_script(directory, length):
    """wrk takes a body from Lua only."""
    path = os.path.join(directory, f"post-{length}.lua")
    with open(path, "w") as file:
        file.write(
            f'wrk.method = "POST"\nwrk.body = string.rep("x", {length})\n'
            'wrk.headers["Content-Type"] = "application/octet-stream"\n'
        )
    return path
