//! What kind of thing an object is: a WSGI application, or something that imports as well and answers every request
//! with a 500: an ASGI application, a factory or a class that nobody has called. It only looks at signatures and calls
//! nothing of the application's. Where Python cannot tell (C code, `*args`), the object is taken for an application.

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyFunction, PyTuple, PyType};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Wsgi,
    /// Called with a scope, or its call is a coroutine.
    Asgi,
    /// A function or class that cannot be called with an environ and `start_response`, but with no arguments.
    Factory(Callable),
    /// Neither: it needs these arguments.
    OtherArguments(Callable, String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Callable {
    Function,
    Class,
    Object,
}

impl Callable {
    pub fn word(self) -> &'static str {
        match self {
            Callable::Function => "function",
            Callable::Class => "class",
            Callable::Object => "object",
        }
    }
}

/// The kind of a callable object. Exceptions of `inspect` are no proof against it.
pub fn of(object: &Bound<'_, PyAny>) -> Kind {
    if is_plain(object).unwrap_or(false) {
        return Kind::Wsgi;
    }
    look(object).unwrap_or(Kind::Wsgi)
}

/// A function of two arguments and nothing unusual, as most are. Told without `inspect`, whose import takes longer than all
/// the rest of a small application's start.
fn is_plain(object: &Bound<'_, PyAny>) -> PyResult<bool> {
    /// CO_VARARGS, CO_VARKEYWORDS, CO_COROUTINE, CO_ITERABLE_COROUTINE, CO_ASYNC_GENERATOR (inspect, "Code objects bit flags").
    const UNUSUAL: u32 = 0x4 | 0x8 | 0x80 | 0x100 | 0x200;
    if !object.is_instance_of::<PyFunction>() {
        return Ok(false);
    }
    let code = object.getattr("__code__")?;
    let count = |name: &str| code.getattr(name)?.extract::<u32>();
    // What `inspect.markcoroutinefunction` and decorators leave lies in `__dict__`.
    let is_marked = object.getattr("__dict__")?.is_truthy()?;
    Ok(count("co_argcount")? == 2
        && count("co_kwonlyargcount")? == 0
        && count("co_flags")? & UNUSUAL == 0
        && object.getattr("__defaults__")?.is_none()
        && !is_marked
        && code.getattr("co_varnames")?.get_item(0)?.extract::<String>()? != "scope")
}

fn look(object: &Bound<'_, PyAny>) -> PyResult<Kind> {
    let py = object.py();
    let inspect = py.import("inspect")?;
    let callable = if object.is_instance_of::<PyType>() {
        Callable::Class
    } else if inspect.call_method1("isroutine", (object,))?.is_truthy()? {
        Callable::Function
    } else {
        Callable::Object
    };
    let is_coroutine = |object: &Bound<'_, PyAny>| -> PyResult<bool> {
        inspect.call_method1("iscoroutinefunction", (object,))?.is_truthy()
    };
    if is_coroutine(object)? {
        return Ok(Kind::Asgi);
    }
    if callable == Callable::Object && is_coroutine(&object.get_type().getattr("__call__")?)? {
        return Ok(Kind::Asgi);
    }
    // What a decorator wraps has another signature than what is called: `werkzeug.Request.application` makes a WSGI
    // application of a function of one request.
    let options = PyDict::new(py);
    options.set_item("follow_wrapped", false)?;
    let signature = inspect.call_method("signature", (object,), Some(&options))?;
    let parameters = Parameters::read(&signature)?;
    if parameters.names.first().is_some_and(|name| name == "scope") {
        return Ok(Kind::Asgi);
    }
    let binds = |count: usize| -> PyResult<bool> {
        let arguments = PyTuple::new(py, (0..count).map(|_| py.None()))?;
        match signature.call_method1("bind", arguments) {
            Ok(_bound) => Ok(true),
            Err(error) if error.is_instance_of::<PyTypeError>(py) => Ok(false),
            Err(error) => Err(error),
        }
    };
    match (binds(2)?, binds(0)?) {
        // An environ is never left out: `def create_app(config=None, debug=False)`.
        (true, true) if callable == Callable::Function && parameters.first_has_default => Ok(Kind::Factory(callable)),
        (true, _) => Ok(Kind::Wsgi),
        (false, true) => Ok(Kind::Factory(callable)),
        (false, false) => Ok(Kind::OtherArguments(callable, signature.str()?.to_string_lossy().into_owned())),
    }
}

struct Parameters {
    names: Vec<String>,
    /// The first one is named and may be left out.
    first_has_default: bool,
}

impl Parameters {
    fn read(signature: &Bound<'_, PyAny>) -> PyResult<Parameters> {
        let mut names = Vec::new();
        let mut first_has_default = false;
        for parameter in signature.getattr("parameters")?.call_method0("values")?.try_iter()? {
            let parameter = parameter?;
            if names.is_empty() {
                let nothing = parameter.getattr("empty")?;
                first_has_default = !parameter.getattr("default")?.is(&nothing);
            }
            names.push(parameter.getattr("name")?.str()?.to_string_lossy().into_owned());
        }
        Ok(Parameters { names, first_has_default })
    }
}
