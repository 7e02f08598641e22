//! Logs over an exec: open files go on, since their names may lead elsewhere by now. Standard streams are there anyway.

use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::outlet::Outlet;
use super::{AccessLog, ErrorLog, LogFile, Named};
use crate::config::settings::{AccessTarget, LogTarget};
use crate::files::Node;
use crate::saved::{Claims, Kept};

#[derive(Debug, Serialize, Deserialize)]
pub struct Saved<T> {
    named: Named<T>,
    node: Option<Node>,
}

impl LogFile {
    pub fn save(&self, kept: &mut Kept) -> Saved<LogTarget> {
        let log = self.lock();
        if log.named.target != LogTarget::Stderr {
            kept.keep("log", &*log.outlet);
            log.reader.iter().for_each(|reader| kept.keep("log.reader", reader));
        }
        Saved { named: log.named.clone(), node: log.node }
    }
}

impl ErrorLog {
    pub fn restore(saved: Saved<LogTarget>, claims: &mut Claims) -> io::Result<ErrorLog> {
        let Saved { named, node } = saved;
        if named.target == LogTarget::Stderr {
            return ErrorLog::open(&named);
        }
        let outlet = Arc::new(Outlet::new(claims.claim("log")?));
        Ok(ErrorLog { named, outlet, reader: claims.claim_if_there("log.reader"), made: None, node })
    }
}

impl AccessLog {
    pub fn save(&self, kept: &mut Kept) -> Saved<AccessTarget> {
        if self.named.target != AccessTarget::Stdout {
            kept.keep("access", &self.fd);
            self.reader.iter().for_each(|reader| kept.keep("access.reader", reader));
        }
        Saved { named: self.named.clone(), node: self.node }
    }

    pub fn restore(saved: Saved<AccessTarget>, claims: &mut Claims) -> io::Result<AccessLog> {
        let Saved { named, node } = saved;
        if named.target == AccessTarget::Stdout {
            return AccessLog::open(&named);
        }
        Ok(AccessLog {
            named,
            fd: claims.claim("access")?,
            reader: claims.claim_if_there("access.reader"),
            made: None,
            node,
        })
    }
}
