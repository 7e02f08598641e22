//! The integration tests: one binary, a module per topic. They act as an operator does, see `harness`.

mod harness;

// Agents that instrument an application by themselves.
mod agents;
// A worker that cannot answer is not alive, whatever its loop does.
mod alive;
// A bad release cannot take the service down.
mod broken;
// Programs whose exec hangs.
mod held_execs;
// What teams bring along from Gunicorn.
mod brought_along;
// The first workers of a release beside the old ones.
mod canary;
// What a configuration leads to, and what people from other servers are told.
mod configuration;
// The commands of an operator and the socket they talk through.
mod control;
// Configurations of Gunicorn and uWSGI, converted.
mod convert;
// What a request costs: allocations, system calls, memory.
mod cost;
// Threads, fork handlers and agents, and children of the application.
mod forks;
// Output, exit codes, the control socket and whom it hears.
mod doors;
// What a death took along, and what it came of.
mod deaths;
// `forkmaster dev`.
mod development;
// The documentation and the examples are held to the program.
mod docs;
// Every command of the documentation is run.
mod documented;
// No deploy waits for what an earlier one left behind.
mod deploys;
// Every way in which a request can end: its client, its line, the counts.
mod ends;
// Every answer is its own request's, whatever clients, the application and deploys do.
mod stress;
// How answers end, what their clients see, and what the access log says.
mod endings;
// The way back while it imports nothing.
mod kept;
// What clients get of requests that take too long.
mod overdue;
// What a generation's processes see: environment, user, umask, file systems.
mod environment;
// Connections that go from worker to worker.
mod handoff;
// Where slow requests are: the slow log and dumps.
mod hangs;
// Workers and templates that die, hang or grow.
mod healing;
// Applications and neighbours that want more than they may have.
mod hostile;
// Functions and commands at moments of the service's life.
mod hooks;
// What was deployed when, and how it went.
mod history;
// HTTP/1.1 to the letter, PROXY headers, large bodies.
mod http;
// Ids of requests.
mod ids;
// What whoever starts the master leaves to it.
mod launched;
// Addresses, bound once and kept.
mod listeners;
// A worker's own lines never hold it up.
mod lines;
// Limits of the machine: too few open files.
mod limits;
// How lines look, and which requests have one.
mod log_forms;
// The access log and the error log, their files, and probes of health.
mod logs;
// Clients of a paused service who are told so.
mod maintenance;
// Who comes behind a crowd of costly requests.
mod order;
// The status page.
mod page;
// The wheel.
mod packaging;
// Clients wait, and nobody is refused.
mod pause;
// Whatever comes in each phase of a paused reload.
mod paused_phases;
// A generation is one thing, whatever happens to symlinks and files meanwhile.
mod pin;
// A container in which only shared memory is writable.
mod pods;
// What a proxy says of its clients, nginx and HAProxy themselves.
mod proxies;
// A reload that is refused changes nothing.
mod refusals;
mod refused;
// A reload loses nothing.
mod reload;
// A release answers first what the one before it has answered.
mod rehearsal;
// What workers may, and who may ask the master.
mod rights;
// What served before can be had back.
mod rollback;
// Rolls in waves.
mod rolling;
// Frameworks, clients and threads.
mod serving;
// Programs that belong to the deploy, also those with sockets of their own.
mod service_sockets;
mod services;
// The configuration file: what is refused and with which words.
mod settings;
// What kubelet and Prometheus ask the master.
mod probes;
// What a service manager is told, and what it passes.
mod supervised;
// Signals to the master, its workers and its terminal.
mod signals;
// What an operator sees while it runs.
mod seeing;
// Who has waited too long for a thread.
mod shedding;
// Slow and hostile clients cost nothing.
mod slow;
// What a first start finds by itself, and whom it blames.
mod starting;
// The end: TERM, a second TERM, a killed master.
mod stop;
// Another binary takes over, and nobody notices.
mod upgrade;
// Deploys while processes are killed at random.
mod storm;
// Bodies that go to the application as they come.
mod streaming;

// Circus, Supervisor, runit, s6, and no supervisor at all.
mod supervisors;

// systemd itself, as PID 1.
mod systemd;
// The rules of the house that a program can check.
mod tidy;
// Logs that nobody reads, look-ups that hang, files that the application has a hand in: nothing of it stops the master.
mod unwaiting;
// Clients and masters of other versions.
mod versions;
// What an operator asks of the engine in flight.
mod verbs;
// PEP 3333 in every form.
mod wsgi;
// What a newcomer does wrong, and what is said to it.
mod wrong_starts;
