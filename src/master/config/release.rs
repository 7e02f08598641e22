//! What belongs to a release: its directory, its interpreter, and the environment in which it runs. The directory is
//! followed once and pinned; `venv`, `python` and `pythonpath` are relative to it.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use forkmaster_wire::alias::Alias;
use forkmaster_wire::message::Application;

use super::callable::{check_module, parse_application, show_application};
use super::directory::DirectoryId;
use super::discovery;
use super::environment::{self, BadLine, Environment, MISLEAD_THE_INTERPRETER};
use super::file::{self, quoted, Value, Written};
use super::identity::{find_group, find_user, run_as};
use super::interpreter;
use super::layers::Entry;
use super::probe;
use super::problem::Problem;
use super::process_context::absolute;
use super::read::LATER;
use super::resolver::Resolver;
use super::revision;
use super::settings::{App, Identity, Interpreter};
use super::values::{boolean, id_text, is_word, quoted_path, string, toml_key};
use super::Origin;
use crate::files::Rights;

impl Resolver<'_> {
    pub fn env_file(&mut self) {
        let key = ("app", "env_file");
        let Some(Entry { value, origin }) = self.entry(key) else {
            return;
        };
        let written = match string(&value) {
            Ok(text) => PathBuf::from(text),
            Err(reason) => return self.problem(key, &value, &origin, &reason),
        };
        let path = absolute(&self.place.real, &written);
        self.note(key, quoted_path(&path), origin.clone());
        self.env_file_at = Some(path.clone());
        let link = self.link_in(&written);
        let read = match link.and_then(|link| Some((link, self.rights_of_workers()?))) {
            Some((link, rights)) => {
                file::read_text_as(&path, &rights, format!("{} is a symbolic link", link.display()))
            }
            None => file::read_text(&path),
        };
        let text = match read {
            Ok((text, _)) => text,
            Err(reason) => return self.problem(key, &value, &origin, &reason),
        };
        match environment::parse_env_file(&text) {
            Ok(variables) => {
                for (name, value) in variables {
                    self.explicit.push(name.clone().into());
                    self.variables.insert(name.into(), value.into());
                }
            }
            Err(errors) => {
                let problem = |bad: BadLine| Problem::new(format_args!("{}:{}", path.display(), bad.line), bad.reason);
                self.problems.extend(errors.into_iter().map(problem));
            }
        }
    }

    /// A release comes from a repository, and so may the symbolic links in it: whoever wrote one is not who unpacked it.
    /// Of a path that is written relative to the configuration every part counts, of another one the last.
    fn link_in(&self, written: &Path) -> Option<PathBuf> {
        let last = absolute(&self.place.real, written);
        let parts = if written.is_absolute() { 1 } else { written.components().count() };
        let mut places: Vec<_> = last.ancestors().take(parts).collect();
        places.reverse();
        places.into_iter().find(|place| place.is_symlink()).map(Path::to_owned)
    }

    /// Those of `[server] user`, as far as that can be known without the env file. What is wrong with it is said later.
    fn rights_of_workers(&self) -> Option<Rights> {
        let written = |key| id_text(&self.peek(("server", key))?).ok();
        let user = find_user(&written("user")?).ok()?;
        let group = written("group").and_then(|group| find_group(&group).ok());
        let identity = run_as(Some(user), group, self.context.uid, self.context.gid).ok()??;
        Some(identity.rights())
    }

    pub fn app(&mut self, identity: Option<&Identity>) -> App {
        let parse = |value: &Value| string(value).and_then(parse_application);
        let application = self.optional("app", "module", parse, |application| quoted(&show_application(application)));
        let (release_named, release) = self.release().unzip();
        let application = match self.height(("app", "module")) {
            Some(_) => application,
            None => self.application_found(release.as_deref()),
        };
        let environment = self.environment();
        let script_name = self.script_name();
        let interpreter = self.interpreter(release.as_deref(), &environment);
        let preload = self.get_with("app", "preload", parse_preload, bool::to_string);
        let base = release.clone().unwrap_or_else(|| self.place.real.clone());
        let real = self.place.real.clone();
        let pythonpath = self.list(
            "app",
            "pythonpath",
            |text| {
                let path = absolute(&base, Path::new(text));
                path.canonicalize().map_err(|error| {
                    format!("{}{}", interpreter::missing(&path, "directory", &error), elsewhere(text, &base, &real))
                })
            },
            |path| quoted_path(path),
        );
        let imports =
            self.list("app", "imports", |text| check_module(text).map(|()| text.to_owned()), |name| quoted(name));
        let probe = self.optional("app", "probe", probe::parse, probe::show);
        let mut warmup = self.list("app", "warmup", probe::parse_warmup, |request| quoted(&request.path));
        if let Some(probe) = &probe {
            for request in &mut warmup {
                (request.host, request.scheme) = (probe.host.clone(), probe.scheme.clone());
            }
        }
        let release = base;
        let release_named = release_named.unwrap_or_else(|| release.clone());
        let aliases = aliases(&release_named, &release);
        let environment = self.complete(environment, &release, &aliases, interpreter.as_ref(), identity);
        // Placeholders are only ever seen beside a problem, which keeps them from being returned.
        let application =
            application.unwrap_or(Application { module: String::new(), attributes: Vec::new(), call: None });
        let interpreter =
            interpreter.unwrap_or(Interpreter { executable: PathBuf::new(), venv: None, chosen_by: "default" });
        App {
            revision: revision::of(&release),
            release_id: DirectoryId::of(&release),
            application,
            script_name,
            release,
            release_named,
            aliases,
            interpreter,
            preload,
            pythonpath,
            imports,
            probe,
            warmup,
            environment,
            env_file: self.env_file_at.clone(),
        }
    }

    fn script_name(&mut self) -> String {
        let name = self.get_with("app", "script_name", parse_script_name, |name| quoted(name));
        if self.height(("app", "script_name")).is_none() && self.explicit.iter().any(|name| name == "SCRIPT_NAME") {
            let warning = "SCRIPT_NAME of env_file or [env] says nothing to forkmaster; write [app] script_name";
            self.warnings.push(warning.to_owned());
        }
        name
    }

    /// Where none is set.
    fn application_found(&mut self, release: Option<&Path>) -> Option<Application> {
        let key = ("app", "module");
        let Some(found) = release.and_then(discovery::find) else {
            let reason = "missing; write module = \"shop.wsgi:application\", or name it on the command line";
            self.missing(key, reason);
            return None;
        };
        let application = parse_application(&found.module).ok()?;
        self.note(key, quoted(&show_application(&application)), Origin::Found(found.how));
        Some(application)
    }

    /// As written, and its real directory.
    fn release(&mut self) -> Option<(PathBuf, PathBuf)> {
        let key = ("app", "release");
        let (named, path, value, origin) = match self.entry(key) {
            Some(Entry { value, origin }) => match string(&value) {
                Ok(text) => {
                    let text = Path::new(text);
                    (absolute(&self.place.named, text), absolute(&self.place.real, text), value, origin)
                }
                Err(reason) => {
                    self.problem(key, &value, &origin, &reason);
                    return None;
                }
            },
            None => {
                let value = Value::Text(self.place.real.to_string_lossy().into_owned());
                (self.place.named.clone(), self.place.real.clone(), value, Origin::Default)
            }
        };
        match interpreter::real_directory(&path, "directory") {
            Ok(real) => {
                self.note(key, quoted_path(&real), origin);
                Some((named, real))
            }
            Err(reason) => {
                self.problem(key, &value, &origin, &reason);
                None
            }
        }
    }

    /// Start environment, env_file, `[env]`; what depends on the release and the interpreter comes in `complete`.
    fn environment(&mut self) -> Environment {
        let mut environment = self.variables.clone();
        for (name, Written { line, value }) in std::mem::take(&mut self.file.env) {
            let origin = Origin::File { shown: self.shown.clone(), line };
            match variable(&name, &value, &self.variables) {
                Ok(text) => {
                    let secret = environment::is_secret(&name, &text);
                    let value = if secret { quoted("***") } else { quoted(&text) };
                    self.note_entry("env", toml_key(&name), value, origin);
                    self.explicit.push(name.clone().into());
                    environment.insert(name.into(), text.into());
                }
                Err(reason) => {
                    let raw = match &value {
                        Value::Text(text) => text.as_str(),
                        _other => "",
                    };
                    let shown = if environment::is_secret(&name, raw) { quoted("***") } else { value.shown() };
                    let text = format!("[env] {} = {shown}: {reason}", toml_key(&name));
                    self.problems.push(Problem::new(&origin, text).at_line(origin.line()));
                }
            }
        }
        environment
    }

    fn complete(
        &mut self,
        mut environment: Environment,
        release: &Path,
        aliases: &[Alias],
        interpreter: Option<&Interpreter>,
        identity: Option<&Identity>,
    ) -> Vec<(OsString, OsString)> {
        for name in MISLEAD_THE_INTERPRETER {
            if self.explicit.iter().any(|explicit| explicit == name) {
                self.warnings.push(format!(
                    "{name} of env_file or [env] is ignored: it would change which Python runs; set [app] python instead"
                ));
            }
        }
        environment::activate(&mut environment, interpreter.and_then(|interpreter| interpreter.venv.as_deref()));
        environment::pin_python_path(&mut environment, aliases);
        environment.insert("PWD".into(), release.into());
        environment.remove(OsStr::new("OLDPWD"));
        if let Some(Identity { name, home, .. }) = identity {
            let home = home.clone().unwrap_or_else(|| PathBuf::from("/"));
            let name = name.clone().map(OsString::from);
            for (variable, value) in [("HOME", Some(home.into_os_string())), ("USER", name.clone()), ("LOGNAME", name)]
            {
                if self.explicit.iter().any(|explicit| explicit == variable) {
                    continue;
                }
                match value {
                    Some(value) => environment.insert(variable.into(), value),
                    None => environment.remove(OsStr::new(variable)),
                };
            }
        }
        environment.into_iter().collect()
    }

    /// The order is the promise "never a fall-through to another Python": what was set must be usable.
    fn interpreter(&mut self, release: Option<&Path>, environment: &Environment) -> Option<Interpreter> {
        let (venv, python) = (self.height(("app", "venv")), self.height(("app", "python")));
        let key = match (venv, python) {
            (Some(venv), Some(python)) if venv == python => {
                self.refuse(("app", "python"), "`venv` is set as well; keep one of the two");
                return None;
            }
            (Some(venv), Some(python)) if venv < python => "venv",
            (Some(_), Some(_)) | (None, Some(_)) => "python",
            (Some(_), None) => "venv",
            (None, None) => return self.interpreter_found(release?, environment),
        };
        let key = ("app", key);
        let Entry { value, origin } = self.entry(key)?;
        let real = self.place.real.clone();
        let base = release.unwrap_or(&real);
        let chosen = string(&value).and_then(|text| {
            let path = absolute(base, Path::new(text));
            if key.1 == "venv" {
                return interpreter::from_venv(&path, "[app] venv")
                    .map_err(|reason| format!("{reason}{}", elsewhere(text, base, &real)));
            }
            interpreter::from_python(&path, "[app] python").map_err(|reason| {
                let found = environment.get(OsStr::new("PATH")).filter(|_| !text.contains('/'));
                let found = found.and_then(|path| interpreter::find_on_path(text, path));
                let hint = found.map(|python| format!("; did you mean {}?", quoted_path(&python)));
                format!("{reason}{}", hint.unwrap_or_else(|| elsewhere(text, base, &real)))
            })
        });
        match chosen {
            Ok(interpreter) => {
                let shown = match (&interpreter.venv, key.1) {
                    (Some(venv), "venv") => quoted_path(venv),
                    (Some(_) | None, _) => quoted_path(&interpreter.executable),
                };
                self.note(key, shown, origin);
                Some(interpreter)
            }
            Err(reason) => {
                self.problem(key, &value, &origin, &reason);
                None
            }
        }
    }

    /// Where neither is set.
    fn interpreter_found(&mut self, release: &Path, environment: &Environment) -> Option<Interpreter> {
        let activated = environment.get(OsStr::new("VIRTUAL_ENV")).filter(|venv| !venv.is_empty());
        let own = self.context.executable.as_deref().and_then(interpreter::own_venv);
        let found = match (interpreter::in_release(release), activated, own) {
            (Some(found), _, _) => found,
            (None, Some(venv), _) => interpreter::from_venv(Path::new(venv), "VIRTUAL_ENV")
                .map_err(|reason| format!("VIRTUAL_ENV={}: {reason}", venv.to_string_lossy())),
            (None, None, Some(venv)) => {
                let found = interpreter::from_venv(&venv, "venv of the forkmaster executable");
                if found.as_ref().is_ok_and(|found| found.venv.as_ref().is_some_and(|venv| !venv.starts_with(release)))
                {
                    self.warnings.push(format!(
                        "the venv {} runs the release, since forkmaster was called from it, and does not lie in the \
                         release: a deploy does not change it; write [app] venv if that was not meant",
                        venv.display()
                    ));
                }
                found.map_err(|reason| format!("{}: {reason}", venv.display()))
            }
            (None, None, None) => {
                let found = interpreter::on_path(environment.get(OsStr::new("PATH")).map(OsString::as_os_str));
                if let (Ok(found), Some(unused)) = (&found, interpreter::venv_of_another_name(release)) {
                    self.warnings.push(format!(
                        "{} runs the release, and not the venv {}: write [app] venv = {} if that was meant",
                        found.executable.display(),
                        unused.display(),
                        quoted(&unused.file_name().unwrap_or_default().to_string_lossy())
                    ));
                }
                found
            }
        };
        match found {
            Ok(interpreter) => {
                let (key, shown) = match &interpreter.venv {
                    Some(venv) => ("venv", quoted_path(venv)),
                    None => ("python", quoted_path(&interpreter.executable)),
                };
                self.note(("app", key), shown, Origin::Found(interpreter.chosen_by));
                Some(interpreter)
            }
            Err(reason) => {
                self.missing(("app", "venv"), &reason);
                None
            }
        }
    }
}

