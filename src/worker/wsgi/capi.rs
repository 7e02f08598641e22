//! What of CPython's C interface is used directly: functions that are newer than the limited API which this library is
//! built for, looked up in the interpreter that runs, with another way where they are missing; and methods that take
//! their arguments from the stack (`METH_FASTCALL`), for which PyO3 would need a newer API.

use std::ffi::{c_char, c_int, c_void, CStr};
use std::mem::transmute;

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString, PyTuple};
use pyo3::{ffi, PyTypeInfo};

type Vectorcall = unsafe extern "C" fn(
    *mut ffi::PyObject,
    *const *mut ffi::PyObject,
    usize,
    *mut ffi::PyObject,
) -> *mut ffi::PyObject;

type AsUtf8 = unsafe extern "C" fn(*mut ffi::PyObject, *mut ffi::Py_ssize_t) -> *const c_char;

/// A method with its arguments on the stack.
pub type Fast =
    unsafe extern "C" fn(*mut ffi::PyObject, *const *mut ffi::PyObject, ffi::Py_ssize_t) -> *mut ffi::PyObject;

/// The same, where arguments may be given by name. Their values follow the others. The last pointer is to a tuple of the names, or
/// null.
pub type FastNamed = unsafe extern "C" fn(
    *mut ffi::PyObject,
    *const *mut ffi::PyObject,
    ffi::Py_ssize_t,
    *mut ffi::PyObject,
) -> *mut ffi::PyObject;

/// In the stable ABI since 3.10, and the same since 3.7 (methodobject.h).
const METH_FASTCALL: c_int = 0x0080;
const METH_KEYWORDS: c_int = 0x0002;

/// `PY_VECTORCALL_ARGUMENTS_OFFSET`: the place before the arguments may be written to (a bound method needs it).
const ARGUMENTS_OFFSET: usize = 1 << (usize::BITS - 1);

/// The functions that were found.
#[derive(Clone, Copy)]
pub struct Capi {
    vectorcall: Option<Vectorcall>,
    as_utf8: Option<AsUtf8>,
}

impl Capi {
    pub fn find() -> Capi {
        // SAFETY: PyObject_Vectorcall (PEP 590) has had this type since it has existed.
        let vectorcall =
            symbol(c"PyObject_Vectorcall").map(|found| unsafe { transmute::<*mut c_void, Vectorcall>(found) });
        // SAFETY: PyUnicode_AsUTF8AndSize has had this type since 3.7.
        let as_utf8 =
            symbol(c"PyUnicode_AsUTF8AndSize").map(|found| unsafe { transmute::<*mut c_void, AsUtf8>(found) });
        Capi { vectorcall, as_utf8 }
    }

    /// `callable(first, second)`.
    pub fn call<'py>(
        &self,
        callable: &Bound<'py, PyAny>,
        first: &Bound<'py, PyAny>,
        second: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let Some(vectorcall) = self.vectorcall else { return callable.call1((first, second)) };
        let mut arguments = [std::ptr::null_mut(), first.as_ptr(), second.as_ptr()];
        let count = 2 | ARGUMENTS_OFFSET;
        // SAFETY: two living arguments, and a place before them, as the offset says; no keywords.
        let result =
            unsafe { vectorcall(callable.as_ptr(), arguments.as_mut_ptr().add(1), count, std::ptr::null_mut()) };
        // SAFETY: a new reference, or null with an exception set.
        unsafe { Bound::from_owned_ptr_or_err(callable.py(), result) }
    }

    /// Gives `then` a "native string" of PEP 3333 as the bytes that it stands for. A string of ASCII is not copied.
    pub fn latin1<T>(&self, text: &Bound<'_, PyString>, then: impl FnOnce(&[u8]) -> T) -> PyResult<T> {
        if let Some(bytes) = self.ascii(text) {
            return Ok(then(bytes));
        }
        // SAFETY: `text` is a str; the result is a new reference to bytes, or null with an exception set.
        let bytes = unsafe { ffi::PyUnicode_AsLatin1String(text.as_ptr()) };
        // SAFETY: as above.
        let bytes = unsafe { Bound::from_owned_ptr_or_err(text.py(), bytes) }?;
        Ok(then(bytes.cast_into::<PyBytes>()?.as_bytes()))
    }

    /// None: not ASCII, or not to be told.
    fn ascii<'a>(&self, text: &'a Bound<'_, PyString>) -> Option<&'a [u8]> {
        let mut bytes = 0;
        // SAFETY: `text` is a str, and `bytes` outlives the call.
        let start = unsafe { self.as_utf8?(text.as_ptr(), &mut bytes) };
        if start.is_null() {
            // A lone surrogate. The other way finds it too.
            drop(PyErr::take(text.py()));
            return None;
        }
        // SAFETY: a str that is alive.
        let characters = unsafe { ffi::PyUnicode_GetLength(text.as_ptr()) };
        // As many bytes as characters: all of them are ASCII.
        // SAFETY: the string keeps its UTF-8 as long as it lives, which is longer than the borrow.
        (characters == bytes).then(|| unsafe { std::slice::from_raw_parts(start.cast(), bytes as usize) })
    }
}

/// How many references to an object there are.
pub fn references<T>(object: &Bound<'_, T>) -> isize {
    // SAFETY: a living object, and the interpreter's lock is held.
    unsafe { ffi::Py_REFCNT(object.as_ptr()) }
}

fn symbol(name: &CStr) -> Option<*mut c_void> {
    // SAFETY: looks a name up in what is loaded already.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    (!found.is_null()).then_some(found)
}

/// What a method is made from; lives as long as the process.
#[repr(transparent)]
pub struct Method(ffi::PyMethodDef);

