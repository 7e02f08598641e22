//! The chunked transfer coding (RFC 9112 section 7.1), decoded as it comes. Bytes of framing are taken one at a
//! time by a state machine, data in whole slices; so no split can change the result. Extensions and trailers are
//! bounded, checked by grammar and dropped: trailers never become fields (CVE-2026-73495).

use super::refusal::{self, Refusal};
use super::syntax;

/// 16 hex digits fill a u64 exactly; leading zeros count, or a size line could be endless.
const SIZE_DIGITS_MAX: u32 = 16;
/// All extensions of a message together (CVE-2024-21647: per chunk is not enough). Puma and hyper: 16 KiB.
const EXTENSION_BYTES_MAX: u32 = 16 * 1024;
/// One chunk line. Puma: 4 KiB.
const EXTENSION_LINE_BYTES_MAX: u32 = 4 * 1024;
/// Trailer section. hyper: 16 KiB and 100 fields.
const TRAILER_BYTES_MAX: u32 = 16 * 1024;
const TRAILER_FIELDS_MAX: u32 = 100;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Size {
        size: u64,
        digits: u32,
    },
    /// White space after the size; only an extension may follow it.
    BeforeExtension {
        size: u64,
    },
    Extension {
        size: u64,
        line_bytes: u32,
        place: Place,
    },
    SizeLf {
        size: u64,
    },
    Data {
        left: u64,
    },
    DataCr,
    DataLf,
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLf,
    LastLf,
    End,
}

/// Where in `*( BWS ";" BWS name [ BWS "=" BWS ( token / quoted-string ) ] )` of RFC 9112 section 7.1.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// After a semicolon.
    BeforeName,
    Name,
    /// White space after a name: then `=` or another extension.
    AfterName,
    BeforeValue,
    Token,
    Quoted,
    /// After a backslash.
    Escaped,
    /// After the closing quotation mark.
    AfterQuoted,
    /// White space after a value: only another extension may follow.
    AfterValue,
}

impl Place {
    /// None: the byte may not stand here. Control bytes may stand nowhere: a bare LF is how TERM.EXT smuggling
    /// works (CVE-2025-55315).
    fn step(self, byte: u8) -> Option<Place> {
        let space = byte == b' ' || byte == b'\t';
        let token = syntax::is_token_byte(byte);
        match self {
            Place::BeforeName if space => Some(Place::BeforeName),
            Place::BeforeName | Place::Name if token => Some(Place::Name),
            Place::Name | Place::AfterName if space => Some(Place::AfterName),
            Place::Name | Place::AfterName if byte == b'=' => Some(Place::BeforeValue),
            Place::BeforeValue if space => Some(Place::BeforeValue),
            Place::BeforeValue if byte == b'"' => Some(Place::Quoted),
            Place::BeforeValue | Place::Token if token => Some(Place::Token),
            Place::Quoted if byte == b'"' => Some(Place::AfterQuoted),
            Place::Quoted if byte == b'\\' => Some(Place::Escaped),
            Place::Quoted | Place::Escaped if syntax::is_value_byte(byte) => Some(Place::Quoted),
            Place::Token | Place::AfterQuoted | Place::AfterValue if space => Some(Place::AfterValue),
            Place::Name | Place::AfterName | Place::Token | Place::AfterQuoted | Place::AfterValue if byte == b';' => {
                Some(Place::BeforeName)
            }
            Place::BeforeName
            | Place::Name
            | Place::AfterName
            | Place::BeforeValue
            | Place::Token
            | Place::Quoted
            | Place::Escaped
            | Place::AfterQuoted
            | Place::AfterValue => None,
        }
    }

    /// Whether the line may end here.
    fn is_whole(self) -> bool {
        match self {
            Place::Name | Place::Token | Place::AfterQuoted => true,
            Place::BeforeName | Place::AfterName | Place::BeforeValue => false,
            Place::Quoted | Place::Escaped | Place::AfterValue => false,
        }
    }
}

/// Trailer fields that would change where the request ends or whom it is for, had they come in time (RFC 9110
/// section 6.5.1). They would be dropped as all trailers are; but nothing honest sends them.
const TRAILERS_FORBIDDEN: [&[u8]; 3] = [b"content-length", b"transfer-encoding", b"host"];

