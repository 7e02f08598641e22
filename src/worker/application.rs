//! Finding the application: `shop.wsgi:application`, `shop:api.app`, `shop:create_app('prod', debug=False)`.

use forkmaster_wire::message::Application;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};

/// Imports the module and returns the callable.
pub fn load<'py>(py: Python<'py>, application: &Application) -> PyResult<Bound<'py, PyAny>> {
    // As an `import` statement does it: importlib's own frames are left out of tracebacks then.
    let mut found = py.import(application.module.as_str())?.into_any();
    for attribute in &application.attributes {
        found = found.getattr(attribute.as_str())?;
    }
    let path = format!("{}:{}", application.module, application.attributes.join("."));
    let Some(literals) = &application.call else { return callable(found, &path) };
    let factory = callable(found, &path)?;
    let (positional, named) = arguments(py, literals)?;
    callable(factory.call(positional, Some(&named))?, &format!("the result of {path}({literals})"))
}

fn callable<'py>(object: Bound<'py, PyAny>, what: &str) -> PyResult<Bound<'py, PyAny>> {
    if object.is_callable() {
        return Ok(object);
    }
    let kind = object.get_type();
    let kind = kind.name()?;
    Err(PyTypeError::new_err(format!(
        "{what} is of type {kind} and cannot be called; a WSGI application is a callable"
    )))
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
