//! How long a request's body is: RFC 9112 section 6.3, stricter where the RFC leaves a choice. Nothing but
//! Content-Length and Transfer-Encoding frames a body, and whatever two servers in a chain could read
//! differently is refused (request smuggling).

use super::refusal::{self, Refusal};
use super::{syntax, Version};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// The request has no body.
    None,
    Length(u64),
    Chunked,
}

/// What the field lines said about the body, gathered in order.
#[derive(Clone, Copy, Debug, Default)]
pub struct Claims {
    length: Option<u64>,
    coding: Coding,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Coding {
    #[default]
    Absent,
    Chunked,
    Invalid,
    Unknown,
}

impl Claims {
    /// A Content-Length field. Repeated ones are refused even if they agree: RFC 9110 section 8.6 allows that,
    /// and nothing honest sends two.
    pub fn content_length(&mut self, value: &[u8]) -> Result<(), Refusal> {
        if self.length.is_some() {
            return Err(refusal::LENGTH_REPEATED);
        }
        self.length = Some(syntax::length(value).ok_or(refusal::LENGTH_INVALID)?);
        Ok(())
    }

    /// A Transfer-Encoding field: exactly one `chunked` in all of them together.
    pub fn transfer_encoding(&mut self, value: &[u8]) {
        for coding in syntax::list(value) {
            let name = coding.split(|&byte| byte == b';').next().map_or(coding, syntax::trim);
            self.coding = match self.coding {
                Coding::Absent if coding.eq_ignore_ascii_case(b"chunked") => Coding::Chunked,
                // `chunked` twice, or a coding after it: the message's end cannot be known.
                Coding::Chunked | Coding::Invalid => Coding::Invalid,
                Coding::Absent | Coding::Unknown if !syntax::is_token(name) => Coding::Invalid,
                Coding::Absent | Coding::Unknown => Coding::Unknown,
            };
        }
    }

    pub fn framing(&self, version: Version) -> Result<Framing, Refusal> {
        // 1. Transfer-Encoding in a version that does not know it: faulty framing (section 6.1).
        if self.coding != Coding::Absent && version == Version::Http10 {
            return Err(refusal::CODING_IN_HTTP10);
        }
        // 2. Both: section 6.3 step 3 calls it an attempt at smuggling.
        if self.coding != Coding::Absent && self.length.is_some() {
            return Err(refusal::LENGTH_AND_CODING);
        }
        match self.coding {
            // 3. `chunked` and nothing else.
            Coding::Chunked => Ok(Framing::Chunked),
            // 4. `chunked` is there, but not exactly once and last (section 6.3 step 4).
            Coding::Invalid => Err(refusal::CODING_INVALID),
            // 5. Codings that are not implemented here (section 6.1).
            Coding::Unknown => Err(refusal::CODING_UNKNOWN),
            // 6. A length, checked when it was read. 7. Nothing: no body (section 6.3 step 7).
            Coding::Absent => Ok(self.length.map_or(Framing::None, Framing::Length)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framing(version: Version, fields: &[(&str, &str)]) -> Result<Framing, Refusal> {
        let mut claims = Claims::default();
        for (name, value) in fields {
            match *name {
                "cl" => claims.content_length(value.as_bytes())?,
                _ => claims.transfer_encoding(value.as_bytes()),
            }
        }
        claims.framing(version)
    }

    #[test]
    fn every_step() {
        use Version::{Http10, Http11};
        type Case = (Version, &'static [(&'static str, &'static str)], Result<Framing, Refusal>);
        let cases: &[Case] = &[
            (Http11, &[], Ok(Framing::None)),
            (Http11, &[("cl", "0")], Ok(Framing::Length(0))),
            (Http10, &[("cl", "5")], Ok(Framing::Length(5))),
            (Http11, &[("te", "chunked")], Ok(Framing::Chunked)),
            (Http11, &[("te", "CHUNKED")], Ok(Framing::Chunked)),
            (Http10, &[("te", "chunked")], Err(refusal::CODING_IN_HTTP10)),
            (Http11, &[("te", "chunked"), ("cl", "5")], Err(refusal::LENGTH_AND_CODING)),
            (Http11, &[("cl", "5"), ("te", "gzip")], Err(refusal::LENGTH_AND_CODING)),
            (Http11, &[("cl", "5"), ("cl", "5")], Err(refusal::LENGTH_REPEATED)),
            (Http11, &[("cl", "5"), ("cl", "6")], Err(refusal::LENGTH_REPEATED)),
            (Http11, &[("cl", "5,5")], Err(refusal::LENGTH_INVALID)),
            (Http11, &[("cl", "")], Err(refusal::LENGTH_INVALID)),
            (Http11, &[("cl", "+5")], Err(refusal::LENGTH_INVALID)),
            (Http11, &[("te", "gzip")], Err(refusal::CODING_UNKNOWN)),
            (Http11, &[("te", "identity")], Err(refusal::CODING_UNKNOWN)),
            (Http11, &[("te", "xchunked")], Err(refusal::CODING_UNKNOWN)),
            (Http11, &[("te", "gzip, chunked")], Err(refusal::CODING_UNKNOWN)),
            (Http11, &[("te", "gzip"), ("te", "chunked")], Err(refusal::CODING_UNKNOWN)),
            (Http11, &[("te", "chunked, chunked")], Err(refusal::CODING_INVALID)),
            (Http11, &[("te", "chunked"), ("te", "chunked")], Err(refusal::CODING_INVALID)),
            (Http11, &[("te", "chunked, gzip")], Err(refusal::CODING_INVALID)),
            (Http11, &[("te", "chunked,")], Err(refusal::CODING_INVALID)),
            (Http11, &[("te", "chunked;a=b")], Err(refusal::CODING_UNKNOWN)),
            (Http11, &[("te", "")], Err(refusal::CODING_INVALID)),
            (Http11, &[("te", "\x0bchunked")], Err(refusal::CODING_INVALID)),
        ];
        for (version, fields, expected) in cases {
            assert_eq!(framing(*version, fields), *expected, "{fields:?}");
        }
    }
}
