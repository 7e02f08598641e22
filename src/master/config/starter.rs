//! A configuration to begin with: what `forkmaster config init` writes. The application that was found, and the settings
//! that most services come to set, commented out, each with what the table says of it. It makes text and writes nothing.

use super::discovery::Found;
use super::file::quoted;
use super::keys::{self, Key};
use super::reference;

const INTRODUCTION: &str = "\
# Settings of forkmaster. `forkmaster check` reads them as a start would, `forkmaster config show`
# prints those in effect, `forkmaster config reference` all there are. After a change:
# `forkmaster reload`.
";

/// What is commented out, with a value that says more than the default where that is only words.
const SAMPLES: [(Key, Option<&str>); 12] = [
    (("app", "release"), Some("\".\"")),
    (("app", "venv"), Some("\"venv\"")),
    (("app", "preload"), None),
    (("app", "probe"), Some("{ path = \"/healthz\", host = \"shop.example\", scheme = \"https\" }")),
    (("server", "bind"), None),
    (("server", "workers"), Some("\"auto\"")),
    (("server", "threads"), Some("4")),
    (("server", "request_timeout"), None),
    (("server", "graceful_timeout"), None),
    (("http", "max_body"), None),
    (("http", "forwarded_allow_ips"), None),
    (("log", "access"), Some("\"-\"")),
];

pub fn text(found: Option<&Found>) -> String {
    let mut text = INTRODUCTION.to_owned();
    let mut section = "";
    for ((here, key), sample) in SAMPLES {
        if here != section {
            section = here;
            text.push_str(&format!("\n[{section}]\n"));
            if section == "app" {
                text.push_str(&module(found));
            }
        }
        let Some(spec) = keys::find(here, key) else { continue };
        let value = sample.map(str::to_owned).or_else(|| spec.default.written()).unwrap_or_default();
        text.push_str(&format!("\n{}# {key} = {value}\n", reference::commented(spec.doc)));
    }
    text
}

fn module(found: Option<&Found>) -> String {
    match found {
        Some(found) => format!("# The application; {}.\nmodule = {}\n", found.how, quoted(&found.module)),
        None => "# The application. None was found here: write its module and the name in it.\n\
                 module = \"shop.wsgi:application\"\n"
            .to_owned(),
    }
}
