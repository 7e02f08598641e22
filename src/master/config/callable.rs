//! The application as written: `shop.wsgi`, `shop.wsgi:application`, `shop:api.app`, `shop:create_app('prod')`.
//! The arguments of a call are literals. What is plainly none is refused here, before anything is started; Python
//! itself has the last word, in the worker.

use forkmaster_wire::message::Application;

/// Gunicorn's default as well, and Django's name for it.
const CALLABLE_DEFAULT: &str = "application";

pub fn parse_application(text: &str) -> Result<Application, String> {
    let text = text.trim();
    if let Some((_scheme, address)) = text.split_once("://") {
        return Err(format!("an address, not an application; write --bind {}", address.trim_end_matches('/')));
    }
    let (module, rest) = match text.split_once(':') {
        Some((module, rest)) => (module, Some(rest)),
        None => (text, None),
    };
    check_module(module)?;
    let Some(rest) = rest else {
        let attributes = vec![CALLABLE_DEFAULT.to_owned()];
        return Ok(Application { module: module.to_owned(), attributes, call: None });
    };
    let (path, call) = match rest.split_once('(') {
        None => (rest, None),
        Some((path, arguments)) => {
            let arguments = arguments.strip_suffix(')').ok_or_else(|| {
                format!("a factory call ends with its closing parenthesis; write \"{module}:{path}()\" or with literals in it")
            })?;
            check_literals(arguments)?;
            (path, Some(arguments.to_owned()))
        }
    };
    if path.is_empty() {
        return Err(format!("a callable is missing after the colon; write \"{module}:{CALLABLE_DEFAULT}\""));
    }
    let attributes: Vec<String> = path.split('.').map(str::to_owned).collect();
    if let Some(bad) = attributes.iter().find(|name| !is_identifier(name)) {
        return Err(format!(
            "`{bad}` is not a Python name; write \"{module}:{CALLABLE_DEFAULT}\" or \"{module}:create_app()\""
        ));
    }
    Ok(Application { module: module.to_owned(), attributes, call })
}

/// A dotted module name, as in `import a.b`.
pub fn check_module(module: &str) -> Result<(), String> {
    if module.is_empty() {
        return Err("a module is missing; write \"shop.wsgi:application\"".to_owned());
    }
    if let Some(directory) = module.strip_suffix('/') {
        let package = directory.trim_start_matches("./").replace('/', ".");
        return Err(format!("a directory, not a module; write the name of a file in it, as \"{package}.wsgi\""));
    }
    if module.contains('/') || module.ends_with(".py") {
        let dotted = module.trim_end_matches(".py").trim_start_matches("./").replace('/', ".");
        return Err(format!("a file, not a module; write \"{dotted}\""));
    }
    match module.split('.').find(|name| !is_identifier(name)) {
        Some("") => Err(format!("`{module}` has an empty part; write a dotted name as \"shop.wsgi\"")),
        Some(bad) if bad.contains('-') && is_identifier(&bad.replace('-', "_")) => Err(format!(
            "`{bad}` has a hyphen, so that Python cannot import it; rename the file, and write \"{}\"",
            module.replace('-', "_")
        )),
        Some(bad) => Err(format!("`{bad}` is not a Python name; write a dotted name as \"shop.wsgi\"")),
        None => Ok(()),
    }
}

pub fn show_application(application: &Application) -> String {
    let call = application.call.as_ref().map(|arguments| format!("({arguments})")).unwrap_or_default();
    format!("{}:{}{call}", application.module, application.attributes.join("."))
}

