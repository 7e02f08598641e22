//! A configuration in the making: settings, what is said of each, what was not taken and why, and what is too secret for
//! it. It becomes text here; nothing is written.

use crate::config::{self, Key};

/// How the loss of a setting is told.
const DROPPED: &str = "not taken: ";

/// A setting of the draft.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub key: Key,
    /// As TOML.
    pub value: String,
    /// What changed its meaning on the way.
    pub comments: Vec<String>,
}

/// What runs beside the workers.
#[derive(Clone, Debug)]
struct Program {
    name: String,
    words: Vec<String>,
    /// None: all the time.
    every: Option<String>,
}

#[derive(Clone, Debug, Default)]
pub struct Draft {
    lines: Vec<Line>,
    /// What was not taken: as it was written, and why.
    pub left_out: Vec<(String, String)>,
    /// What whoever converts must do besides, said on stderr as well.
    pub loud: Vec<String>,
    services: Vec<Program>,
    /// For an env_file that only its owner may read.
    pub secrets: Vec<(String, String)>,
}

impl Draft {
    /// Sets a key; a later value takes the place of an earlier one.
    pub fn set(&mut self, section: &'static str, key: &'static str, value: impl Into<String>) {
        let at = (section, key);
        let value = value.into();
        match self.lines.iter_mut().find(|line| line.key == at) {
            Some(line) => line.value = value,
            None => self.lines.push(Line { key: at, value, comments: Vec::new() }),
        }
    }

    pub fn set_text(&mut self, section: &'static str, key: &'static str, text: &str) {
        self.set(section, key, config::quoted(text));
    }

    pub fn has(&self, section: &'static str, key: &'static str) -> bool {
        self.lines.iter().any(|line| line.key == (section, key))
    }

    pub fn value(&self, section: &'static str, key: &'static str) -> Option<&str> {
        self.lines.iter().find(|line| line.key == (section, key)).map(|line| line.value.as_str())
    }

    /// Says something of a key that is set.
    pub fn comment(&mut self, section: &'static str, key: &'static str, text: impl Into<String>) {
        if let Some(line) = self.lines.iter_mut().find(|line| line.key == (section, key)) {
            line.comments.push(text.into());
        }
    }

