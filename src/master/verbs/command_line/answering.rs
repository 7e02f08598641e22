//! `--max` and `--maintenance` of a pause: clients are answered rather than held. It only reads words.

use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::Args;

use crate::config::process_context::ProcessContext;
use crate::config::units::parse_duration;
use crate::verbs::words::error;

/// Clients of a paused service get 503 after so long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answering {
    pub after: Duration,
    /// With what this file says, as the master finds it. None: with a line of text.
    pub page: Option<String>,
}

#[derive(Args, Debug)]
pub struct AnsweringOptions {
    /// Clients wait for so long, as in 30s; from then on they get 503 with Retry-After [default: they wait]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    max: Option<Duration>,
    /// Clients get this page with 503, at once or after --max; the suffix tells its type
    #[arg(long, value_name = "FILE")]
    maintenance: Option<PathBuf>,
}

impl AnsweringOptions {
    /// The master may have been started in another directory.
    pub fn given(self, context: &ProcessContext) -> Result<Option<Answering>, clap::Error> {
        let page = self.maintenance.map(|path| context.absolute(&path).into_os_string().into_string()).transpose();
        let page = page.map_err(|path| {
            let text = format!("--maintenance {}: the name is not UTF-8", path.to_string_lossy());
            error(ErrorKind::ValueValidation, text)
        })?;
        let after = self.max.unwrap_or_default();
        Ok((self.max.is_some() || page.is_some()).then_some(Answering { after, page }))
    }
}
