//! `[log] access_format`: `combined`, `json`, or a template as Gunicorn has them, `%(h)s "%(r)s" %(s)s`. It is taken
//! apart here, where a slip can be told with its line; workers only fill it in.

use forkmaster_wire::message::{AccessFormat, AccessPart, Atom};

/// What Apache and nginx call so, and Gunicorn's default.
const COMBINED: &str = "%(h)s %(l)s %(u)s %(t)s \"%(r)s\" %(s)s %(b)s \"%(f)s\" \"%(a)s\"";

/// A template fills one line of at most 4,096 bytes.
const TEMPLATE_BYTES_MAX: usize = 2048;

pub fn parse(text: &str) -> Result<AccessFormat, String> {
    match text {
        "json" => Ok(AccessFormat::Json),
        "combined" => Ok(combined()),
        text if !text.contains("%(") => {
            Err("there are \"combined\", \"json\" and templates such as '%(h)s \"%(r)s\" %(s)s'".to_owned())
        }
        text => template(text),
    }
}

pub fn combined() -> AccessFormat {
    template(COMBINED).expect("a constant, which the test below takes apart")
}

fn template(text: &str) -> Result<AccessFormat, String> {
    if text.len() > TEMPLATE_BYTES_MAX {
        return Err(format!("longer than {TEMPLATE_BYTES_MAX} bytes"));
    }
    if text.chars().any(char::is_control) {
        return Err("a line break or another control character: it is one line".to_owned());
    }
    let mut parts = Vec::new();
    let mut plain = String::new();
    let mut quoted = false;
    let mut rest = text;
    while let Some(character) = rest.chars().next() {
        if let Some(after) = rest.strip_prefix("%%") {
            plain.push('%');
            rest = after;
        } else if let Some(after) = rest.strip_prefix("%(") {
            let (atom, after) = atom(after)?;
            if !plain.is_empty() {
                parts.push(AccessPart::Text(std::mem::take(&mut plain)));
            }
            parts.push(AccessPart::Atom { atom, quoted });
            rest = after;
        } else if character == '%' {
            return Err("a single `%`; write `%%` for the sign itself".to_owned());
        } else {
            quoted ^= character == '"';
            plain.push(character);
            rest = &rest[character.len_utf8()..];
        }
    }
    if !plain.is_empty() {
        parts.push(AccessPart::Text(plain));
    }
    Ok(AccessFormat::Line(parts))
}

/// What stands behind `%(`, and the text after it.
fn atom(text: &str) -> Result<(Atom, &str), String> {
    let (name, after) = text.split_once(')').ok_or_else(|| format!("`%({text}` has no `)`"))?;
    let after = after
        .strip_prefix(['s', 'd'])
        .ok_or_else(|| format!("`%({name})` is followed by another letter than `s`; write `%({name})s`"))?;
    Ok((named(name).ok_or_else(|| unknown(name))?, after))
}

fn named(name: &str) -> Option<Atom> {
    if let Some((inner, kind)) = name.strip_prefix('{').and_then(|rest| rest.split_once('}')) {
        if inner.is_empty() || !inner.bytes().all(|byte| byte.is_ascii_graphic()) {
            return None;
        }
        return match kind {
            "i" => Some(Atom::RequestHeader(inner.to_ascii_lowercase())),
            "o" => Some(Atom::ResponseHeader(inner.to_ascii_lowercase())),
            "e" => Some(Atom::Environ(inner.to_owned())),
            _other => None,
        };
    }
    Some(match name {
        "h" => Atom::RemoteAddress,
        "l" => Atom::Identity,
        "u" => Atom::User,
        "t" => Atom::Time,
        "r" => Atom::RequestLine,
        "m" => Atom::Method,
        "U" => Atom::Path,
        "q" => Atom::Query,
        "H" => Atom::Protocol,
        "s" => Atom::Status,
        "B" => Atom::Bytes,
        "b" => Atom::BytesOrDash,
        "f" => Atom::Referer,
        "a" => Atom::UserAgent,
        "T" => Atom::Seconds,
        "M" => Atom::Milliseconds,
        "D" => Atom::Microseconds,
        "L" => Atom::DecimalSeconds,
        "p" => Atom::Pid,
        "Q" => Atom::Queued,
        "X" => Atom::Ended,
        "G" => Atom::Generation,
        "I" => Atom::RequestId,
        _other => return None,
    })
}

fn unknown(name: &str) -> String {
    format!(
        "`%({name})s` is unknown; there are h l u t r m U q H s B b f a T M D L p Q X G I, {{name}}i, {{name}}o and {{name}}e"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Vec<AccessPart> {
        match parse(text) {
            Ok(AccessFormat::Line(parts)) => parts,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn templates_are_taken_apart() {
        let text = |text: &str| AccessPart::Text(text.to_owned());
        let atom = |atom, quoted| AccessPart::Atom { atom, quoted };
        let forwarded = Atom::RequestHeader("x-forwarded-for".to_owned());
        assert_eq!(
            line("%(h)s 100%% \"%({X-Forwarded-For}i)s\" %(B)d"),
            [
                atom(Atom::RemoteAddress, false),
                text(" 100% \""),
                atom(forwarded, true),
                text("\" "),
                atom(Atom::Bytes, false)
            ]
        );
        assert_eq!(line("combined").len(), 18);
        assert_eq!(parse("json"), Ok(AccessFormat::Json));
    }

    #[test]
    fn slips_are_told() {
        for (text, reason) in [
            ("common", "there are \"combined\""),
            ("%(h)s %", "a single `%`"),
            ("%(h)x", "another letter"),
            ("%(h", "no `)`"),
            ("%(z)s", "`%(z)s` is unknown"),
            ("%({}i)s", "is unknown"),
            ("%({a}x)s", "is unknown"),
            ("%(h)s\n", "one line"),
        ] {
            let problem = parse(text).expect_err(text);
            assert!(problem.contains(reason), "{text:?}: {problem}");
        }
    }
}