/// Outside of strings, literals have no names but these, keyword arguments and the prefixes of strings; and their
/// brackets match.
fn check_literals(arguments: &str) -> Result<(), String> {
    let refusal = |what: &str| {
        Err(format!(
            "{what}; the arguments of a factory call are literals, as in \"shop:create_app('prod', debug=True)\""
        ))
    };
    let mut closing = Vec::new();
    let mut rest = arguments;
    while let Some(first) = rest.chars().next() {
        if first == '_' || first.is_alphabetic() {
            let end = rest.find(|c: char| c != '_' && !c.is_alphanumeric()).unwrap_or(rest.len());
            let (word, after) = rest.split_at(end);
            let next = after.trim_start();
            let keyword = next.starts_with('=') && !next.starts_with("==");
            let prefix = word.len() <= 2 && after.starts_with(['\'', '"']) && !word.contains(['f', 'F']);
            if !keyword && !prefix && !["True", "False", "None"].contains(&word) {
                return refusal(&format!("`{word}` is not a literal"));
            }
            rest = after;
            continue;
        }
        if first.is_ascii_digit() {
            // With the letters of 0x1f, 1e5, 2j and 1_000.
            rest = rest.trim_start_matches(|c: char| c == '_' || c == '.' || c.is_ascii_alphanumeric());
            continue;
        }
        rest = &rest[first.len_utf8()..];
        match first {
            '\'' | '"' => match end_of_string(rest, first) {
                Some(after) => rest = after,
                None => return refusal("a string is not closed"),
            },
            '(' => closing.push(')'),
            '[' => closing.push(']'),
            '{' => closing.push('}'),
            ')' | ']' | '}' if closing.pop() != Some(first) => return refusal("the brackets do not match"),
            _ => {}
        }
    }
    if closing.is_empty() {
        Ok(())
    } else {
        refusal("the brackets do not match")
    }
}

/// What follows a string whose opening quote has been read.
fn end_of_string(text: &str, quote: char) -> Option<&str> {
    let mut escaped = false;
    for (at, character) in text.char_indices() {
        if !escaped && character == quote {
            return Some(&text[at + 1..]);
        }
        escaped = !escaped && character == '\\';
    }
    None
}

/// Close to Python's rule (Unicode XID); what is let through wrongly fails at the import with Python's own words.
fn is_identifier(name: &str) -> bool {
    let mut characters = name.chars();
    characters.next().is_some_and(|first| first == '_' || first.is_alphabetic())
        && characters.all(|c| c == '_' || c.is_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read() {
        let cases = [
            ("shop.wsgi", "shop.wsgi", vec!["application"], None),
            ("shop.wsgi:app", "shop.wsgi", vec!["app"], None),
            ("shop:api.app", "shop", vec!["api", "app"], None),
            ("shop:create_app()", "shop", vec!["create_app"], Some("")),
            ("shop:f.create_app('a:(b', debug=True)", "shop", vec!["f", "create_app"], Some("'a:(b', debug=True")),
            (
                "shop:f(b'\\'', [1e5, {'x': (None,)}], k = -0x1f)",
                "shop",
                vec!["f"],
                Some("b'\\'', [1e5, {'x': (None,)}], k = -0x1f"),
            ),
        ];
        for (text, module, attributes, call) in cases {
            let application = parse_application(text).unwrap();
            assert_eq!(application.module, module);
            assert_eq!(application.attributes, attributes);
            assert_eq!(application.call.as_deref(), call);
            assert_eq!(parse_application(&show_application(&application)), Ok(application));
        }
    }

    #[test]
    fn what_cannot_be_parsed_is_refused_with_the_fix() {
        let cases = [
            ("", "shop.wsgi:application"),
            ("shop/wsgi.py", "\"shop.wsgi\""),
            ("shop..wsgi", "empty part"),
            (".shop", "empty part"),
            ("shop-2", "`shop-2`"),
            ("2shop", "`2shop`"),
            ("shop:", "\"shop:application\""),
            ("shop:app.", "not a Python name"),
            ("shop:create_app(", "\"shop:create_app()\""),
            ("shop:create_app() + 1", "parenthesis"),
            ("shop:()", "callable is missing"),
            ("shop:f(open('x'))", "`open` is not a literal"),
            ("shop:f(os.environ)", "`os` is not a literal"),
            ("shop:f(a == 1)", "`a` is not a literal"),
            ("shop:f(f'{x}')", "`f` is not a literal"),
            ("shop:f('x)", "a string is not closed"),
            ("shop:f([1)", "brackets"),
            ("shop:f('a') + g('b')", "brackets"),
            ("shop:f((1)", "brackets"),
            ("shop:a b", "`a b`"),
        ];
        for (text, hint) in cases {
            let error = parse_application(text).unwrap_err();
            assert!(error.contains(hint), "{text}: {error}");
        }
    }
}