// SAFETY: pointers to constants, which are only read.
unsafe impl Sync for Method {}

impl Method {
    pub const fn new(name: &'static CStr, function: Fast) -> Method {
        // SAFETY: CPython calls it by what the flags say, with the type that `Fast` has.
        Method::of(name, unsafe { transmute::<Fast, ffi::PyCFunction>(function) }, METH_FASTCALL)
    }

    pub const fn with_names(name: &'static CStr, function: FastNamed) -> Method {
        // SAFETY: CPython calls it by what the flags say, with the type that `FastNamed` has.
        let function = unsafe { transmute::<FastNamed, ffi::PyCFunction>(function) };
        Method::of(name, function, METH_FASTCALL | METH_KEYWORDS)
    }

    const fn of(name: &'static CStr, function: ffi::PyCFunction, flags: c_int) -> Method {
        Method(ffi::PyMethodDef {
            ml_name: name.as_ptr(),
            ml_meth: ffi::PyMethodDefPointer { PyCFunction: function },
            ml_flags: flags,
            ml_doc: std::ptr::null(),
        })
    }

    /// The method of one object, as a callable.
    pub fn bind<'py, T>(&'static self, this: &Bound<'py, T>) -> PyResult<Bound<'py, PyAny>> {
        let definition = (&raw const self.0).cast_mut();
        // SAFETY: the definition is valid for ever; the function takes a reference of its own to its object.
        let method = unsafe { ffi::PyCFunction_NewEx(definition, this.as_ptr(), std::ptr::null_mut()) };
        // SAFETY: a new reference, or null with an exception set.
        unsafe { Bound::from_owned_ptr_or_err(this.py(), method) }
    }
}

/// What stands between CPython's call of a `Fast` function and its body.
///
/// # Safety
/// To be called from a `Fast` function of a `Method` that is bound to objects of type `T` only, with its arguments.
pub unsafe fn enter<T: PyTypeInfo>(
    this: *mut ffi::PyObject,
    arguments: *const *mut ffi::PyObject,
    count: ffi::Py_ssize_t,
    body: impl for<'py> FnOnce(&Bound<'py, T>, Arguments<'_, 'py>) -> PyResult<Bound<'py, PyAny>>,
) -> *mut ffi::PyObject {
    Python::attach(|py| {
        // SAFETY: the object that the method is bound to, of type `T`; the caller says so.
        let this = unsafe { Bound::from_borrowed_ptr(py, this).cast_into_unchecked::<T>() };
        // SAFETY: so many living objects, borrowed from the caller for the time of the call.
        let arguments = match usize::try_from(count) {
            Ok(count @ 1..) => unsafe { std::slice::from_raw_parts(arguments, count) },
            Ok(0) | Err(_) => &[],
        };
        match body(&this, Arguments { py, pointers: arguments }) {
            Ok(result) => result.into_ptr(),
            Err(error) => {
                error.restore(py);
                std::ptr::null_mut()
            }
        }
    })
}

/// The arguments of a call in which some were given by name, in their order, and how many there are. `places`: what the argument
/// of each place may be called.
///
/// # Safety
/// To be called from a `FastNamed` function of a `Method` only, with its arguments, of which `names` is a tuple.
#[cold]
pub unsafe fn in_order<const N: usize>(
    callable: &str,
    arguments: *const *mut ffi::PyObject,
    count: ffi::Py_ssize_t,
    names: *mut ffi::PyObject,
    places: [&[&str]; N],
) -> PyResult<([*mut ffi::PyObject; N], ffi::Py_ssize_t)> {
    Python::attach(|py| {
        // SAFETY: a living tuple of strings; the caller says so.
        let names = unsafe { Bound::from_borrowed_ptr(py, names).cast_into_unchecked::<PyTuple>() };
        let positional = usize::try_from(count).unwrap_or_default();
        let wrong = |why: String| PyTypeError::new_err(format!("{callable}() {why}"));
        if positional + names.len() > N {
            return Err(wrong(format!("takes at most {N} arguments, {} were given", positional + names.len())));
        }
        // SAFETY: the values of the names follow the others.
        let value = |index: usize| unsafe { *arguments.add(index) };
        let mut ordered = [std::ptr::null_mut(); N];
        for (index, place) in ordered.iter_mut().enumerate().take(positional) {
            *place = value(index);
        }
        for (index, name) in names.iter().enumerate() {
            let name: String = name.extract()?;
            let Some(place) = places.iter().position(|place| place.contains(&name.as_str())) else {
                return Err(wrong(format!("has no argument '{name}'")));
            };
            if !ordered[place].is_null() {
                return Err(wrong(format!("has two values for '{name}'")));
            }
            ordered[place] = value(positional + index);
        }
        let given = ordered.iter().take_while(|value| !value.is_null()).count();
        match places.get(given).filter(|_| given < positional + names.len()) {
            Some(missing) => Err(wrong(format!("lacks '{}'", missing[0]))),
            None => Ok((ordered, given as ffi::Py_ssize_t)),
        }
    })
}

/// What a `Fast` function was called with.
pub struct Arguments<'a, 'py> {
    py: Python<'py>,
    pointers: &'a [*mut ffi::PyObject],
}

impl<'py> Arguments<'_, 'py> {
    pub fn len(&self) -> usize {
        self.pointers.len()
    }

    pub fn get(&self, index: usize) -> Option<Bound<'py, PyAny>> {
        let pointer = self.pointers.get(index)?;
        // SAFETY: a living object, see `enter`.
        Some(unsafe { Bound::from_borrowed_ptr(self.py, *pointer) })
    }
}
