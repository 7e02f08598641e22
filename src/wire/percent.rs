//! Percent-decoding of paths (RFC 3986 section 2.1).

/// Decodes every valid `%XX`; anything else stays as it is, so that the application sees what the client sent.
pub fn decode(path: &[u8], decoded: &mut Vec<u8>) {
    decoded.clear();
    let mut rest = path;
    while let [first, tail @ ..] = rest {
        if let ([b'%', high, low, after @ ..], true) = (rest, *first == b'%') {
            if let (Some(high), Some(low)) = (hex(*high), hex(*low)) {
                decoded.push(high << 4 | low);
                rest = after;
                continue;
            }
        }
        decoded.push(*first);
        rest = tail;
    }
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn valid_triplets_are_decoded_and_nothing_else() {
        let cases: [(&[u8], &[u8]); 7] = [
            (b"/plain", b"/plain"),
            (b"/a%20b%2Fc%c3%A9", b"/a b/c\xc3\xa9"),
            (b"%", b"%"),
            (b"%4", b"%4"),
            (b"%zz%41", b"%zzA"),
            (b"%%41", b"%A"),
            (b"%2541", b"%41"),
        ];
        for (encoded, decoded) in cases {
            let mut found = Vec::from(b"of the last call");
            decode(encoded, &mut found);
            assert_eq!(found, decoded, "{:?}", String::from_utf8_lossy(encoded));
        }
    }
}
