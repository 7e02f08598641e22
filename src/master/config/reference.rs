//! `forkmaster config reference`: the table of settings as Markdown. docs/settings.md is its output, and a test holds
//! the two equal.

use super::keys::{Applies, KeySpec, Kind, KEYS, SECTIONS};
use super::services;
use super::units::show_size;

/// As the other documents.
const LINE_CHARS_MAX: usize = 120;

const INTRODUCTION: &str = "\
# Settings

`forkmaster config reference` prints this page, `forkmaster config show` the settings in effect and where each comes from.

Settings stand in a TOML file, `forkmaster -c app.toml`. A setting has its value from the first of these that has one: the
command line, a variable `FORKMASTER_SECTION__KEY` (two underscores; `FORKMASTER_NAME` at the top of the file), the file, the
variables `PORT`, `WEB_CONCURRENCY`, `FORWARDED_ALLOW_IPS` and `LISTEN_FDS`, the default.

- Durations and sizes have units: `\"1m30s\"`, `\"500ms\"`; `\"8MiB\"`, `\"8MB\"`, `\"8192B\"`. A bare number is refused.
- In strings `${NAME}` stands for a variable of the start environment or of `[app] env_file`, `${NAME:-default}` for that or
  a default, `$$` for a dollar sign.
- A reload reads everything afresh. *With the next generation*: its workers have it from their first moment. *At the commit*:
  it holds when the new generation has taken over, so a refused reload leaves it alone. *With a restart*: a reload warns and
  goes on without it.
";

const SERVICES: &str =
    "Programs of the release that run beside its workers, a table each: see [deploy.md](deploy.md#services). \
                        They stand in the file only, and have no variables.";

/// The whole page.
pub fn markdown() -> String {
    let mut text = INTRODUCTION.to_owned();
    text.push_str("\n## At the top of the file\n");
    KEYS.iter().filter(|spec| spec.section.is_empty()).for_each(|spec| text.push_str(&entry(spec)));
    for (section, doc) in SECTIONS {
        text.push_str(&format!("\n## [{section}]\n\n{}", wrapped(doc)));
        KEYS.iter().filter(|spec| spec.section == section).for_each(|spec| text.push_str(&entry(spec)));
    }
    text.push_str(&format!("\n## [[service]]\n\n{}", wrapped(SERVICES)));
    for spec in services::KEYS {
        let facts = format!("{}. Default: {}. Changes at the commit.", spec.kind, spec.default);
        text.push_str(&format!("\n### {}\n\n{}\n{}", spec.key, wrapped(spec.doc), wrapped(&facts)));
    }
    text
}

fn entry(spec: &KeySpec) -> String {
    let default = spec.default.written().map_or_else(|| spec.default.words().to_owned(), |text| format!("`{text}`"));
    let mut facts = vec![kind(spec.kind), format!("Default: {default}"), applies(spec.applies).to_owned()];
    facts.extend(spec.option.map(|option| format!("Option: `{option}`")));
    for (of, names) in [("Gunicorn", spec.gunicorn), ("uWSGI", spec.uwsgi)] {
        // Names of the same spelling say nothing new.
        let names: Vec<String> =
            names.iter().filter(|name| **name != spec.key).map(|name| format!("`{name}`")).collect();
        if !names.is_empty() {
            facts.push(format!("{of}: {}", names.join(", ")));
        }
    }
    format!("\n### {}\n\n{}\n{}", spec.key, wrapped(spec.doc), wrapped(&format!("{}.", facts.join(". "))))
}

/// The table's words as comment lines of a file.
pub fn commented(doc: &str) -> String {
    const COMMENT_CHARS_MAX: usize = 100;
    let mut text = String::new();
    let mut line = "#".to_owned();
    for word in doc.split_whitespace() {
        if line.chars().count() + 1 + word.chars().count() > COMMENT_CHARS_MAX {
            text.push_str(&line);
            text.push('\n');
            line = "#".to_owned();
        }
        line.push(' ');
        line.push_str(word);
    }
    format!("{text}{line}\n")
}

/// A paragraph in lines of at most `LINE_CHARS_MAX`, each with its end.
fn wrapped(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.chars().count() + 1 + word.chars().count() <= LINE_CHARS_MAX => {
                line.push(' ');
                line.push_str(word);
            }
            Some(_) | None => lines.push(word.to_owned()),
        }
    }
    lines.join("\n") + "\n"
}

fn applies(applies: Applies) -> &'static str {
    match applies {
        Applies::Generation => "Changes with the next generation",
        Applies::Commit => "Changes at the commit",
        Applies::Restart => "Changes with a restart",
    }
}

fn kind(kind: Kind) -> String {
    let from_to = |min: u32, max: u32| format!("Number from {min} to {max}");
    match kind {
        Kind::Boolean => "`true` or `false`".to_owned(),
        Kind::Count { min, max } => from_to(min, max),
        Kind::CountOrAuto { min, max } => format!("{}, or `\"auto\"`", from_to(min, max)),
        Kind::CountOrNone { min, max } => format!("{}, or `\"none\"`", from_to(min, max)),
        Kind::Number => "Number".to_owned(),
        Kind::Duration => "Duration".to_owned(),
        Kind::Timeout => "Duration, more than zero".to_owned(),
        Kind::DurationOrNone => "Duration, or `\"none\"`".to_owned(),
        Kind::TimeoutOrNone(_) => "Duration, more than zero, or `\"none\"`".to_owned(),
        Kind::Size => "Size".to_owned(),
        Kind::SizeBetween { min, max } => format!("Size from {} to {}", show_size(&min), show_size(&max)),
        Kind::SizeOrNone => "Size, or `\"none\"`".to_owned(),
        Kind::Mode => "Octal digits".to_owned(),
        Kind::ModeOrInherit => "Octal digits, or `\"inherit\"`".to_owned(),
        Kind::Id => "Name or number".to_owned(),
        Kind::PathOrNone => "Path, or `\"none\"`".to_owned(),
        Kind::List(items) => format!("List: {items}"),
        Kind::Own(words) => {
            let mut characters = words.chars();
            let first = characters.next().map(|first| first.to_ascii_uppercase());
            first.into_iter().chain(characters).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/settings.md");

    /// `FORKMASTER_BLESS=1 cargo test --bin forkmaster config::reference` writes the page.
    #[test]
    fn the_page_in_docs_is_what_the_program_prints() {
        if std::env::var_os("FORKMASTER_BLESS").is_some() {
            std::fs::write(PAGE, markdown()).unwrap();
        }
        let page = std::fs::read_to_string(PAGE).unwrap_or_default();
        assert!(page == markdown(), "docs/settings.md is not what `forkmaster config reference` prints: write it anew");
    }

    #[test]
    fn every_setting_is_on_the_page() {
        let page = markdown();
        for spec in KEYS {
            assert!(page.contains(&format!("\n### {}\n", spec.key)), "{}", spec.key);
        }
        let flat = page.replace('\n', " ");
        assert!(flat.contains(
            "Duration, more than zero, or `\"none\"`. Default: `\"75s\"`. Changes with the next generation."
        ));
        assert!(flat.contains("Changes with a restart. Option: `--name`. Gunicorn: `proc_name`."));
        assert!(page.lines().all(|line| line.chars().count() <= LINE_CHARS_MAX + 8));
    }
}
