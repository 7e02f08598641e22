//! Character classes and small grammars that several parts need (RFC 9110 section 5, RFC 9112 section 2.2).

/// `tchar` of RFC 9110 section 5.6.2.
const TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        let b = byte as u8;
        table[byte] = b.is_ascii_alphanumeric()
            || matches!(
                b,
                b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
            );
        byte += 1;
    }
    table
};

pub fn is_token_byte(byte: u8) -> bool {
    TOKEN[usize::from(byte)]
}

pub fn is_token(text: &[u8]) -> bool {
    // Without a branch for each byte.
    !text.is_empty() && text.iter().fold(true, |good, &byte| good & is_token_byte(byte))
}

const VALUE: [bool; 256] = {
    let mut table = [true; 256];
    let mut byte = 0;
    while byte < 0x20 {
        table[byte] = byte == b'\t' as usize;
        byte += 1;
    }
    table[0x7f] = false;
    table
};

/// A byte of a field value: visible, SP, HTAB or obs-text; never CR, LF, NUL or another control byte.
pub fn is_value_byte(byte: u8) -> bool {
    VALUE[usize::from(byte)]
}

pub fn is_value(text: &[u8]) -> bool {
    // Without a branch for each byte. Eight at a time by arithmetic: of a block of bytes the compiler makes 27 kB of code.
    let words = text.chunks_exact(8);
    let rest = words.remainder();
    let bad = words.fold(0, |bad, word| bad | bad_bytes(u64::from_ne_bytes(word.try_into().expect("eight bytes"))));
    bad == 0 && rest.iter().fold(true, |good, &byte| good & is_value_byte(byte))
}

/// The highest bit of each byte that `is_value_byte` refuses. No step carries from one byte into the next.
fn bad_bytes(word: u64) -> u64 {
    const EACH: u64 = 0x0101_0101_0101_0101;
    const HIGHEST: u64 = 0x80 * EACH;
    let is = |byte: u64| {
        let differs = word ^ (byte * EACH);
        !(((differs & !HIGHEST) + !HIGHEST) | differs) & HIGHEST
    };
    let is_control = !((word | HIGHEST) - 0x20 * EACH) & !word & HIGHEST;
    (is_control & !is(0x09)) | is(0x7f)
}

/// OWS is SP and HTAB and nothing else (CVE-2019-16789: `\x0b` and friends are not white space here).
pub fn trim(text: &[u8]) -> &[u8] {
    let space = |byte: &u8| *byte == b' ' || *byte == b'\t';
    let start = text.iter().position(|byte| !space(byte)).unwrap_or(text.len());
    let end = text.iter().rposition(|byte| !space(byte)).map_or(start, |last| last + 1);
    &text[start..end]
}

/// The elements of a comma-separated list, trimmed, empty ones included.
pub fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(trim)
}

/// A length as RFC 9110 section 8.6 has it: digits only. No sign, no space, no list, and no more than fits.
pub fn length(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |sum, &byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        sum.checked_mul(10)?.checked_add(digit)
    })
}

/// The longest id of a request that is taken.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// Whether an id may go into logs and answers as it is: UUIDs, hexadecimal numbers, what load balancers make of them
/// (`Root=1-67891233-abcdef012345678912345678`, `105445aa7843bc8bf206b120001000/1;o=1`), and nothing that ends a field of a line.
pub fn is_request_id(id: &[u8]) -> bool {
    let fits = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:/+=;@~".contains(byte);
    (1..=REQUEST_ID_BYTES_MAX).contains(&id.len()) && id.iter().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_digits_only() {
        assert_eq!(length(b"0"), Some(0));
        assert_eq!(length(b"007"), Some(7));
        assert_eq!(length(b"18446744073709551615"), Some(u64::MAX));
        for bad in [&b""[..], b"+1", b"-1", b" 1", b"1 ", b"1,1", b"0x1", b"1_0", b"18446744073709551616", b"\xb2"] {
            assert_eq!(length(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn values_have_no_control_bytes_wherever_they_stand() {
        for byte in 0..=u8::MAX {
            let allowed = byte == b'\t' || (byte >= 0x20 && byte != 0x7f);
            assert_eq!(is_value_byte(byte), allowed, "{byte}");
            for at in [0, 1, 7, 8, 31, 32, 62, 63, 64, 69] {
                let mut value = vec![b'a'; 70];
                value[at] = byte;
                assert_eq!(is_value(&value), allowed, "{byte} at {at}");
            }
        }
        assert!(is_value(b""));
        // What one byte is says nothing of the next.
        for (first, second) in (0..=u16::MAX).map(|pair| (pair as u8, (pair >> 8) as u8)) {
            let pair = [b'a', b'a', b'a', first, second, b'a', b'a', b'a'];
            assert_eq!(is_value(&pair), is_value_byte(first) && is_value_byte(second), "{first} {second}");
        }
    }

    #[test]
    fn only_space_and_tab_are_trimmed() {
        assert_eq!(trim(b" \t a b \t"), b"a b");
        assert_eq!(trim(b"\x0ba\x0c"), b"\x0ba\x0c");
        assert_eq!(trim(b"  "), b"");
    }

    #[test]
    fn tokens() {
        assert!(is_token(b"X-Name_1"));
        for bad in [&b""[..], b"a b", b"a:", b"a\0", b"\xe9", b"(a)"] {
            assert!(!is_token(bad), "{bad:?}");
        }
    }
}
