//! Executing a Gunicorn configuration, as Gunicorn does, to see what it sets. It runs four times: as it is, with one CPU and
//! with many, and with marks in place of the variables that it read; so a formula is told from a number, and a variable
//! from a constant of the machine on which the file happens to be converted.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Stdio};

use forkmaster_wire::json;
use serde::Deserialize;
use serde_json::Value;

const SCRIPT: &str = include_str!("evaluate.py");

/// What is shown of a formula.
const CPUS: u32 = 4;
/// `min(2 * cpus + 1, 8)` shows with few, and nobody has so many as the second.
const OTHER_CPUS: [u32; 2] = [1, 1009];

/// Marks are numbers, since many variables are read as such; a port, too, may have this many digits.
const FIRST_MARK: u32 = 48_271;

/// Each is a run of the file where it does not bear all at once.
const VARIABLES_MAX: usize = 40;

/// What one run says.
#[derive(Clone, Debug, Default, Deserialize)]
struct Run {
    settings: BTreeMap<String, Value>,
    /// Functions.
    hooks: BTreeMap<String, Hook>,
    /// Variables, with the default that the file has for them.
    reads: BTreeMap<String, Option<String>>,
    /// The expressions of assignments.
    sources: BTreeMap<String, String>,
    /// Names that are made of variables, or set only where a variable says so.
    depends: BTreeSet<String>,
    /// Names that the file sets in a case that is not this one, as it is written.
    absent: BTreeMap<String, String>,
    /// It went through the variables, whatever they are called.
    went_through: bool,
}

/// What a function of the file comes to, where it is simple.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Hook {
    pub logs: bool,
    /// It only calls prometheus_client's `mark_process_dead`.
    pub marks: bool,
    /// It only runs this.
    pub command: Option<Vec<String>>,
    /// It only calls this, without arguments: `module:function`.
    pub function: Option<String>,
}

