//! `convert`: a configuration of Gunicorn's or uWSGI's becomes one of forkmaster's, which `check` calls good. What cannot be
//! taken stands in it as a comment with the reason; what would not work at all ends the conversion without a file.

mod cron;
mod draft;
mod evaluate;
mod flags;
mod gunicorn;
mod imports;
mod ini;
mod uwsgi;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::config::process_context::ProcessContext;
use crate::config::{self, discovery, ConfigFile, Overrides, Source};
use crate::exit_code::ExitCode;
use crate::verbs::output;
use draft::Draft;

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    pub from: Option<ConfigFile>,
    /// The file to write.
    pub to: ConfigFile,
    /// Gunicorn's command line.
    pub flags: Vec<String>,
    /// Which Python executes a gunicorn.conf.py.
    pub python: Option<PathBuf>,
    /// It may be executed as root.
    pub yes: bool,
}

/// Options in a variable, which Gunicorn takes before those of its command line.
const CMD_ARGS: &str = "GUNICORN_CMD_ARGS";

/// Each reading of a draft drops at least one setting, and there are not so many.
const ROUNDS_MAX: usize = 100;

pub fn run(order: &Order, context: &ProcessContext) -> ExitCode {
    match convert(order, context) {
        Ok(told) => {
            output::print(told);
            ExitCode::Done
        }
        Err(refused) => {
            output::complain(format_args!("nothing was written: {refused}"));
            ExitCode::Refused
        }
    }
}

fn convert(order: &Order, context: &ProcessContext) -> Result<String, String> {
    let mut draft = Draft::default();
    let flags = flags::read(&order.flags)?;
    let is_uwsgi = order.from.as_ref().is_some_and(|from| from.path.extension().is_some_and(|suffix| suffix == "ini"));
    let variable = context.environment.get(OsStr::new(CMD_ARGS)).filter(|text| !text.is_empty() && !is_uwsgi);
    let flags = match variable {
        Some(text) => {
            draft.warn(format!("{CMD_ARGS} is taken in here; forkmaster itself does not read it, so remove it."));
            flags::read(&flags::split(&text.to_string_lossy()))?.below(flags)
        }
        None => flags,
    };
    let named = flags.settings.get("config").map(|meant| meant.text());
    let named = named.map(|name| name.trim_start_matches("file:").to_owned());
    if let Some(module) = named.as_ref().and_then(|name| name.strip_prefix("python:")) {
        let file = module.replace('.', "/");
        return Err(format!("-c python:{module} is a module, and convert reads its file: write -c {file}.py"));
    }
    let from = order
        .from
        .clone()
        .or_else(|| named.map(|shown| ConfigFile { path: context.absolute(Path::new(&shown)), shown }));
    let here = from.as_ref().and_then(|from| from.path.parent()).unwrap_or(&context.cwd).to_owned();
    let suffix = from.as_ref().and_then(|from| from.path.extension()).and_then(|suffix| suffix.to_str());
    match (&from, suffix) {
        (None, _) if flags.settings.is_empty() => {
            return Err("name a gunicorn.conf.py or a uwsgi.ini, or write Gunicorn's flags after `--`".to_owned());
        }
        (None, _) => gunicorn::convert(&evaluate::Evaluated::default(), &flags, &mut draft)?,
        (Some(from), Some("py")) => {
            let evaluated = evaluate_as_caller(from, &here, order, context)?;
            gunicorn::convert(&evaluated, &flags, &mut draft)?;
        }
        (Some(from), Some("ini")) => {
            let text = fs::read_to_string(&from.path).map_err(|error| format!("{}: {error}", from.shown))?;
            let entries = ini::read(&text, &from.path);
            if entries.is_empty() {
                return Err(format!("{}: there is no section [uwsgi] in it with settings", from.shown));
            }
            uwsgi::convert(&entries, &mut draft)?;
            let release = draft.value("app", "release").map(|value| value.trim_matches('"').to_owned());
            let release = here.join(release.unwrap_or_default());
            let lines = imports::of_uwsgi(&release);
            if !lines.is_empty() {
                draft.warn(format!(
                    "The application imports `uwsgi`, which only uWSGI's own process has; these lines need another way:\n{}",
                    lines.join("\n")
                ));
            }
        }
        (Some(from), _other) => {
            return Err(format!(
                "{}: convert knows gunicorn.conf.py by its `.py` and uwsgi.ini by its `.ini`. Gunicorn's command line in a \
                 Procfile, a unit, a Dockerfile or a Compose file goes after `--`: forkmaster convert -- gunicorn -w 4 \
                 shop.wsgi. uWSGI's XML, YAML and JSON say the same as an .ini: write it so",
                from.shown
            ));
        }
    }
    find_application(&mut draft, &here, from.as_ref())?;
    if !draft.has("http", "max_body") {
        draft.set_text("http", "max_body", "100MiB");
        let comment =
            "There was no limit. Here a larger body is answered with 413: write more where uploads are larger.";
        draft.comment("http", "max_body", comment);
    }
    let what = from.as_ref().map_or("Gunicorn's command line", |from| from.shown.as_str());
    let head = format!(
        "Converted from {what} by forkmaster {}. `forkmaster check -c {}` reads it as a start would.",
        env!("CARGO_PKG_VERSION"),
        order.to.shown
    );
    let written = write(order, context, &mut draft, &head)?;
    let mut told = format!("{}: written, and good\n", order.to.shown);
    if let Some(secrets) = written {
        told.push_str(&format!(
            "{}: written, with the values of the environment; only you can read it\n",
            secrets.display()
        ));
    }
    if !draft.left_out.is_empty() {
        told.push_str(&format!("not taken, with the reasons at the end of the file: {}\n", draft.left_out.len()));
    }
    for loud in &draft.loud {
        output::complain(format_args!("warning: {loud}"));
    }
    Ok(told)
}

