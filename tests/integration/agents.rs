//! Agents that instrument an application by themselves: forkmaster is started through their own command, as their manuals
//! say for Gunicorn. They start threads before any fork and register fork handlers, wrap the application and its
//! answers. With and without `preload` the service starts, serves Flask with a trace of the agent's, and reloads.
//!
//! Nothing is sent out: every agent is pointed at a closed port of this machine.

use std::path::Path;

use crate::harness::for_each_preload;
use crate::harness::machine::Machine;
use crate::harness::master::Launch;
use crate::harness::site::Site;

/// Discard, RFC 863: nobody listens there.
const NOBODY: &str = "http://127.0.0.1:9";

struct Agent {
    /// As `tests/run` has installed it.
    name: &'static str,
    /// In the virtualenv's bin directory.
    command: &'static [&'static str],
    /// Comes before anything else in the application.
    prelude: &'static str,
    /// Python: whether the agent follows the request that runs.
    traces: &'static str,
    env: &'static [(&'static str, &'static str)],
}

const DDTRACE: Agent = Agent {
    name: "ddtrace",
    command: &["ddtrace-run"],
    prelude: "from ddtrace.trace import tracer",
    traces: "tracer.current_span() is not None",
    env: &[
        ("DD_TRACE_AGENT_URL", NOBODY),
        ("DD_AGENT_HOST", "127.0.0.1"),
        ("DD_DOGSTATSD_PORT", "9"),
        // Each a thread more.
        ("DD_RUNTIME_METRICS_ENABLED", "true"),
        ("DD_REMOTE_CONFIGURATION_ENABLED", "true"),
    ],
};

const AGENTS: [Agent; 7] = [
    Agent { name: "ddtrace-2", prelude: "from ddtrace import tracer", ..DDTRACE },
    Agent { name: "ddtrace-3", ..DDTRACE },
    Agent { name: "ddtrace-4", ..DDTRACE },
    Agent {
        name: "opentelemetry",
        command: &["opentelemetry-instrument"],
        prelude: "from opentelemetry import trace",
        traces: "trace.get_current_span().get_span_context().is_valid",
        env: &[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", NOBODY),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
            // Seconds: at its end a process tries that long to send the rest.
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "1"),
        ],
    },
    Agent {
        name: "sentry",
        command: &[],
        prelude: "import sentry_sdk\n\
                  sentry_sdk.init('http://key@127.0.0.1:9/1', traces_sample_rate=1.0, enable_logs=True)",
        traces: "sentry_sdk.get_current_span() is not None",
        env: &[],
    },
    Agent {
        name: "newrelic",
        command: &["newrelic-admin", "run-program"],
        prelude: "import newrelic.agent",
        traces: "newrelic.agent.current_transaction() is not None",
        env: &[
            ("NEW_RELIC_LICENSE_KEY", "0123456789012345678901234567890123456789"),
            ("NEW_RELIC_HOST", "127.0.0.1"),
            ("NEW_RELIC_PORT", "9"),
            ("NEW_RELIC_OTLP_HOST", "127.0.0.1"),
            ("NEW_RELIC_APP_NAME", "test"),
            // The first request waits until the agent is ready, and is traced.
            ("NEW_RELIC_STARTUP_TIMEOUT", "10"),
            // Its own mode for tests: harvests as always and connects to nobody.
            ("NEW_RELIC_DEVELOPER_MODE", "true"),
        ],
    },
    Agent {
        name: "elastic",
        command: &["elasticapm-run"],
        prelude: "from elasticapm.traces import execution_context",
        traces: "execution_context.get_transaction() is not None",
        env: &[
            ("ELASTIC_APM_SERVER_URL", NOBODY),
            ("ELASTIC_APM_SERVICE_NAME", "test"),
            ("ELASTIC_APM_CLOUD_PROVIDER", "none"),
        ],
    },
];

fn application(agent: &Agent, release: &str) -> String {
    let Agent { prelude, traces, .. } = agent;
    format!(
        "{prelude}\n\
         from flask import Flask\n\
         application = Flask(__name__)\n\
         @application.get('/')\n\
         def index():\n\
         \x20   return '{release}', 200, {{'X-Release': '{release}', 'X-Traced': str({traces})}}\n"
    )
}

/// Starts, serves, reloads, serves the other release, and ends.
fn try_agent(name: &str) {
    let agent = AGENTS.iter().find(|agent| agent.name == name).expect("it is in the list");
    let Some(venv) = Machine::get().agent(name) else { return };
    for_each_preload(|preload| {
        let site = Site::new(&format!("agent_{name}_{preload}"));
        for release in ["1", "2"] {
            site.build(release).bare().file("app.py", &application(agent, release)).make();
        }
        site.flip("1");
        site.set("app.venv", &format!("{:?}", venv.display().to_string()));
        site.set("app.preload", preload).set("server.threads", "2");
        let mut launch = Launch { through: command(agent, venv), ..Launch::default() };
        for (variable, value) in agent.env {
            launch = launch.env(variable, value);
        }
        let master = site.launch(launch);
        master.wait_serving();
        let serves = |release: &str| {
            for _ in 0..4 {
                let answer = master.get("/");
                assert_eq!((answer.status, answer.text().as_str()), (200, release), "{name}");
                assert_eq!(answer.header("X-Traced"), Some("True"), "{name} does not follow the request");
            }
        };
        serves("1");
        site.flip("2");
        master.reload();
        serves("2");
        let refused = master.log_lines(" ERROR ");
        assert!(refused.is_empty(), "{name}: {refused:#?}");
        master.stop();
    });
}

fn command(agent: &Agent, venv: &Path) -> Vec<String> {
    let mut words: Vec<String> = agent.command.iter().map(|word| word.to_string()).collect();
    if let Some(program) = words.first_mut() {
        *program = venv.join("bin").join(&program).display().to_string();
    }
    words
}

#[test]
fn ddtrace_2() {
    try_agent("ddtrace-2");
}

#[test]
fn ddtrace_3() {
    try_agent("ddtrace-3");
}

#[test]
fn ddtrace_4() {
    try_agent("ddtrace-4");
}

#[test]
fn opentelemetry() {
    try_agent("opentelemetry");
}

#[test]
fn sentry() {
    try_agent("sentry");
}

#[test]
fn newrelic() {
    try_agent("newrelic");
}

#[test]
fn elastic() {
    try_agent("elastic");
}

/// A test that cannot be run proves nothing: of the seven at least these must have been there.
#[test]
fn agents_that_must_have_been_tried() {
    let missing: Vec<&str> =
        AGENTS.iter().map(|agent| agent.name).filter(|name| Machine::get().agent(name).is_none()).collect();
    let optional = ["ddtrace-2"];
    assert!(missing.iter().all(|name| optional.contains(name)), "`tests/run` could not install {missing:?}");
}
