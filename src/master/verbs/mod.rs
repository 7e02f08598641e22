//! What a person can ask on the command line, and the code that answers: `command_line` reads the arguments, the
//! others carry a verb out and return its exit code.

pub mod act;
pub mod ask;
pub mod check;
pub mod client;
pub mod columns;
pub mod command_line;
pub mod convert;
pub mod ctl;
pub mod dev;
pub mod events;
pub mod find;
pub mod held;
pub mod help;
pub mod history;
pub mod init;
pub mod list;
pub mod logs;
pub mod look;
pub mod output;
pub mod show;
pub mod status;
pub mod words;
