"""Runs scenarios side by side: in each round every server is started, warmed, measured and stopped, one after the
other, so that whatever the machine does otherwise hits all of them. Medians over rounds, with their spread."""

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import tempfile
import time

import load
import report
from scenarios import SCENARIOS, post_script
from servers import COMMANDS, ONE_PROCESS, ONE_THREAD, DidNotStart, Server

WARM_UP_S = 1


def can(server, scenario):
    if server == "floor":
        return scenario.floor
    if scenario.options and server != "forkmaster" and not (scenario.options.get("preload") and "gunicorn" in server):
        return False
    if scenario.workers > 1 and server in ONE_PROCESS:
        return False
    return not (scenario.threads > 1 and server in ONE_THREAD)


def measure(name, scenario, seconds, directory):
    """The figures of one server in one round."""
    with Server(name, scenario.app, scenario.workers, scenario.threads, **scenario.options) as server:
        if scenario.kind == "start":
            return {"first_answer_s": server.first_answer}
        if scenario.kind == "memory":
            for _ in range(40):
                load.hold_idle(server.port, 1)
            return {"pss_bytes": server.pss_bytes()}
        if scenario.kind == "idle":
            before = server.pss_bytes()
            held = load.hold_idle(server.port, 10_000)
            after = server.pss_bytes()
            for client in held:
                client.close()
            return {"bytes_per_connection": (after - before) / len(held)}
        if scenario.kind == "mixed":
            return load.mixed(server.port, seconds, keep_alive=not scenario.close)
        script = post_script(directory, scenario.post) if scenario.post else None
        arguments = (scenario.connections, script, "/", scenario.close)
        load.wrk(server.port, WARM_UP_S, *arguments)
        before = server.cpu_seconds()
        seen = load.wrk(server.port, seconds, *arguments)
        cpu = server.cpu_seconds() - before
        return {
            "per_second": seen.per_second,
            "cpu_us": cpu / max(seen.requests, 1) * 1e6,
            "p50": seen.p50,
            "p99": seen.p99,
            "errors": seen.errors,
        }


def run(scenario, servers, rounds, seconds, directory):
    results = {name: [] for name in servers if can(name, scenario)}
    failures = {}
    for round_ in range(rounds):
        for name in list(results):
            if name in failures:
                continue
            print(f"{scenario.name}: round {round_ + 1} of {rounds}, {name}    ", end="\r", file=sys.stderr)
            try:
                results[name].append(measure(name, scenario, seconds, directory))
            except (DidNotStart, RuntimeError, OSError) as error:
                failures[name] = f"{type(error).__name__}: {error}"
    return {
        "scenario": scenario.name,
        "kind": scenario.kind,
        "servers": {name: summary(figures) for name, figures in results.items() if figures and name not in failures},
        "failures": failures,
    }


def summary(figures):
    keys = figures[0].keys()
    values = {key: [figure[key] for figure in figures] for key in keys}
    return {
        key: {"median": statistics.median(value), "low": min(value), "high": max(value)} for key, value in values.items()
    }


def machine():
    with open("/proc/cpuinfo") as cpuinfo:
        model = next((line.split(":")[1].strip() for line in cpuinfo if line.startswith("model name")), "unknown")
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "processor": model,
        "processors": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def main():
    parser = argparse.ArgumentParser(description="Measures forkmaster beside its peers.")
    parser.add_argument("scenarios", nargs="*", help="names or parts of them; all without")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--servers", default=",".join(COMMANDS), help="comma-separated")
    parser.add_argument("--out", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "results"))
    parser.add_argument("--list", action="store_true")
    arguments = parser.parse_args()
    chosen = [s for s in SCENARIOS if not arguments.scenarios or any(part in s.name for part in arguments.scenarios)]
    if arguments.list:
        print("\n".join(scenario.name for scenario in chosen))
        return
    # Ten thousand connections are as many descriptors on this side.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.makedirs(arguments.out, exist_ok=True)
    facts = machine()
    print(f"{facts['date']}, {facts['processors']} x {facts['processor']}, Linux {facts['kernel']}, Python {facts['python']}\n")
    with tempfile.TemporaryDirectory(prefix="forkmaster-bench-") as directory:
        for scenario in chosen:
            result = run(scenario, arguments.servers.split(","), arguments.rounds, arguments.seconds, directory)
            result["machine"], result["rounds"] = facts, arguments.rounds
            print(report.table(result), flush=True)
            stem = os.path.join(arguments.out, scenario.name.replace(" ", "-").replace(",", ""))
            with open(stem + ".json", "w") as file:
                json.dump(result, file, indent=1)
            with open(stem + ".svg", "w") as file:
                file.write(report.picture(result))


if __name__ == "__main__":
    main()