/// A Gunicorn configuration is a program: it runs with the rights of whoever converts it, and as root only if told so.
fn evaluate_as_caller(
    from: &ConfigFile,
    here: &Path,
    order: &Order,
    context: &ProcessContext,
) -> Result<evaluate::Evaluated, String> {
    if context.uid == 0 && !order.yes {
        return Err(format!(
            "{} is a program, and it would run as root: convert it as the user that runs Gunicorn, or add --yes",
            from.shown
        ));
    }
    if !from.path.is_file() {
        return Err(format!("there is no file {}", from.path.display()));
    }
    let python = match &order.python {
        Some(python) => python.clone(),
        None => config::python_for(here, context)?,
    };
    evaluate::evaluate(&python, &from.path).map_err(|said| {
        format!(
            "{} cannot be executed by {}. It needs what it has where Gunicorn runs: its variables, and its Python, which --python \
             names. It says:\n{said}",
            from.shown,
            python.display()
        )
    })
}

/// Gunicorn's application mostly stands on its command line.
fn find_application(draft: &mut Draft, here: &Path, from: Option<&ConfigFile>) -> Result<(), String> {
    if draft.has("app", "module") {
        return Ok(());
    }
    let release = draft.value("app", "release").map(|value| value.trim_matches('"').to_owned());
    let release = here.join(release.unwrap_or_default());
    match discovery::find(&release) {
        Some(found) => {
            draft.set_text("app", "module", &found.module);
            draft.comment("app", "module", format!("Not in what was converted, but {}.", found.how));
            Ok(())
        }
        None => {
            let file = from.map_or_else(String::new, |from| format!(" {}", from.shown));
            Err(format!(
                "which application? It stands on Gunicorn's command line, so write that after `--`: forkmaster convert{file} \
                 -- shop.wsgi:app"
            ))
        }
    }
}

/// Writes the file and what is secret. Whatever a reading of it calls wrong on this machine becomes a remark; the rest is
/// good. Returns the file of the secrets.
fn write(order: &Order, context: &ProcessContext, draft: &mut Draft, head: &str) -> Result<Option<PathBuf>, String> {
    let shown = &order.to.shown;
    let exists = |error: io::Error, shown: &str| match error.kind() {
        io::ErrorKind::AlreadyExists => format!("{shown} is there already; -c names another file to write"),
        _other => format!("{shown} cannot be written: {error}"),
    };
    let path = order.to.path.as_path();
    let secrets = path.with_extension("env");
    let mut made = Made::default();
    made.file(path, 0o644).map_err(|error| exists(error, shown))?;
    if !draft.secrets.is_empty() {
        let mut file = made.file(&secrets, 0o600).map_err(|error| exists(error, &secrets.display().to_string()))?;
        let lines: Vec<String> = draft.secrets.iter().map(|(name, value)| env_line(name, value)).collect();
        file.write_all(lines.concat().as_bytes()).map_err(|error| exists(error, &secrets.display().to_string()))?;
        draft.set_text("app", "env_file", &secrets.file_name().unwrap_or_default().to_string_lossy());
    }
    let source = Source { file: Some(order.to.clone()), overrides: Overrides::default() };
    for _round in 0..ROUNDS_MAX {
        fs::write(path, draft.text(head)).map_err(|error| exists(error, shown))?;
        let Err(problems) = config::read(&source, context, None) else {
            made.0.clear();
            return Ok((!draft.secrets.is_empty()).then_some(secrets));
        };
        let lines: BTreeMap<usize, String> =
            problems.iter().filter_map(|problem| Some((problem.line()?, problem.reason()))).collect();
        // From the end, so that the lines above stay where they are.
        let mut dropped = false;
        for (number, reason) in lines.into_iter().rev() {
            if draft.is_application(number, head) {
                return Err(format!("the application cannot be taken: {reason}"));
            }
            dropped |= draft.drop_line(number, head, &reason);
        }
        if !dropped {
            // What is missing may be what was taken out.
            let dropped: String = draft.dropped().map(|loud| format!("\n{loud}")).collect();
            return Err(format!("the configuration would not be good: {problems}{dropped}"));
        }
    }
    Err("the configuration would not be good".to_owned())
}

/// Files that go again where the conversion ends without success.
#[derive(Default)]
struct Made(Vec<PathBuf>);

impl Made {
    fn file(&mut self, path: &Path, mode: u32) -> io::Result<File> {
        let file = File::options().write(true).create_new(true).mode(mode).open(path)?;
        self.0.push(path.to_owned());
        Ok(file)
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for path in &self.0 {
            if let Err(error) = fs::remove_file(path) {
                output::complain(format_args!("{} stays: {error}", path.display()));
            }
        }
    }
}

/// As `env_file` reads it.
fn env_line(name: &str, value: &str) -> String {
    if value.contains(['\'', '\n']) {
        let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        return format!("{name}=\"{value}\"\n");
    }
    format!("{name}='{value}'\n")
}