/// What else leads to the release: its name, and what is left of it without its last parts, as long as it goes through a
/// link.
fn aliases(named: &Path, release: &Path) -> Vec<Alias> {
    let pairs = named.ancestors().zip(release.ancestors());
    let leads = |(named, real): &(&Path, &Path)| named.canonicalize().is_ok_and(|found| found == *real);
    let linked = pairs.skip(1).take_while(leads).filter(|(named, real)| named != real);
    let own = (named != release).then_some((named, release));
    own.into_iter().chain(linked).map(|(named, real)| Alias { name: named.to_owned(), real: real.to_owned() }).collect()
}

/// A path that is missing in the release may have been meant from the configuration file: both places are named.
fn elsewhere(text: &str, release: &Path, real: &Path) -> String {
    if Path::new(text).is_absolute() || release == real {
        return String::new();
    }
    let beside = absolute(real, Path::new(text));
    if beside.exists() {
        format!("; it is relative to the release, and there is {}: write that", quoted_path(&beside))
    } else {
        format!("; it is relative to the release, and {} is not there either", beside.display())
    }
}

fn variable(name: &str, value: &Value, variables: &Environment) -> Result<String, String> {
    environment::check_name(name)?;
    let text = match value {
        Value::Text(text) => environment::expand(text, variables)?.text,
        Value::Integer { text, .. } => return Err(format!("a variable is a string; write \"{text}\"")),
        Value::Boolean(boolean) => {
            return Err(format!("a variable is a string; write \"{boolean}\", or \"1\" or \"\""));
        }
        other => return Err(format!("a variable is a string, not {}", other.kind())),
    };
    if text.contains('\0') {
        return Err("a NUL byte in the value".to_owned());
    }
    Ok(text)
}

