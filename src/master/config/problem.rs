//! What is wrong with a configuration: all of it at once, a line each, in the order of the file.

use std::fmt;

use crate::exit_code::ExitCode;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Line in the config file, if it is about one; for the order only.
    line: Option<usize>,
    text: String,
}

/// At least one problem. Displays as the full message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problem {
    /// `place` is `app.toml:12`, `--workers` or the name of a variable.
    pub fn new(place: impl fmt::Display, text: impl fmt::Display) -> Problem {
        Problem { line: None, text: format!("{place}: {text}") }
    }

    pub fn line(&self) -> Option<usize> {
        self.line
    }

    /// Without its place and the setting: what is wrong.
    pub fn reason(&self) -> String {
        let after_place = self.text.split_once(": ").map_or(self.text.as_str(), |(_, rest)| rest);
        after_place.split_once(": ").map_or(after_place, |(_, rest)| rest).to_owned()
    }

    pub fn at_line(mut self, line: Option<usize>) -> Problem {
        self.line = line;
        self
    }
}

impl Problems {
    /// `Ok` where there is none.
    pub fn check(mut problems: Vec<Problem>) -> Result<(), Problems> {
        problems.sort_by_key(|problem| problem.line.unwrap_or(usize::MAX));
        let mut seen = std::collections::BTreeSet::new();
        problems.retain(|problem| seen.insert(problem.text.clone()));
        if problems.is_empty() {
            Ok(())
        } else {
            Err(Problems(problems))
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }

    pub fn exit_code(&self) -> ExitCode {
        ExitCode::Configuration
    }
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Problems {
        Problems(vec![problem])
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.len() > 1 {
            writeln!(f, "{} problems:", self.0.len())?;
        }
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            // Nothing that was read from a file may begin a line of its own in the log.
            for character in problem.text.chars() {
                if character.is_control() {
                    write!(f, "{}", character.escape_debug())?;
                } else {
                    write!(f, "{character}")?;
                }
            }
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_come_in_the_order_of_the_file_and_on_a_line_each() {
        let problems = vec![
            Problem::new("--workers", "last"),
            Problem::new("app.toml:9", "b\nc").at_line(Some(9)),
            Problem::new("app.toml:2", "a").at_line(Some(2)),
        ];
        let text = Problems::check(problems).unwrap_err().to_string();
        assert_eq!(text, "3 problems:\napp.toml:2: a\napp.toml:9: b\\nc\n--workers: last");
        assert_eq!(Problems::from(Problem::new("x", "y")).to_string(), "x: y");
        assert_eq!(Problems::check(Vec::new()), Ok(()));
    }
}