    /// A program that runs beside the workers, all the time or every so often. `command` is as a shell reads it; false: it
    /// needs one.
    pub fn serve(&mut self, command: &str, every: Option<String>) -> bool {
        let needs_shell = command.contains(['"', '\'', '$', '`', '|', '&', ';', '<', '>', '*', '\\', '(', '~']);
        let words: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
        let Some(program) = words.first().filter(|_| !needs_shell) else { return false };
        let last = |path: &str| path.rsplit('/').next().unwrap_or(path).to_owned();
        let script = words.get(1).filter(|word| last(program).starts_with("python") && word.ends_with(".py"));
        let name = script.map_or_else(|| last(program), |script| last(script).trim_end_matches(".py").to_owned());
        let name: String = name.chars().filter(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c)).take(30).collect();
        let same = self.services.iter().filter(|other| other.name.starts_with(&name)).count();
        let name = if same == 0 { name } else { format!("{name}-{}", same + 1) };
        self.services.push(Program { name, words, every });
        true
    }

    pub fn leave_out(&mut self, written: impl Into<String>, why: impl Into<String>) {
        // Sentences of an error tell to remove what is left out already.
        let why: String = why.into();
        let why = why.trim_end_matches("; remove the line").replace(" and remove the line", "");
        self.left_out.push((written.into(), why));
    }

    pub fn warn(&mut self, text: impl Into<String>) {
        let text = text.into();
        if !self.loud.contains(&text) {
            self.loud.push(text);
        }
    }

    /// What was said of settings that were found wrong.
    pub fn dropped(&self) -> impl Iterator<Item = &String> {
        self.loud.iter().filter(|loud| loud.starts_with(DROPPED))
    }

    /// The setting in this line of the text was found wrong: it becomes a remark.
    pub fn drop_line(&mut self, number: usize, head: &str, why: &str) -> bool {
        let Some(at) = self.numbers(head).iter().position(|line| *line == number) else { return false };
        let line = self.sorted()[at].clone();
        self.lines.retain(|other| other.key != line.key);
        let written = format!("{} = {}", config::shown(line.key), line.value);
        self.warn(format!("{DROPPED}{written}: {why}"));
        self.leave_out(written, why);
        true
    }

    /// Whether the setting in this line of the text says which application there is: without it another one could be found.
    pub fn is_application(&self, number: usize, head: &str) -> bool {
        let at = self.numbers(head).iter().position(|line| *line == number);
        at.is_some_and(|at| self.sorted()[at].key == ("app", "module"))
    }

    /// Where each setting stands in the text.
    fn numbers(&self, head: &str) -> Vec<usize> {
        let mut numbers = Vec::new();
        let text = self.text(head);
        let mut settings = self.sorted().into_iter().peekable();
        for (number, line) in (1..).zip(text.lines()) {
            if settings.peek().is_some_and(|next| line == format!("{} = {}", next.key.1, next.value)) {
                numbers.push(number);
                settings.next();
            }
        }
        numbers
    }

    fn sorted(&self) -> Vec<&Line> {
        let mut lines: Vec<&Line> = self.lines.iter().collect();
        lines.sort_by_key(|line| config::rank(line.key.0, line.key.1));
        lines
    }

    /// The file. `head` says what it was made of.
    pub fn text(&self, head: &str) -> String {
        let mut text = comment_lines(head);
        // Those of settings that were dropped stand at the end already, and would move the lines.
        for loud in self.loud.iter().filter(|loud| !loud.starts_with(DROPPED)) {
            text.push_str("#\n");
            text.push_str(&comment_lines(loud));
        }
        let mut section = "";
        for Line { key: (here, key), value, comments } in self.sorted() {
            if *here != section {
                section = here;
                text.push_str(&format!("\n[{section}]\n"));
            } else if section.is_empty() {
                text.push('\n');
            }
            for comment in comments {
                text.push_str(&comment_lines(comment));
            }
            text.push_str(&format!("{key} = {value}\n"));
        }
        for Program { name, words, every } in &self.services {
            let words: Vec<String> = words.iter().map(|word| config::quoted(word)).collect();
            text.push_str(&format!(
                "\n[[service]]\nname = {}\ncommand = [{}]\n",
                config::quoted(name),
                words.join(", ")
            ));
            if let Some(every) = every {
                text.push_str(&format!("every = {}\n", config::quoted(every)));
            }
        }
        if !self.left_out.is_empty() {
            text.push_str("\n# Not taken:\n");
            for (written, why) in &self.left_out {
                let why = if why.is_empty() { String::new() } else { format!(": {why}") };
                text.push_str(&comment_lines(&format!("{written}{why}")));
            }
        }
        text
    }
}

/// Text as comment lines. What was written elsewhere may have line breaks.
fn comment_lines(text: &str) -> String {
    let mut lines = String::new();
    for part in text.lines() {
        let mut line = "#".to_owned();
        for word in part.split_whitespace() {
            if line.chars().count() + 1 + word.chars().count() > 110 {
                lines.push_str(&line);
                lines.push('\n');
                line = "#  ".to_owned();
            }
            line.push(' ');
            line.push_str(word);
        }
        lines.push_str(&line);
        lines.push('\n');
    }
    lines.chars().map(|c| if c.is_control() && c != '\n' { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draft_becomes_a_file_in_the_order_of_the_documentation() {
        let mut draft = Draft::default();
        draft.set("server", "workers", "2");
        draft.set_text("app", "module", "shop.wsgi");
        draft.set_text("", "name", "shop");
        draft.set("server", "workers", "4");
        draft.comment("server", "workers", "four of them");
        draft.leave_out("certfile = \"x\"", "TLS");
        draft.warn("loud");
        let text = draft.text("head");
        let expected = "# head\n#\n# loud\n\nname = \"shop\"\n\n[app]\nmodule = \"shop.wsgi\"\n\n[server]\n\
                        # four of them\nworkers = 4\n\n# Not taken:\n# certfile = \"x\": TLS\n";
        assert_eq!(text, expected);
        assert!(draft.drop_line(12, "head", "no"));
        assert_eq!(draft.loud.pop().unwrap(), "not taken: [server] workers = 4: no");
        assert!(!draft.has("server", "workers") && !draft.drop_line(2, "head", "no"));
        assert!(draft.text("head").ends_with("# [server] workers = 4: no\n"));
    }
}