fn parse_script_name(value: &Value) -> Result<String, String> {
    let text = string(value)?;
    let name = text.trim_end_matches('/');
    match text.is_empty() || text.starts_with('/') {
        true if !name.contains("//") => Ok(name.to_owned()),
        _ => Err(format!("it begins with a slash and has no empty parts; write {}", quoted(&mount(text)))),
    }
}

fn mount(text: &str) -> String {
    let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty()).collect();
    format!("/{}", parts.join("/"))
}

fn parse_preload(value: &Value) -> Result<bool, String> {
    if is_word(value, "auto") {
        return Err(format!("\"auto\" {LATER}; until then write true or false"));
    }
    boolean(value)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn each_name_of_a_release_that_goes_through_a_link_is_an_alias() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        std::fs::create_dir_all(root.join("data/42/app")).unwrap();
        symlink("data/42", root.join("current")).unwrap();
        symlink("data/42/app", root.join("app")).unwrap();
        symlink(&root, root.join("srv")).unwrap();
        let found = |name: &str| {
            let named = root.join(name);
            let real = named.canonicalize().unwrap();
            let part = |path: PathBuf| path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
            aliases(&named, &real).into_iter().map(|alias| (part(alias.name), part(alias.real))).collect::<Vec<_>>()
        };
        let pair = |name: &str, real: &str| (name.to_owned(), real.to_owned());
        assert_eq!(found("current/app"), [pair("current/app", "data/42/app"), pair("current", "data/42")]);
        // A link that is called like what it leads to says nothing of where it lies.
        assert_eq!(found("app"), [pair("app", "data/42/app")]);
        assert_eq!(found("srv/data/42"), [pair("srv/data/42", "data/42"), pair("srv/data", "data"), pair("srv", "")]);
        assert_eq!(found("data/42"), []);
    }
}
