//! Finding the application: `shop.wsgi:application`, `shop:api.app`, `shop:create_app('prod', debug=False)`.

use std::path::Path;

use forkmaster_wire::message::{Application, Boot, Failure, ProofStep};
use pyo3::exceptions::{PyModuleNotFoundError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};

use crate::failure::{failure, from_exception};
use crate::kind::{self, Kind};
use crate::pinned::Pinned;

/// Imports the module and returns the callable, or says what to write instead.
pub fn load<'py>(py: Python<'py>, boot: &Boot, pinned: &Pinned) -> Result<Bound<'py, PyAny>, Failure> {
    let application = &boot.application;
    let raised = |error: &PyErr| from_exception(py, ProofStep::Import, "while it was imported", error);
    // As an `import` statement does it: importlib's own frames are left out of tracebacks then.
    let module = py.import(application.module.as_str()).map_err(|error| not_imported(py, boot, pinned, &error))?;
    let mut found = module.clone().into_any();
    for attribute in &application.attributes {
        found = found.getattr(attribute.as_str()).map_err(|error| {
            let mut failure = raised(&error);
            if found.is(&module) {
                // One line without a file, which the reason repeats.
                failure.details.clear();
                if let Some(hint) = hint_at_another(&module, application) {
                    failure.reason = format!("{}; {hint}", failure.reason);
                }
            }
            failure
        })?;
    }
    let path = format!("{}:{}", application.module, application.attributes.join("."));
    let Some(literals) = &application.call else { return wsgi(found, &path, &path) };
    let factory = callable(found, &path)?;
    let (positional, named) = arguments(py, literals).map_err(|error| raised(&error))?;
    let made = factory.call(positional, Some(&named)).map_err(|error| {
        let mut failure = raised(&error);
        // Raised by the call itself: what takes an environ and a function is an application, and no factory.
        if literals.is_empty()
            && error.traceback(py).is_none()
            && failure.reason.contains("missing 2 required positional")
        {
            failure.details.clear();
            failure.reason = format!("{}; if it is the application itself, write \"{path}\"", failure.reason);
        }
        failure
    })?;
    wsgi(made, &format!("the result of {path}({literals})"), &path)
}

fn refused(reason: String) -> Failure {
    failure(ProofStep::Import, reason, "")
}

fn callable<'py>(object: Bound<'py, PyAny>, what: &str) -> Result<Bound<'py, PyAny>, Failure> {
    if object.is_callable() {
        return Ok(object);
    }
    let kind = object.get_type().name().map_or_else(|_| "?".to_owned(), |name| name.to_string_lossy().into_owned());
    let hint = if kind == "coroutine" {
        // Nobody will await it, and Python would say so.
        let _closed = object.call_method0("close");
        "; an `async` factory makes an ASGI application, and forkmaster serves WSGI"
    } else {
        ""
    };
    Err(refused(format!("{what} is of type {kind} and cannot be called; a WSGI application is a callable{hint}")))
}

/// An application that would answer every request with a 500 is refused before it serves.
fn wsgi<'py>(object: Bound<'py, PyAny>, what: &str, path: &str) -> Result<Bound<'py, PyAny>, Failure> {
    let object = callable(object, what)?;
    match kind::of(&object) {
        Kind::Wsgi => Ok(object),
        Kind::Asgi => Err(refused(format!(
            "{what} is an ASGI application (its call is a coroutine or takes a scope), and forkmaster serves WSGI; {}",
            instead_of_asgi(path)
        ))),
        Kind::Factory(callable) => Err(refused(format!(
            "{what} is a {} that takes no environ and no start_response: an application that was not made yet; \
             write \"{path}()\"",
            callable.word()
        ))),
        Kind::OtherArguments(callable, arguments) => Err(refused(format!(
            "{what} is a {} with the arguments {arguments}, and a WSGI application is called with (environ, \
             start_response); if it makes the application, write the call, as in \"{path}('prod')\"",
            callable.word()
        ))),
    }
}

fn instead_of_asgi(path: &str) -> String {
    match path.split_once(".asgi:") {
        Some((package, _)) => format!("Django makes both: write \"{package}.wsgi\""),
        None => "wrap it in the application with a2wsgi.ASGIMiddleware, or serve it with an ASGI server".to_owned(),
    }
}