/// The beginning of a trailer field's name, as long as the longest of the forbidden ones and one byte more.
#[derive(Clone, Debug, Default)]
struct TrailerName {
    bytes: [u8; 18],
    length: usize,
}

impl TrailerName {
    fn push(&mut self, byte: u8) {
        if let Some(place) = self.bytes.get_mut(self.length) {
            *place = byte.to_ascii_lowercase();
            self.length += 1;
        }
    }

    fn is_forbidden(&self) -> bool {
        TRAILERS_FORBIDDEN.contains(&&self.bytes[..self.length])
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    Data(&'a [u8]),
    /// All input is used up; the body goes on.
    More,
    /// The body has ended; what is left of the input belongs to the next request.
    End,
}

#[derive(Clone, Debug)]
pub struct Decoder {
    state: State,
    extension_bytes: u32,
    trailer_bytes: u32,
    trailer_fields: u32,
    trailer_name: TrailerName,
}

impl Default for Decoder {
    fn default() -> Self {
        let state = State::Size { size: 0, digits: 0 };
        let trailer_name = TrailerName::default();
        Decoder { state, extension_bytes: 0, trailer_bytes: 0, trailer_fields: 0, trailer_name }
    }
}

impl Decoder {
    /// Takes the next piece from the front of `input`.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Piece<'a>, Refusal> {
        loop {
            if self.state == State::End {
                return Ok(Piece::End);
            }
            if let State::Data { left } = self.state {
                if input.is_empty() {
                    return Ok(Piece::More);
                }
                let length = usize::try_from(left).map_or(input.len(), |left| left.min(input.len()));
                let (data, rest) = input.split_at(length);
                *input = rest;
                let left = left - length as u64;
                self.state = if left == 0 { State::DataCr } else { State::Data { left } };
                return Ok(Piece::Data(data));
            }
            let Some((&byte, rest)) = input.split_first() else { return Ok(Piece::More) };
            *input = rest;
            self.state = self.step(byte)?;
        }
    }

    fn step(&mut self, byte: u8) -> Result<State, Refusal> {
        match self.state {
            State::Size { size, digits } => match byte {
                b'\r' if digits > 0 => Ok(State::SizeLf { size }),
                b';' if digits > 0 => self.extension(size, 0, Place::BeforeName),
                b' ' | b'\t' if digits > 0 => Ok(State::BeforeExtension { size }),
                _ => {
                    let digit = char::from(byte).to_digit(16).ok_or(refusal::CHUNK_SIZE)?;
                    if digits == SIZE_DIGITS_MAX {
                        return Err(refusal::CHUNK_SIZE);
                    }
                    // At most 16 digits, so the shift loses nothing.
                    Ok(State::Size { size: size << 4 | u64::from(digit), digits: digits + 1 })
                }
            },
            State::BeforeExtension { size } => match byte {
                b' ' | b'\t' => {
                    self.count_extension()?;
                    Ok(State::BeforeExtension { size })
                }
                b';' => self.extension(size, 0, Place::BeforeName),
                _ => Err(refusal::CHUNK_SIZE),
            },
            State::Extension { size, line_bytes, place } => match (byte, place.step(byte)) {
                (b'\r', _) if place.is_whole() => Ok(State::SizeLf { size }),
                (_, Some(next)) => self.extension(size, line_bytes, next),
                (_, None) => Err(refusal::CHUNK_EXTENSION),
            },
            State::SizeLf { size } => match (byte, size) {
                (b'\n', 0) => Ok(State::TrailerStart),
                (b'\n', left) => Ok(State::Data { left }),
                _ => Err(refusal::BARE_CR),
            },
            State::DataCr if byte == b'\r' => Ok(State::DataLf),
            State::DataLf if byte == b'\n' => Ok(State::Size { size: 0, digits: 0 }),
            State::DataCr | State::DataLf => Err(refusal::CHUNK_END),
            State::TrailerStart => match byte {
                b'\r' => Ok(State::LastLf),
                byte if syntax::is_token_byte(byte) => {
                    self.trailer_fields += 1;
                    if self.trailer_fields > TRAILER_FIELDS_MAX {
                        return Err(refusal::TRAILERS_LONG);
                    }
                    self.trailer_name = TrailerName::default();
                    self.trailer_name.push(byte);
                    self.trailer(State::TrailerName)
                }
                _ => Err(refusal::TRAILER),
            },
            State::TrailerName => match byte {
                b':' if self.trailer_name.is_forbidden() => Err(refusal::TRAILER_FORBIDDEN),
                b':' => self.trailer(State::TrailerValue),
                byte if syntax::is_token_byte(byte) => {
                    self.trailer_name.push(byte);
                    self.trailer(State::TrailerName)
                }
                _ => Err(refusal::TRAILER),
            },
            State::TrailerValue => match byte {
                b'\r' => Ok(State::TrailerLf),
                byte if syntax::is_value_byte(byte) => self.trailer(State::TrailerValue),
                _ => Err(refusal::TRAILER),
            },
            State::TrailerLf if byte == b'\n' => Ok(State::TrailerStart),
            State::TrailerLf => Err(refusal::TRAILER),
            State::LastLf if byte == b'\n' => Ok(State::End),
            State::LastLf => Err(refusal::BARE_CR),
            // `next` never steps in these two.
            State::Data { .. } | State::End => Ok(self.state),
        }
    }

    fn extension(&mut self, size: u64, line_bytes: u32, place: Place) -> Result<State, Refusal> {
        self.count_extension()?;
        if line_bytes >= EXTENSION_LINE_BYTES_MAX {
            return Err(refusal::CHUNK_EXTENSION);
        }
        Ok(State::Extension { size, line_bytes: line_bytes + 1, place })
    }

    fn count_extension(&mut self) -> Result<(), Refusal> {
        self.extension_bytes += 1;
        if self.extension_bytes > EXTENSION_BYTES_MAX {
            return Err(refusal::CHUNK_EXTENSION);
        }
        Ok(())
    }

    fn trailer(&mut self, state: State) -> Result<State, Refusal> {
        self.trailer_bytes += 1;
        if self.trailer_bytes > TRAILER_BYTES_MAX {
            return Err(refusal::TRAILERS_LONG);
        }
        Ok(state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The decoded body and what follows it; None where the input ends too early.
    type Decoded<'a> = Result<Option<(Vec<u8>, &'a [u8])>, Refusal>;

    fn decode(input: &[u8]) -> Decoded<'_> {
        let mut decoder = Decoder::default();
        let mut rest = input;
        let mut body = Vec::new();
        loop {
            match decoder.next(&mut rest)? {
                Piece::Data(data) => body.extend_from_slice(data),
                Piece::More => return Ok(None),
                Piece::End => return Ok(Some((body, rest))),
            }
        }
    }

    #[test]
    fn bodies() {
        assert_eq!(decode(b"0\r\n\r\n"), Ok(Some((vec![], &b""[..]))));
        assert_eq!(decode(b"3\r\nabc\r\n2;x=\"y\"\r\nde\r\n0\r\n\r\nGET"), Ok(Some((b"abcde".to_vec(), &b"GET"[..]))));
        assert_eq!(
            decode(b"00a\r\n0123456789\r\n0\r\nA: b\r\nC:\r\n\r\n"),
            Ok(Some((b"0123456789".to_vec(), &b""[..])))
        );
        for extension in [" ;a", ";a", "\t; a", ";a;b", ";a = b", ";a=\t\"x;\\\"y\" ; b", ";a=\"\u{e9}\"", ";a=\"\""] {
            let bytes = format!("1{extension}\r\nx\r\n0{extension}\r\nhosts: h\r\nhos: h\r\n\r\n");
            assert_eq!(decode(bytes.as_bytes()), Ok(Some((b"x".to_vec(), &b""[..]))), "{extension}");
        }
        for unfinished in [&b""[..], b"3", b"3\r\nab", b"3\r\nabc\r\n0\r\n", b"0\r\n\r", b"0\r\nA: b\r\n"] {
            assert_eq!(decode(unfinished), Ok(None), "{unfinished:?}");
        }
    }

    #[test]
    fn refused() {
        let cases: &[(&[u8], Refusal)] = &[
            (b"\r\n", refusal::CHUNK_SIZE),
            (b";a\r\n", refusal::CHUNK_SIZE),
            (b"+3\r\n", refusal::CHUNK_SIZE),
            (b"0x3\r\n", refusal::CHUNK_SIZE),
            (b"3 \r\n", refusal::CHUNK_SIZE),
            (b" 3\r\n", refusal::CHUNK_SIZE),
            (b"00000000000000003\r\n", refusal::CHUNK_SIZE),
            (b"3\nabc", refusal::CHUNK_SIZE),
            (b"3\rabc", refusal::BARE_CR),
            (b"3;a\nabc", refusal::CHUNK_EXTENSION),
            (b"3;a\0\r\n", refusal::CHUNK_EXTENSION),
            (b"3;\r\n", refusal::CHUNK_EXTENSION),
            (b"3;;a\r\n", refusal::CHUNK_EXTENSION),
            (b"3;a;\r\n", refusal::CHUNK_EXTENSION),
            (b"3;a \r\n", refusal::CHUNK_EXTENSION),
            (b"3;a=\r\n", refusal::CHUNK_EXTENSION),
            (b"3;a=b \r\n", refusal::CHUNK_EXTENSION),
            (b"3;a=b=c\r\n", refusal::CHUNK_EXTENSION),
            (b"3;=b\r\n", refusal::CHUNK_EXTENSION),
            (b"3;a b\r\n", refusal::CHUNK_EXTENSION),
            (b"3;a=\"b\r\n", refusal::CHUNK_EXTENSION),
            (b"3;a=\"b\\\r\n", refusal::CHUNK_EXTENSION),
            (b"3;a=\"b\"c\r\n", refusal::CHUNK_EXTENSION),
            (b"3;a=b\"c\"\r\n", refusal::CHUNK_EXTENSION),
            (b"3;\xe9\r\n", refusal::CHUNK_EXTENSION),
            (b"3;a=\"\x7f\"\r\n", refusal::CHUNK_EXTENSION),
            (b"0\r\nContent-Length: 1\r\n", refusal::TRAILER_FORBIDDEN),
            (b"0\r\na: b\r\nTRANSFER-encoding: chunked\r\n", refusal::TRAILER_FORBIDDEN),
            (b"0\r\nhost: h\r\n", refusal::TRAILER_FORBIDDEN),
            (b"3\r\nabcd", refusal::CHUNK_END),
            (b"3\r\nabc\n", refusal::CHUNK_END),
            (b"3\r\nabc\rx", refusal::CHUNK_END),
            (b"0\r\n\n", refusal::TRAILER),
            (b"0\r\n\rx", refusal::BARE_CR),
            (b"0\r\n: b\r\n", refusal::TRAILER),
            (b"0\r\nA : b\r\n", refusal::TRAILER),
            (b"0\r\n a: b\r\n", refusal::TRAILER),
            (b"0\r\na: b\n", refusal::TRAILER),
            (b"0\r\na: b\rc", refusal::TRAILER),
        ];
        for (input, expected) in cases {
            assert_eq!(decode(input), Err(*expected), "{input:?}");
        }
    }

    #[test]
    fn bounds() {
        let long = |bytes: usize| [b"1;".to_vec(), vec![b'a'; bytes], b"\r\nx\r\n".to_vec()].concat();
        assert_eq!(decode(&long(4095)), Ok(None));
        assert_eq!(decode(&long(4096)), Err(refusal::CHUNK_EXTENSION));
        assert_eq!(decode(&long(4000).repeat(4)), Ok(None));
        assert_eq!(decode(&long(4000).repeat(5)), Err(refusal::CHUNK_EXTENSION));
        let trailers = |count: usize| [b"0\r\n".to_vec(), b"a: b\r\n".repeat(count)].concat();
        assert_eq!(decode(&trailers(100)), Ok(None));
        assert_eq!(decode(&trailers(101)), Err(refusal::TRAILERS_LONG));
        let trailer = [b"0\r\na:".to_vec(), vec![b'x'; 20_000]].concat();
        assert_eq!(decode(&trailer), Err(refusal::TRAILERS_LONG));
        assert_eq!(decode(b"ffffffffffffffff\r\nabc"), Ok(None));
    }
}
