"""What is measured. A scenario is a name, what it asks of the servers, and the kind of figure that counts."""

import dataclasses

# Variants of forkmaster that are measured beside it, in the same rounds, so that their ratio is one of the same minute.
FOUR_THREADS = {"4 threads": {"threads": 4}}
SPOOLED = {"by a file": {"stream_bodies": "never"}}
AS_DEPLOYED = {"defaults": {"defaults": True}, "access log": {"access_log": True}}


@dataclasses.dataclass(frozen=True)
class Scenario:
    name: str
    # throughput, looked at, mixed, random slow, slow readers, uploads, herd, alternating, ticker, balance, idle, memory, start, reload, take
    # over, respawn: kinds.py
    kind: str = "throughput"
    app: str = "hello:application"
    # Each server is started once and measured with these in turn. Only the first is for the slow peers.
    connections: tuple = (32,)
    workers: int = 1
    threads: int = 1
    close: bool = False
    preload: bool = False
    # A body to POST, in bytes.
    body: int = 0
    # How much longer than others it is measured: where few requests are done in a second, each of them counts much.
    longer: int = 1
    # A pause of the clients between requests, where they are ours.
    pause_s: float = 0.0
    # The share of slow requests among theirs.
    slow_share: float = 0.0
    # nginx in front, with one connection a request to the server ("close"), or connections that it keeps ("keep-alive").
    nginx: str = ""
    # Whether the floor, which only says hello, is a limit here.
    floor: bool = False
    slow_peers: bool = False
    # Whether uWSGI takes part with its router too, which serves many keep-alive connections and copies every byte.
    router: bool = False
    # The application called in a loop, or imported, without a server.
    python_alone: bool = False
    # Whether the application says at /closed if the server calls close() of its answers, as PEP 3333 demands.
    tells_closed: bool = False
    # What no server can surpass, where it is known.
    ideal_per_second: float = 0.0
    variants: dict = dataclasses.field(default_factory=dict)

    def titles(self):
        """The name of the result with each number of connections: the first has the scenario's own."""
        for connections in self.connections:
            more = f" {connections} connection{'s' if connections > 1 else ''}"
            yield connections, self.name + ("" if connections == self.connections[0] else more)


DJANGO = "django_json:application"
COUNTED = "counted:application"
INSTANCE, INSTANCE_DJANGO = "instance:application", "instance_django:application"

SCENARIOS = [
    Scenario(
        "hello keep-alive",
        connections=(32, 1, 256, 2000),
        floor=True,
        slow_peers=True,
        router=True,
        variants=FOUR_THREADS | AS_DEPLOYED,
    ),
    Scenario(
        "hello close",
        connections=(32, 1, 128, 256, 2000),
        close=True,
        floor=True,
        slow_peers=True,
        variants=AS_DEPLOYED,
    ),
    Scenario("hello 2 workers", workers=2),
    Scenario("hello 4 workers", workers=4),
    Scenario("hello close 4 workers", connections=(32, 128), workers=4, close=True),
    Scenario("hello behind nginx", nginx="close", close=True),
    Scenario("hello behind nginx that keeps connections", nginx="keep-alive"),
    Scenario("looked at 30 times a second", kind="looked at", longer=8),
    Scenario("flask json", app="flask_json:application", python_alone=True, router=True, variants=FOUR_THREADS),
    Scenario(
        "django json", app=DJANGO, python_alone=True, router=True, tells_closed=True, variants=FOUR_THREADS
    ),
    Scenario("download 64 kB", app="large:body_64k"),
    Scenario("download 5 MB", app="large:body_5m", connections=(8,)),
    Scenario("file_wrapper 5 MB", app="large:file_5m", connections=(8,)),
    Scenario("post 1 kB", app="upload:application", body=1_000),
    Scenario("post 200 kB", app="upload:application", body=200_000),
    Scenario(
        "post 50 MB", app="upload:application", body=50_000_000, connections=(2,), longer=3, variants=SPOOLED
    ),
    Scenario("100 pieces", app="pieces:application", router=True),
    Scenario(
        "sleep 5 ms in 8 threads",
        app="sleeper:five_ms",
        threads=8,
        longer=2,
        slow_peers=True,
        router=True,
        ideal_per_second=8 / 0.005,
    ),
    Scenario(
        "wait 2 ms, compute 300 us in 8 threads",
        app="sleeper:database",
        threads=8,
        longer=2,
        # The interpreter's lock lets one thread compute at a time.
        ideal_per_second=1 / 0.0003,
    ),
    Scenario("waits and computes in turn", kind="alternating", app="sleeper:alternating", threads=8, longer=2),
    Scenario(
        "0.3 % slow, pauses of 20 ms",
        kind="random slow",
        app="sleeper:mixed",
        workers=4,
        pause_s=0.020,
        slow_share=0.003,
        longer=8,
        slow_peers=True,
    ),
    Scenario(
        "0.3 % slow, pauses of 5 ms",
        kind="random slow",
        app="sleeper:mixed",
        workers=4,
        pause_s=0.005,
        slow_share=0.003,
        longer=8,
        slow_peers=True,
    ),
    Scenario("1000 slow readers of 5 MB", kind="slow readers", app="pieces:attacked", workers=2, close=True),
    Scenario("32 uploads of 60 MB", kind="uploads", app="upload:beside", longer=2),
    Scenario("1 idle worker", kind="herd", close=True, slow_peers=True),
    Scenario("64 idle workers", kind="herd", close=True, workers=64, slow_peers=True),
    Scenario(
        "mixed keep-alive",
        kind="mixed",
        app="sleeper:mixed",
        workers=4,
        pause_s=0.005,
        longer=2,
        slow_peers=True,
        router=True,
    ),
    Scenario(
        "mixed close",
        kind="mixed",
        app="sleeper:mixed",
        workers=4,
        close=True,
        pause_s=0.005,
        longer=2,
        slow_peers=True,
    ),
    Scenario("background thread", kind="ticker", app="ticker:application"),
    Scenario("balance keep-alive", kind="balance", app=COUNTED, workers=4, router=True),
    Scenario("balance keep-alive with pauses", kind="balance", app=COUNTED, workers=4, pause_s=0.005, router=True),
    Scenario("balance close", kind="balance", app=COUNTED, workers=4, close=True),
    Scenario("10000 idle connections", kind="idle", slow_peers=True, router=True),
    Scenario("4 django workers", kind="memory", app=DJANGO, workers=4, close=True, slow_peers=True),
    Scenario(
        "4 django workers preloaded", kind="memory", app=DJANGO, workers=4, close=True, preload=True, slow_peers=True
    ),
    Scenario("start", kind="start", close=True, python_alone=True, slow_peers=True),
    Scenario("start django", kind="start", app=DJANGO, close=True, python_alone=True, slow_peers=True),
    Scenario("reload", kind="reload", app=INSTANCE, close=True, python_alone=True, slow_peers=True),
    Scenario("reload django", kind="reload", app=INSTANCE_DJANGO, close=True, python_alone=True, slow_peers=True),
    Scenario(
        "reload 8 workers", kind="take over", app="instance_sleeps:application", workers=8, close=True, slow_peers=True
    ),
    Scenario("respawn django", kind="respawn", app=INSTANCE_DJANGO, close=True, python_alone=True, slow_peers=True),
    Scenario(
        "respawn django preloaded", kind="respawn", app=INSTANCE_DJANGO, close=True, preload=True, slow_peers=True
    ),
]