/// Where the module itself is missing, it was looked for in the wrong place; where something that it needs is missing,
/// by the wrong Python. Where the release itself is missing, neither is to blame.
fn not_imported(py: Python<'_>, boot: &Boot, pinned: &Pinned, error: &PyErr) -> Failure {
    let mut failure = from_exception(py, ProofStep::Import, "while it was imported", error);
    if !error.is_instance_of::<PyModuleNotFoundError>(py) {
        return failure;
    }
    let name = error.value(py).getattr("name").and_then(|name| name.extract::<String>()).unwrap_or_default();
    let module = boot.application.module.as_str();
    let is_ours = module == name || module.strip_prefix(&name).is_some_and(|rest| rest.starts_with('.'));
    let release = &boot.release;
    let hint = if !release.is_dir() {
        failure.details.clear();
        let gone = release.display();
        format!("the release {gone} is gone, since somebody removed it: keep it while it serves, or deploy another one")
    } else if let Some(lost) = pinned.lost() {
        failure.details.clear();
        let lost = lost.display();
        format!("{lost} was removed while it serves, and another directory has its name: deploy that one with `forkmaster reload`")
    } else if !is_ours {
        let executable = py.import("sys").and_then(|sys| sys.getattr("executable"));
        format!("not installed for {}", executable.map_or_else(|_| "this Python".to_owned(), |path| path.to_string()))
    } else if let Some(hint) = hint_at_an_attribute(py, module) {
        failure.details.clear();
        hint
    } else {
        failure.details.clear();
        let top = name.split('.').next().unwrap_or_default();
        let inside = |directory: &Path| directory.join(top).is_dir() || directory.join(format!("{top}.py")).is_file();
        let src = release.join("src");
        match inside(&src) && !inside(release) {
            true => "it lies in src; write [app] pythonpath = [\"src\"]".to_owned(),
            false => format!("looked for in the release {} and in [app] pythonpath", release.display()),
        }
    };
    failure.reason = format!("{}; {hint}", failure.reason);
    failure
}

/// `shop.app` where `shop` is a module that has an `app`: Python says only that it is no package.
fn hint_at_an_attribute(py: Python<'_>, module: &str) -> Option<String> {
    let (parent, name) = module.rsplit_once('.')?;
    // Python has imported it on the way.
    let modules = py.import("sys").and_then(|sys| sys.getattr("modules")).ok()?;
    let found = modules.get_item(parent).ok()?;
    if found.hasattr("__path__").ok()? {
        return None;
    }
    match found.hasattr(name).ok()? {
        true => Some(format!("{parent} is a module that has `{name}`: write \"{parent}:{name}\"")),
        false => Some(format!("{parent} is a module: write the name of the application in it, \"{parent}:NAME\"")),
    }
}

/// Names under which modules keep their application, most likely first.
const USUAL_NAMES: [&str; 7] = ["app", "application", "wsgi_app", "wsgi", "api", "server", "handler"];
const USUAL_FACTORIES: [&str; 4] = ["create_app", "make_app", "get_app", "create_application"];

/// What the module has in place of the callable that it does not have.
fn hint_at_another(module: &Bound<'_, PyModule>, application: &Application) -> Option<String> {
    let name = &application.module;
    let has = |attribute: &str| module.getattr(attribute).ok().filter(|found| found.is_callable());
    for attribute in USUAL_NAMES {
        if has(attribute).is_some_and(|found| kind::of(&found) == Kind::Wsgi) {
            return Some(format!("it has `{attribute}`, a callable: write \"{name}:{attribute}\""));
        }
    }
    for attribute in USUAL_FACTORIES {
        match has(attribute).map(|found| kind::of(&found)) {
            Some(Kind::Factory(_)) => {
                return Some(format!("it has `{attribute}`, a factory: write \"{name}:{attribute}()\""));
            }
            Some(Kind::Wsgi | Kind::OtherArguments(..)) => {
                return Some(format!("it has `{attribute}`: write its call, as in \"{name}:{attribute}('prod')\""));
            }
            Some(Kind::Asgi) | None => {}
        }
    }
    // Django's and others' packages have it in a module of its own.
    let below = format!("{name}.wsgi");
    let spec = module.py().import("importlib.util").and_then(|util| util.call_method1("find_spec", (below.as_str(),)));
    if spec.is_ok_and(|spec| !spec.is_none()) {
        return Some(format!("there is a module {below}: write \"{below}\""));
    }
    Some(format!("write the name of the application in it, \"{name}:NAME\""))
}

/// Literals only: a configuration file that runs code would be one more place for an application to fail in.
fn arguments<'py>(py: Python<'py>, literals: &str) -> PyResult<(Bound<'py, PyTuple>, Bound<'py, PyDict>)> {
    let ast = py.import("ast")?;
    let refused = || PyValueError::new_err(format!("the factory's arguments ({literals}) are not Python literals"));
    let keywords = PyDict::new(py);
    keywords.set_item("mode", "eval")?;
    let call = ast.call_method("parse", (format!("f({literals})"),), Some(&keywords))?.getattr("body")?;
    // `f(1) or g(2)` is not a call of f.
    if !call.is_instance(&ast.getattr("Call")?)? || !call.getattr("func")?.is_instance(&ast.getattr("Name")?)? {
        return Err(refused());
    }
    let literal = |node: &Bound<'py, PyAny>| ast.call_method1("literal_eval", (node,)).map_err(|_| refused());
    let positional = PyList::empty(py);
    for node in call.getattr("args")?.try_iter()? {
        positional.append(literal(&node?)?)?;
    }
    let named = PyDict::new(py);
    for node in call.getattr("keywords")?.try_iter()? {
        let node = node?;
        let name = node.getattr("arg")?;
        if name.is_none() {
            return Err(refused());
        }
        named.set_item(name, literal(&node.getattr("value")?)?)?;
    }
    Ok((positional.to_tuple(), named))
}
