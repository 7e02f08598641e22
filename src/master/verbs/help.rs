//! What a shell and `man` know of the command line, made from its definition.

use std::io;

use clap_complete::Shell;

use super::command_line;
use super::output;
use crate::exit_code::ExitCode;

/// A script that completes verbs and options: `forkmaster completions bash >/etc/bash_completion.d/forkmaster`.
pub fn completions(shell: Shell) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command_line::definition(), "forkmaster", &mut script);
    output::print(String::from_utf8_lossy(&script));
    ExitCode::Done
}

/// The manual page, as troff: `forkmaster man | man -l -`.
pub fn man() -> ExitCode {
    match manual() {
        Ok(page) => {
            output::print(String::from_utf8_lossy(&page));
            ExitCode::Done
        }
        Err(error) => {
            output::complain(error);
            ExitCode::Refused
        }
    }
}

/// Each verb has a section of its own: one page is what people search.
fn manual() -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    let command = command_line::definition();
    let whole = clap_mangen::Man::new(command.clone());
    whole.render(&mut page)?;
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        page.extend_from_slice(format!(".SH {}\n", verb.get_name().to_uppercase()).as_bytes());
        let verb = clap_mangen::Man::new(verb.clone().disable_help_flag(true));
        verb.render_description_section(&mut page)?;
        verb.render_options_section(&mut page)?;
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manual_names_every_verb() {
        let page = String::from_utf8(manual().unwrap()).unwrap();
        for verb in command_line::definition().get_subcommands().filter(|verb| !verb.is_hide_set()) {
            assert!(page.contains(&format!(".SH {}\n", verb.get_name().to_uppercase())), "{}", verb.get_name());
        }
    }
}
