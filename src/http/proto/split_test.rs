//! The property that all of `proto` is built for: how the bytes of a stream were split changes nothing. And the fuzz
//! targets' properties on their seeds and on changes of these: a short run that is the same every time.

use std::path::PathBuf;

use super::check::{self, read};

#[test]
fn every_split_gives_the_same_requests() {
    let streams: &[&[u8]] = &[
        b"GET / HTTP/1.1\r\nHost: h\r\n\r\n",
        b"\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\nPOST /b HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabcGET /c HTTP/1.0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nT: u\r\n\r\nGET / HTTP/1.0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3;a\nabc\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\nA: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\n A: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nA\r: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nA : b\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: b\r\nB: c\r\nC: d\r\nD: e\r\nE: f\r\n\r\n",
        b"GET /aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nA: bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb\r\n\r\n",
        b"GET /aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa HTTP/1.1\r\nA: bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb\r\nC: ddddddddddddddddddddddddddddddddddddddddddddddddd\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\r\n\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        b"\rGET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/3.0\r\n\r\n",
        b"GET /unfinished HTTP/1.1\r\nHost",
    ];
    for stream in streams {
        let expected = read(&[stream]);
        let bytes: Vec<&[u8]> = stream.chunks(1).collect();
        assert_eq!(read(&bytes), expected, "one by one: {:?}", String::from_utf8_lossy(stream));
        for one in 0..=stream.len() {
            for two in one..=stream.len() {
                let pieces = [&stream[..one], &stream[one..two], &stream[two..]];
                assert_eq!(read(&pieces), expected, "{one} {two}: {:?}", String::from_utf8_lossy(stream));
            }
        }
    }
}

/// Streams that nobody would think of: pieces of requests, bytes that matter, and chance. Nothing may panic, and
/// byte by byte must be the same as at once.
#[test]
fn chance_finds_no_split_that_matters() {
    const PIECES: [&[u8]; 24] = [
        b"GET / HTTP/1.1\r\n",
        b"POST /a?b HTTP/1.1\r\n",
        b"GET http://h/p HTTP/1.0\r\n",
        b"Host: h\r\n",
        b"\r\n",
        b"\r",
        b"\n",
        b"Content-Length: 3\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Connection: close\r\n",
        b"Expect: 100-continue\r\n",
        b"abc",
        b"3\r\n",
        b"0\r\n",
        b";x=y",
        b":",
        b" ",
        b"\t",
        b"\0",
        b"\xff",
        b"f",
        b"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        b"\r\n\r\n",
        b"T: u\r\n",
    ];
    let mut chance = Chance(0x9e37_79b9_7f4a_7c15);
    let mut next = |bound| chance.below(bound);
    for _ in 0..20_000 {
        // Half of the streams begin as a request that is valid so far, so that bodies are reached.
        let mut stream = if next(2) == 0 { Vec::new() } else { b"POST / HTTP/1.1\r\nHost: h\r\n".to_vec() };
        for _ in 0..next(12) {
            stream.extend_from_slice(PIECES[next(PIECES.len())]);
        }
        let bytes: Vec<&[u8]> = stream.chunks(1).collect();
        assert_eq!(read(&bytes), read(&[&stream]), "{:?}", String::from_utf8_lossy(&stream));
        check::at_once(&stream);
    }
}

/// Whole heads take a way of their own (`Head::find`), which must not be told from the other: with each byte of one
/// replaced by every other, taken out, and put in.
#[test]
fn no_byte_makes_a_difference_between_the_two_ways_to_read_a_head() {
    let heads: [&[u8]; 6] = [
        // As many fields as may be, and one more.
        b"GET / HTTP/1.0\r\nA:b\r\nB:c\r\nC:d\r\nD:e\r\n\r\n",
        b"GET / HTTP/1.0\r\nA:b\r\nB:c\r\nC:d\r\nD:e\r\nE:f\r\n\r\n",
        b"GET /a?b HTTP/1.1\r\nHost: h\r\nAccept: */*\r\n\r\n",
        b"\r\nPOST http://h/p HTTP/1.0\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nhost:h:80\r\nExpect: 100-continue \r\nX-Y:\r\n\r\n",
    ];
    for head in heads {
        check::at_once(head);
        for at in 0..head.len() {
            check::at_once(&[&head[..at], &head[at + 1..]].concat());
            check::at_once(&head[..at]);
            for byte in 0..=255 {
                check::at_once(&[&head[..at], &[byte], &head[at + 1..]].concat());
                check::at_once(&[&head[..at], &[byte], &head[at..]].concat());
                check::at_once(&[&head[..at], &[byte, b'\n'], &head[at..]].concat());
            }
        }
    }
}

/// A number below a bound; xorshift64 with a fixed seed: the same every time.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound.max(1) as u64) as usize
    }

    /// A seed with a few bytes changed, taken out, put in twice, or joined with another seed.
    fn change(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        const BYTES: &[u8] = b"\r\n\0 \t:;,=\"\\/%0123456789abcdefxPROXYTCP\x7f\xff";
        let mut bytes = seeds[self.below(seeds.len())].clone();
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len());
            let byte = BYTES[self.below(BYTES.len())];
            match self.below(5) {
                0 if !bytes.is_empty() => bytes[at] = byte,
                1 if !bytes.is_empty() => drop(bytes.remove(at)),
                2 => bytes.insert(at, byte),
                3 => {
                    let end = (at + 1 + self.below(8)).min(bytes.len());
                    let again = bytes[at..end].to_vec();
                    bytes.splice(at..at, again);
                }
                _ => {
                    bytes.truncate(at);
                    let other = &seeds[self.below(seeds.len())];
                    bytes.extend_from_slice(&other[self.below(other.len())..]);
                }
            }
        }
        bytes
    }
}

/// The seeds of a fuzz target.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let entries = std::fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("a listing").path()).collect();
    files.sort();
    assert!(!files.is_empty(), "no seeds in {}", directory.display());
    files.iter().map(|file| std::fs::read(file).expect("a seed")).collect()
}

#[test]
fn the_fuzz_targets_hold_on_changes_of_their_seeds() {
    const CHANGES: usize = 20_000;
    type Check = fn(&[u8]);
    let targets: [(&str, Check); 5] = [
        ("requests", check::requests),
        ("head", check::head),
        ("framing", check::framing),
        ("chunked", check::chunked),
        ("proxy", check::proxy),
    ];
    for (target, check) in targets {
        let seeds = seeds(target);
        seeds.iter().for_each(|seed| check(seed));
        let mut chance = Chance(0x9e37_79b9_7f4a_7c15);
        for _ in 0..CHANGES {
            check(&chance.change(&seeds));
        }
    }
}
