"""The command: which scenarios, how many rounds, where the results go. `bench/run` prepares what it needs."""

import argparse
import json
import os
import resource
import sys

import beside
import figures
import machine
import must_hold
import picture
import report
from rounds import Rounds
from scenarios import SCENARIOS
from servers import COMMANDS, add_before


def arguments():
    parser = argparse.ArgumentParser(prog="bench/run", description="Measures forkmaster beside its peers.")
    parser.add_argument("scenarios", nargs="*", help="names or parts of them; all without")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each measurement, after the warm-up")
    parser.add_argument("--servers", help="comma-separated; all without")
    parser.add_argument("--before", metavar="BINARY", help="an older forkmaster, measured twice in the same rounds")
    parser.add_argument("--slices", action="store_true", help="with --before: both binaries at once, in short slices")
    parser.add_argument("--out", default=os.path.join(machine.HERE, "results"))
    parser.add_argument("--list", action="store_true", help="names the scenarios")
    parser.add_argument("--summary", action="store_true", help="judges the results that are there, measures nothing")
    return parser.parse_args()


def main():
    asked = arguments()
    chosen = [s for s in SCENARIOS if not asked.scenarios or any(part in s.name for part in asked.scenarios)]
    if asked.list:
        print("\n".join(scenario.name for scenario in chosen))
    elif asked.summary:
        summarize(stored(asked.out), asked.out)
    elif asked.slices:
        in_slices([scenario for scenario in chosen if scenario.kind == "throughput"], asked)
    else:
        summarize(measure(chosen, asked), asked.out)


def allow_connections():
    """Ten thousand connections are as many descriptors, on both sides."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def in_slices(chosen, asked):
    if not asked.before:
        raise SystemExit("bench: --slices compares with an older binary: please name it with --before BINARY")
    allow_connections()
    add_before(os.path.abspath(asked.before))
    machine.pin_load()
    os.makedirs(asked.out, exist_ok=True)
    print(beside.write(chosen, asked.rounds, asked.out, machine.sentence(machine.facts())))


def measure(chosen, asked):
    allow_connections()
    if asked.before:
        add_before(os.path.abspath(asked.before))
    # The older ones are the point of --before, whatever else is chosen.
    before = [name for name in COMMANDS if name.startswith("forkmaster before")]
    servers = asked.servers.split(",") + before if asked.servers else list(COMMANDS)
    machine.pin_load()
    os.makedirs(asked.out, exist_ok=True)
    facts = machine.facts()
    print(f"{machine.sentence(facts)}. {machine.versions(facts)}.\n", flush=True)
    results = []
    for scenario in chosen:
        rounds = Rounds(scenario, servers)
        least_s = rounds.least_s(asked.rounds, asked.seconds)
        print(f"{scenario.name}: measures for {least_s:.0f} s, and starts and stops servers besides", file=sys.stderr)
        rounds.run(asked.rounds, asked.seconds)
        for result in rounds.results(facts, asked.rounds):
            print(report.table(result), flush=True)
            write(asked.out, result)
            results.append(result)
    return results


def stem(out, title):
    return os.path.join(out, title.replace(" ", "-"))


def write(out, result):
    with open(stem(out, result.name) + ".json", "w") as file:
        json.dump(result.data, file, indent=1)
        file.write("\n")
    with open(stem(out, result.name) + ".svg", "w") as file:
        file.write(picture.svg(result))


def stored(out):
    """The results of earlier runs, in the order of the scenarios."""
    results = []
    for scenario in SCENARIOS:
        for _, title in scenario.titles():
            path = stem(out, title) + ".json"
            if os.path.exists(path):
                with open(path) as file:
                    results.append(figures.Result(json.load(file)))
    return results


def summarize(results, out):
    verdicts = must_hold.judge(results)
    text = must_hold.table(verdicts, results)
    print(text)
    with open(os.path.join(out, "summary.md"), "w") as file:
        file.write(text)
    with open(os.path.join(out, "summary.json"), "w") as file:
        json.dump([verdict.data() for verdict in verdicts], file, indent=1)
        file.write("\n")
    with open(os.path.join(out, "tables.md"), "w") as file:
        file.write("\n".join(report.table(result) for result in results))


if __name__ == "__main__":
    main()