/// What the file means by a setting.
#[derive(Clone, Debug, PartialEq)]
pub struct Meant {
    /// With `${NAME:-default}` where a variable was read.
    pub value: Value,
    /// As it was here and now.
    pub plain: Value,
    pub made_of: MadeOf,
    /// The expression, where it stands in the file.
    pub source: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MadeOf {
    Constant,
    /// The number of CPUs is in it.
    Cpus,
    /// A variable is in it, as it is.
    Variables,
    /// It depends on variables in a way that no setting can.
    Code,
}

#[derive(Clone, Debug, Default)]
pub struct Evaluated {
    pub settings: BTreeMap<String, Meant>,
    pub hooks: BTreeMap<String, Hook>,
    /// What the file sets in another case than this one, as it is written.
    pub absent: BTreeMap<String, String>,
    /// Variables that are not set here may set more.
    pub went_through: bool,
}

/// Runs the file by this Python. The error is what Python says.
pub fn evaluate(python: &Path, file: &Path) -> Result<Evaluated, String> {
    let as_it_is = run(python, file, CPUS, &BTreeMap::new())?;
    let others = OTHER_CPUS.map(|cpus| run(python, file, cpus, &BTreeMap::new()).unwrap_or_else(|_| as_it_is.clone()));
    let marks: BTreeMap<String, String> =
        as_it_is.reads.keys().zip(FIRST_MARK..).map(|(name, mark)| (name.clone(), mark.to_string())).collect();
    let (marks, marked) = run_marked(python, file, marks, &as_it_is);
    // A default that is a formula: its variable stands above the number of CPUs.
    let mut reads = as_it_is.reads.clone();
    for (name, default) in &mut reads {
        if others.iter().any(|run| run.reads.get(name).is_some_and(|other| other != default)) {
            *default = Some("auto".to_owned());
        }
    }
    let settings = as_it_is.settings.iter().map(|(name, plain)| {
        let with = |run: &Run| run.settings.get(name).cloned().unwrap_or(Value::Null);
        let source = as_it_is.sources.get(name).cloned().unwrap_or_default();
        let is_fixed = others.iter().all(|run| with(run) == *plain);
        let (value, made_of) = match judge(plain, is_fixed, &with(&marked), &marks, &reads) {
            // `os.environ.get("DEBUG") == "1"` is the same with a mark.
            (value, MadeOf::Constant) if as_it_is.depends.contains(name) => (value, MadeOf::Code),
            judged => judged,
        };
        (name.clone(), Meant { value, plain: plain.clone(), made_of, source })
    });
    let settings = settings.collect();
    let Run { hooks, absent, went_through, .. } = as_it_is;
    Ok(Evaluated { settings, hooks, absent, went_through })
}

/// With marks in place of the variables. A file that does not bear one (a variable that must be "prod") says so by an
/// exception; then that one stays as it is, and its mark is not returned.
fn run_marked(
    python: &Path,
    file: &Path,
    marks: BTreeMap<String, String>,
    as_it_is: &Run,
) -> (BTreeMap<String, String>, Run) {
    if let Ok(marked) = run(python, file, CPUS, &marks) {
        return (marks, marked);
    }
    let (mut borne, mut last) = (BTreeMap::new(), as_it_is.clone());
    for (name, mark) in marks.into_iter().take(VARIABLES_MAX) {
        borne.insert(name.clone(), mark);
        match run(python, file, CPUS, &borne) {
            Ok(marked) => last = marked,
            Err(_) => {
                borne.remove(&name);
            }
        }
    }
    (borne, last)
}

fn judge(
    value: &Value,
    is_fixed: bool,
    marked: &Value,
    marks: &BTreeMap<String, String>,
    reads: &BTreeMap<String, Option<String>>,
) -> (Value, MadeOf) {
    if marked != value {
        let (named, complete) = name_marks(marked, marks, reads);
        let default = if is_fixed { value.clone() } else { Value::from("auto") };
        let named = or_else(named, &default);
        return match complete {
            false => (value.clone(), MadeOf::Code),
            // `int(os.getenv("N", 0)) or 500`: what the file makes of the default is not the default.
            true if is_fixed && with_values(marked, marks, reads).is_some_and(|same| same != loose(value)) => {
                match with_default(&named, value) {
                    Some(named) => (named, MadeOf::Variables),
                    None => (value.clone(), MadeOf::Code),
                }
            }
            true => (named, MadeOf::Variables),
        };
    }
    let made_of = if is_fixed { MadeOf::Constant } else { MadeOf::Cpus };
    (value.clone(), made_of)
}

/// A variable alone, for which the file says no default, has one all the same where it is not set here: the value without it.
fn or_else(named: Value, without: &Value) -> Value {
    let name = named.as_str().and_then(|text| text.strip_prefix("${")?.strip_suffix('}'));
    let Some(name) = name.filter(|name| !name.contains([':', '$'])) else { return named };
    let default = match without {
        Value::String(text) if !text.is_empty() && !text.contains(['$', '}']) => text.clone(),
        Value::Number(number) => number.to_string(),
        _no_text => return named,
    };
    match std::env::var_os(name) {
        Some(_) => named,
        None => Value::String(format!("${{{name}:-{default}}}")),
    }
}

/// `${NAME:-0}` alone, with what it comes to where it is not set, as here. None: it is set, or there is more.
fn with_default(named: &Value, without: &Value) -> Option<Value> {
    let name = named.as_str()?.strip_prefix("${")?.strip_suffix('}')?.split_once(":-")?.0.to_owned();
    let default = match without {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _no_text => return None,
    };
    if std::env::var_os(&name).is_some() || default.contains(['$', '}']) || name.contains(['$', ':']) {
        return None;
    }
    Some(Value::String(format!("${{{name}:-{default}}}")))
}

/// What has marks, with the values of their variables here. None: one has none.
fn with_values(
    marked: &Value,
    marks: &BTreeMap<String, String>,
    reads: &BTreeMap<String, Option<String>>,
) -> Option<String> {
    let mut text = loose(marked);
    for (name, mark) in marks.iter().filter(|(_, mark)| loose(marked).contains(mark.as_str())) {
        let here = std::env::var(name).ok().or_else(|| reads.get(name).cloned().flatten())?;
        text = text.replace(mark.as_str(), &here);
    }
    Some(text.to_ascii_lowercase())
}

/// To be compared: 30 and "30" are alike here, as they are in settings.
fn loose(value: &Value) -> String {
    match value {
        Value::String(text) => text.to_ascii_lowercase(),
        Value::Array(items) => items.iter().map(loose).collect::<Vec<String>>().join("\n"),
        other => other.to_string().to_ascii_lowercase(),
    }
}

/// Puts variables in the place of their marks. False: there was none in it.
fn name_marks(
    value: &Value,
    marks: &BTreeMap<String, String>,
    reads: &BTreeMap<String, Option<String>>,
) -> (Value, bool) {
    let named = |text: &str| {
        let mut named = text.replace('$', "$$");
        for (name, mark) in marks {
            let default = reads.get(name).cloned().flatten();
            let variable = default.map_or(format!("${{{name}}}"), |default| format!("${{{name}:-{default}}}"));
            named = named.replace(mark.as_str(), &variable);
        }
        let found = named != text.replace('$', "$$");
        (Value::String(named), found)
    };
    match value {
        Value::String(text) => named(text),
        Value::Number(number) => named(&number.to_string()),
        Value::Array(items) => {
            let items: Vec<(Value, bool)> = items.iter().map(|item| name_marks(item, marks, reads)).collect();
            let found = items.iter().any(|(_, found)| *found);
            (Value::Array(items.into_iter().map(|(item, _)| item).collect()), found)
        }
        Value::Null | Value::Bool(_) | Value::Object(_) => (value.clone(), false),
    }
}

fn run(python: &Path, file: &Path, cpus: u32, above: &BTreeMap<String, String>) -> Result<Run, String> {
    let above = serde_json::to_string(above).map_err(|error| error.to_string())?;
    let output = Command::new(python)
        .args(["-c", SCRIPT])
        .arg(file)
        .args([cpus.to_string(), above])
        .current_dir(file.parent().unwrap_or(Path::new("/")))
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{} cannot be started: {error}", python.display()))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim_end().to_owned());
    }
    json::read(&output.stdout).map_err(|error| format!("what it sets cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_formula_is_told_from_a_number_and_a_variable_from_a_constant() {
        let marks = BTreeMap::from([("PORT".to_owned(), "48271".to_owned()), ("X".to_owned(), "48272".to_owned())]);
        let reads = BTreeMap::from([("PORT".to_owned(), Some("8000".to_owned())), ("X".to_owned(), None)]);
        let judge = |value, other, marked| judge(&value, value == other, &marked, &marks, &reads);
        assert_eq!(judge(json!(9), json!(9), json!(9)), (json!(9), MadeOf::Constant));
        assert_eq!(judge(json!(9), json!(2019), json!(9)), (json!(9), MadeOf::Cpus));
        assert_eq!(judge(json!(8000), json!(8000), json!(48271)), (json!("${PORT:-8000}"), MadeOf::Variables));
        let (value, made_of) = judge(json!(["a:8000"]), json!(["a:8000"]), json!(["a:48271"]));
        assert_eq!((value, made_of), (json!(["a:${PORT:-8000}"]), MadeOf::Variables));
        assert_eq!(judge(json!("b"), json!("b"), json!("48272$")), (json!("${X}$$"), MadeOf::Variables));
        assert_eq!(judge(json!(3), json!(3), json!(96543)), (json!(3), MadeOf::Code));
        assert_eq!(judge(json!(true), json!(true), json!(false)), (json!(true), MadeOf::Code));
    }
}
