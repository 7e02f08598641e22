//! Raw requests and what must come of them: how many answers, with which status, what the application saw, and
//! whether the connection may go on. One table for the parser, for the serving loop in its crate and for the whole
//! server. The settings are the defaults.
//!
//! Text is written as latin-1: `\u{e9}` is the byte 0xe9.

/// One exchange of a client with the server.
pub struct Case {
    pub name: String,
    pub bytes: Vec<u8>,
    pub answers: Vec<Answer>,
    /// The connection takes another request after the answers; else the server closes it without a reset.
    pub kept: bool,
    /// The client ends its sending direction after the bytes.
    pub ends: bool,
}

#[derive(Clone, Debug)]
pub enum Answer {
    /// The application saw this.
    Seen(Seen),
    /// It saw nothing.
    Refused(u16),
}

#[derive(Clone, Debug)]
pub struct Seen {
    pub method: &'static str,
    pub target: String,
    /// Environ keys and values as latin-1; None: the key is not there.
    pub environ: Vec<(&'static str, Option<String>)>,
    pub body: Vec<u8>,
}

impl Seen {
    fn with(mut self, environ: &[(&'static str, &str)]) -> Seen {
        self.environ.extend(environ.iter().map(|(key, value)| (*key, Some((*value).to_string()))));
        self
    }

    fn without(mut self, keys: &[&'static str]) -> Seen {
        self.environ.extend(keys.iter().map(|key| (*key, None)));
        self
    }

    fn body(mut self, body: &str) -> Seen {
        self.body = latin1(body);
        self
    }
}

/// Nothing beyond ASCII and latin-1 is in the table.
pub fn latin1(text: &str) -> Vec<u8> {
    text.chars().map(|c| u8::try_from(u32::from(c)).expect("the table is latin-1")).collect()
}

fn seen(method: &'static str, target: &str) -> Seen {
    Seen { method, target: target.to_string(), environ: Vec::new(), body: Vec::new() }
}

/// A table in the making.
#[derive(Default)]
struct Corpus(Vec<Case>);

impl Corpus {
    fn add(&mut self, bytes: &str, answers: Vec<Answer>, kept: bool, ends: bool) {
        let shown: String = bytes.chars().take(100).collect();
        let name = format!("{} {shown:?}", self.0.len());
        self.0.push(Case { name, bytes: latin1(bytes), answers, kept, ends });
    }

    fn kept(&mut self, bytes: &str, seen: Seen) {
        self.add(bytes, vec![Answer::Seen(seen)], true, false);
    }

    fn closed(&mut self, bytes: &str, seen: Seen) {
        self.add(bytes, vec![Answer::Seen(seen)], false, false);
    }

    fn refused(&mut self, status: u16, bytes: &str) {
        self.add(bytes, vec![Answer::Refused(status)], false, false);
    }

    /// GET with these field lines after Host; each ends with CRLF.
    fn refused_fields(&mut self, status: u16, fields: &str) {
        self.refused(status, &format!("GET / HTTP/1.1\r\nHost: h\r\n{fields}\r\n\r\n"));
    }

    fn refused_body(&mut self, status: u16, body: &str) {
        self.refused(status, &format!("{CHUNKED}{body}"));
    }

    fn chunked(&mut self, body: &str, decoded: &str) {
        let seen = seen("POST", "/c").body(decoded).without(&["HTTP_T", "HTTP_HOSTS", "HTTP_COOKIE"]);
        self.kept(&format!("{CHUNKED}{body}"), seen);
    }
}

const CHUNKED: &str = "POST /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";

pub fn cases() -> Vec<Case> {
    let mut corpus = Corpus::default();
    request_lines(&mut corpus);
    targets(&mut corpus);
    hosts(&mut corpus);
    fields(&mut corpus);
    lengths(&mut corpus);
    codings(&mut corpus);
    chunks(&mut corpus);
    persistence(&mut corpus);
    expectations(&mut corpus);
    limits(&mut corpus);
    endings(&mut corpus);
    corpus.0
}

fn request_lines(corpus: &mut Corpus) {
    let method = |method: &str| format!("{method} /m HTTP/1.1\r\nHost: h\r\n\r\n");
    for known in ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "PROPFIND", "get", "M-SEARCH"] {
        corpus.kept(&method(known), seen(known, "/m").with(&[("REQUEST_METHOD", known), ("PATH_INFO", "/m")]));
    }
    corpus.kept(&method("!#$%&'*+-.^_`|~09az"), seen("!#$%&'*+-.^_`|~09az", "/m"));
    for bad in [
        "", "G(T", "G,T", "G/T", "G:T", "G;T", "G<T", "G=T", "G>T", "G?T", "G@T", "G[T", "G\\T", "G{T", "G\"T", "G\0T",
        "G\u{e9}T", "G\tT", "G\x7fT", "\x0bGET", " GET", "\tGET", "\u{0}GET",
    ] {
        corpus.refused(400, &method(bad));
    }
    corpus.refused(501, "CONNECT h:443 HTTP/1.1\r\nHost: h:443\r\n\r\n");
    corpus.refused(501, "CONNECT / HTTP/1.1\r\nHost: h\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n");
    for version in ["HTTP/2.0", "HTTP/3.0", "HTTP/1.2", "HTTP/0.9", "HTTP/1.9", "HTTP/9.9"] {
        corpus.refused(505, &format!("GET / {version}\r\nHost: h\r\n\r\n"));
    }
    corpus.refused(505, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    for version in [
        "HTTP/1.10",
        "HTTP/01.1",
        "HTTP/1",
        "HTTP/1.",
        "HTTP/.1",
        "HTTP/1.1.",
        "HTTP /1.1",
        "HTTP/ 1.1",
        "HTTP/1 .1",
        "http/1.1",
        "Http/1.1",
        "HTTPS/1.1",
        "HTP/1.1",
        "XHTTP/1.1",
        "HTTP/1,1",
        "HTTP/1.a",
        "HTTP/-1.1",
        "HTTP/1.1\0",
        "HTTP/1.1 x",
        "HTTP/1.1 ",
        " HTTP/1.1",
        "\tHTTP/1.1",
        "HTTP/1.1\t",
        "x HTTP/1.1",
        "RTSP/1.0",
        "",
    ] {
        corpus.refused(400, &format!("GET / {version}\r\nHost: h\r\n\r\n"));
    }
    for line in [
        "GET",
        "GET /",
        "GET  / HTTP/1.1",
        "GET\t/ HTTP/1.1",
        "GET /\tHTTP/1.1",
        "GET /\x0bHTTP/1.1",
        "GET/ HTTP/1.1",
        "GET / a HTTP/1.1",
        "GET / HTTP/1.1 HTTP/1.1",
        "/ HTTP/1.1",
        "HTTP/1.1 200 OK",
        "GET /\u{a0}HTTP/1.1",
    ] {
        corpus.refused(400, &format!("{line}\r\nHost: h\r\n\r\n"));
    }
    // What is no HTTP at all.
    corpus.refused(400, "\x16\x03\x01\x02\0\x01\0\x01\u{fc}\x03\x03");
    corpus.refused(400, "\0\0\0");
    corpus.refused(400, "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n");
    corpus.refused(400, "\r\n\r\n\0\r\nQUIT\n");
    // Empty lines before a request: two are skipped.
    corpus.kept("\r\nGET /e HTTP/1.1\r\nHost: h\r\n\r\n", seen("GET", "/e"));
    corpus.kept("\r\n\r\nGET /e HTTP/1.1\r\nHost: h\r\n\r\n", seen("GET", "/e"));
    corpus.refused(400, "\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n");
    corpus.refused(400, "\nGET / HTTP/1.1\r\nHost: h\r\n\r\n");
    corpus.refused(400, "\r\n \r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n");
    corpus.refused(400, "\rGET / HTTP/1.1\r\nHost: h\r\n\r\n");
    // Line ends.
    corpus.refused(400, "GET / HTTP/1.1\nHost: h\r\n\r\n");
    corpus.refused(400, "GET / HTTP/1.1\r\nHost: h\n\r\n");
    corpus.refused(400, "GET / HTTP/1.1\r\nHost: h\r\n\n");
    corpus.refused(400, "GET / HTTP/1.1\n\n");
    corpus.refused(400, "GET / HTTP/1.1\r\rHost: h\r\n\r\n");
    corpus.refused(400, "GET / HTTP/1.1\r\nHost: h\r\r\n\r\n");
    corpus.refused(400, "GET / HTTP/1.1\r\nHost: h\r\n\r \n");
    corpus.refused(400, "GET /\r HTTP/1.1\r\nHost: h\r\n\r\n");
    corpus.refused(400, "GET /\n HTTP/1.1\r\nHost: h\r\n\r\n");
}

fn targets(corpus: &mut Corpus) {
    let get = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n");
    for (target, path, query) in [
        ("/", "/", ""),
        ("/a/b?c=d&e", "/a/b", "c=d&e"),
        ("/?", "/", ""),
        ("/?a?b=/c", "/", "a?b=/c"),
        ("//double//slash", "//double//slash", ""),
        ("/../a/./b", "/../a/./b", ""),
        ("/caf%C3%A9", "/caf\u{c3}\u{a9}", ""),
        ("/%2F%25%00", "/\u{2f}%\0", ""),
        ("/%zz%4", "/%zz%4", ""),
        ("/a;b=c", "/a;b=c", ""),
        ("/a:b@c!$&'()*+,=~-_.", "/a:b@c!$&'()*+,=~-_.", ""),
        ("/\"<>[\\]^`{|}", "/\"<>[\\]^`{|}", ""),
        ("/caf\u{c3}\u{a9}?\u{c3}\u{a9}", "/caf\u{c3}\u{a9}", "\u{c3}\u{a9}"),
        ("/http://other/x", "/http://other/x", ""),
        ("/a?http://other/x", "/a", "http://other/x"),
        ("/+%2B", "/++", ""),
    ] {
        let environ = [("PATH_INFO", path), ("QUERY_STRING", query), ("RAW_URI", target), ("HTTP_HOST", "h")];
        corpus.kept(&get(target), seen("GET", target).with(&environ));
    }
    for target in [
        "a",
        "a/b",
        "h:80",
        "*",
        "?a",
        ".",
        "..",
        "/#",
        "/a#b",
        "#",
        "/a\x7f",
        "/a\0b",
        "/a\x1bb",
        "/\x0c",
        "ftp://h/",
        "file:///etc/passwd",
        "http:/h/",
        "http//h/",
        "://h/",
        "http://",
        "http:///a",
        "http://?a",
        "http://u@h/",
        "http://u:p@h/",
        "http://h:x/",
        "http://h:80:80/",
        "http://[::1/",
        "http://h\u{e9}/",
        "http://h#/",
        "http://:80/",
        "javascript:alert(1)",
        "*a",
        "/\u{fe}\u{ff}",
    ] {
        corpus.refused(400, &get(target));
    }
    // Absolute-form: the authority counts, whatever Host says (RFC 9112 section 3.2.2).
    for (target, path, query, host) in [
        ("http://other/p?q", "/p", "q", "other"),
        ("http://other:8080/", "/", "", "other:8080"),
        ("HTTP://other", "/", "", "other"),
        ("https://other/p", "/p", "", "other"),
        ("http://other?q", "/", "q", "other"),
        ("http://[::1]:80/p", "/p", "", "[::1]:80"),
        ("http://other:/p", "/p", "", "other:"),
        ("http://h/http://x", "/http://x", "", "h"),
    ] {
        let environ = [("PATH_INFO", path), ("QUERY_STRING", query), ("HTTP_HOST", host), ("RAW_URI", target)];
        corpus.kept(&get(target), seen("GET", target).with(&environ));
    }
    corpus.closed(
        "GET http://other/p HTTP/1.0\r\n\r\n",
        seen("GET", "http://other/p").with(&[("HTTP_HOST", "other"), ("SERVER_PROTOCOL", "HTTP/1.0")]),
    );
    corpus.refused(400, "GET http://other/p HTTP/1.1\r\n\r\n");
    corpus.refused(400, "GET http://other/p HTTP/1.1\r\nHost: a b\r\n\r\n");
    corpus.refused(400, "GET http://other/p HTTP/1.1\r\nHost: a\r\nHost: other\r\n\r\n");
    // Asterisk-form is for OPTIONS.
    corpus.kept("OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", seen("OPTIONS", "*").with(&[("PATH_INFO", "*")]));
    corpus.kept("OPTIONS /o HTTP/1.1\r\nHost: h\r\n\r\n", seen("OPTIONS", "/o").with(&[("PATH_INFO", "/o")]));
    corpus.kept(
        "OPTIONS http://other HTTP/1.1\r\nHost: h\r\n\r\n",
        seen("OPTIONS", "http://other").with(&[("PATH_INFO", "*"), ("HTTP_HOST", "other")]),
    );
    corpus.refused(400, "POST * HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n");
}

fn hosts(corpus: &mut Corpus) {
    let get = |host: &str| format!("GET /h HTTP/1.1\r\nHost:{host}\r\n\r\n");
    for host in [
        "h",
        "a.example",
        "a.example:80",
        "A.EXAMPLE",
        "127.0.0.1:8000",
        "[::1]",
        "[::1]:8000",
        "[2001:db8::ffff:1.2.3.4]",
        "a_b",
        "a-b.c.",
        "h:",
        "h:65535",
        "h:0",
        "xn--caf-dma",
        "a%41",
        "a,b",
        "a;b",
        "(a)",
    ] {
        corpus.kept(&get(&format!(" {host}")), seen("GET", "/h").with(&[("HTTP_HOST", host)]));
    }
    corpus.kept(&get("h"), seen("GET", "/h").with(&[("HTTP_HOST", "h")]));
    corpus.kept(&get("\t h \t "), seen("GET", "/h").with(&[("HTTP_HOST", "h")]));
    for host in [
        "",
        " ",
        " a b",
        " a\tb",
        " a/b",
        " /",
        " a?b",
        " a#b",
        " u@h",
        " http://h",
        " h:x",
        " h:80:80",
        " h:65536",
        " h:-1",
        " h:+1",
        " h: 80",
        " :80",
        " [::1",
        " ::1",
        " [::1]x",
        " []",
        " [g::1]",
        " [::1%25eth0]",
        " [v7.a]",
        " a%4",
        " a%zz",
        " h\u{e9}",
        " h\0",
        " h\x7f",
        " a\\b",
        " \"h\"",
        " <h>",
        " h,h2 , x",
    ] {
        corpus.refused(400, &get(host));
    }
    corpus.refused(400, "GET / HTTP/1.1\r\n\r\n");
    corpus.refused(400, "GET / HTTP/1.1\r\nHosts: h\r\n\r\n");
    corpus.refused(400, "GET / HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n");
    corpus.refused(400, "GET / HTTP/1.1\r\nHost: h\r\nhOST: other\r\n\r\n");
    corpus.refused(400, "GET / HTTP/1.0\r\nHost: a b\r\n\r\n");
    corpus.refused(400, "GET / HTTP/1.0\r\nHost: h\r\nHost: h\r\n\r\n");
    corpus.closed("GET /h HTTP/1.0\r\n\r\n", seen("GET", "/h").without(&["HTTP_HOST"]));
}

fn fields(corpus: &mut Corpus) {
    let get = |fields: &str| format!("GET /f HTTP/1.1\r\nHost: h\r\n{fields}\r\n\r\n");
    for (fields, key, value) in [
        ("X-A: b", "HTTP_X_A", "b"),
        ("X-A:b", "HTTP_X_A", "b"),
        ("x-a: \t b c \t ", "HTTP_X_A", "b c"),
        ("X-A:", "HTTP_X_A", ""),
        ("X-A: \t ", "HTTP_X_A", ""),
        ("X-A: b:c:d", "HTTP_X_A", "b:c:d"),
        ("X-A: \u{e9}\u{ff}\u{80}", "HTTP_X_A", "\u{e9}\u{ff}\u{80}"),
        ("X-A: \u{85}\u{a0}", "HTTP_X_A", "\u{85}\u{a0}"),
        ("X-A: a\tb", "HTTP_X_A", "a\tb"),
        ("X-A: \"quoted\\\" string\"", "HTTP_X_A", "\"quoted\\\" string\""),
        ("X-A: 1\r\nX-A: 2", "HTTP_X_A", "1,2"),
        ("X-A: 1\r\nX-B: 3\r\nx-a: 2", "HTTP_X_A", "1,2"),
        ("Cookie: a=1\r\nCookie: b=2", "HTTP_COOKIE", "a=1; b=2"),
        ("Content-Type: text/plain; charset=utf-8", "CONTENT_TYPE", "text/plain; charset=utf-8"),
        ("Content-Type:", "CONTENT_TYPE", ""),
        ("!#$%&'*+-.^`|~09: v", "HTTP_!#$%&'*+_.^`|~09", "v"),
        ("Accept: */*\r\nAccept-Encoding: gzip", "HTTP_ACCEPT_ENCODING", "gzip"),
        ("Upgrade: websocket\r\nConnection: Upgrade", "HTTP_UPGRADE", "websocket"),
        ("TE: trailers, gzip", "HTTP_TE", "trailers, gzip"),
        ("Sec-WebSocket-Key1: 4 @1  46546xW%0l 1 5", "HTTP_SEC_WEBSOCKET_KEY1", "4 @1  46546xW%0l 1 5"),
        ("X-A: ,,a,,", "HTTP_X_A", ",,a,,"),
    ] {
        corpus.kept(&get(fields), seen("GET", "/f").with(&[(key, value)]));
    }
    // However many are repeated.
    let many = |lines: &str, count: usize| vec![lines; count].join("\r\n");
    for (fields, key, value) in [
        (many("X-A: 1\r\nx-b: 2\r\nX-a: 3", 20), "HTTP_X_A", vec!["1,3"; 20].join(",")),
        (many("Cookie: a=1\r\nX-B: 2\r\ncookie: b=2", 20), "HTTP_COOKIE", vec!["a=1; b=2"; 20].join("; ")),
        (many("X-A: 1\r\nX_A: forged\r\nProxy: http://evil", 20), "HTTP_X_A", vec!["1"; 20].join(",")),
    ] {
        corpus.kept(&get(&fields), seen("GET", "/f").with(&[(key, &value)]).without(&["HTTP_PROXY"]));
    }
    // Dropped: a name with `_` would be the same key as the one with `-`, and `Proxy` becomes HTTP_PROXY.
    corpus.kept(&get("X_A: forged"), seen("GET", "/f").without(&["HTTP_X_A"]));
    corpus.kept(&get("X_A: forged\r\nX-A: real"), seen("GET", "/f").with(&[("HTTP_X_A", "real")]));
    corpus.kept(&get("Proxy: http://evil"), seen("GET", "/f").without(&["HTTP_PROXY"]));
    corpus.kept(&get("Content_Length: 5"), seen("GET", "/f").without(&["CONTENT_LENGTH", "HTTP_CONTENT_LENGTH"]));
    corpus.kept(&get("Transfer_Encoding: chunked"), seen("GET", "/f").without(&["HTTP_TRANSFER_ENCODING"]));
    for line in [
        "A : b",
        "A\t: b",
        " A: b",
        "\tA: b",
        ": b",
        "A",
        "A b",
        "A b: c",
        "A\0: b",
        "A\u{e9}: b",
        "A\x7f: b",
        "A(: b",
        "A): b",
        "A,: b",
        "A/: b",
        "A;: b",
        "A<: b",
        "A=: b",
        "A>: b",
        "A?: b",
        "A@: b",
        "A[: b",
        "A\\: b",
        "A]: b",
        "A{: b",
        "A}: b",
        "\"A\": b",
        "A\x0b: b",
        "A\x1f: b",
        "\u{a0}A: b",
        "A\u{85}: b",
        "\x0bA: b",
        "A: \0",
        "A: b\0c",
        "A: \x01",
        "A: \x07",
        "A: \x08",
        "A: \x0b",
        "A: \x0c",
        "A: \x1b[2J",
        "A: \x1f",
        "A: \x7f",
        "A: b\x0bc",
        "A: b\rc",
        "A: b\nc",
        "A: b\r\n c",
        "A: b\r\n\tc",
        "A: b\r\n \r\nC: d",
        "A: b\r\r\nC: d",
        "A: b\n\rC: d",
        "A: b\nC: d",
        "A: b\rC: d",
    ] {
        corpus.refused_fields(400, line);
    }
    corpus.refused(400, "GET / HTTP/1.1\r\n Host: h\r\n\r\n");
    corpus.refused(400, "GET / HTTP/1.1\r\n: h\r\nHost: h\r\n\r\n");
    corpus.refused_fields(400, "Content-Type: text/plain\r\nContent-Type: text/plain");
    corpus.refused_fields(400, "Content-Type: text/plain\r\nCONTENT-TYPE: text/html");
}

fn lengths(corpus: &mut Corpus) {
    let post = |fields: &str, body: &str| format!("POST /l HTTP/1.1\r\nHost: h\r\n{fields}\r\n\r\n{body}");
    for (length, body) in [
        ("Content-Length: 3", "abc"),
        ("content-length:3", "abc"),
        ("CONTENT-LENGTH: \t3 ", "abc"),
        ("Content-Length: 003", "abc"),
        ("Content-Length: 6", "\r\n\r\n\0\u{ff}"),
        ("Content-Length: 0", ""),
        ("Content-Length: 00000000000000000000000000000001", "x"),
    ] {
        corpus.kept(&post(length, body), seen("POST", "/l").body(body));
    }
    corpus.kept(&post("Content-Length: 3", "abc"), seen("POST", "/l").body("abc").with(&[("CONTENT_LENGTH", "3")]));
    corpus.kept("POST /l HTTP/1.1\r\nHost: h\r\n\r\n", seen("POST", "/l").without(&["HTTP_CONTENT_LENGTH"]));
    corpus.kept("GET /l HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhi", seen("GET", "/l").body("hi"));
    corpus.kept("DELETE /l HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhi", seen("DELETE", "/l").body("hi"));
    corpus.kept("HEAD /l HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhi", seen("HEAD", "/l").body("hi"));
    corpus.closed("POST /l HTTP/1.0\r\nContent-Length: 2\r\n\r\nhi", seen("POST", "/l").body("hi"));
    for value in [
        "",
        " ",
        "+3",
        "-3",
        "-0",
        "3 3",
        "3,3",
        "3, 3",
        "3,",
        ",3",
        "0x3",
        "3x",
        "x3",
        "3.0",
        "3e0",
        "3_0",
        "1_0",
        "\u{b2}",
        "\u{a0}3",
        "3\u{a0}",
        "three",
        "NaN",
        "18446744073709551616",
        "99999999999999999999999999999999",
        "9223372036854775808000000",
        "3;a",
        "\"3\"",
        "3\x0b",
        "\x0c3",
        "\u{85}3",
        "--3",
        "3\t3",
        "0b11",
        "0o3",
    ] {
        corpus.refused(400, &post(&format!("Content-Length: {value}"), "abc"));
    }
    corpus.refused(400, &post("Content-Length: 3\r\nContent-Length: 3", "abc"));
    corpus.refused(400, &post("Content-Length: 3\r\nContent-Length: 4", "abcd"));
    corpus.refused(400, &post("Content-Length: 3\r\ncontent-length: 0", "abc"));
    corpus.refused(400, &post("Content-Length : 3", "abc"));
    corpus.refused(400, &post("Content-Length\t: 3", "abc"));
    corpus.refused(413, &post("Content-Length: 104857601", "abc"));
    corpus.refused(413, &post("Content-Length: 18446744073709551615", "abc"));
    corpus.refused(413, &post("Content-Length: 104857601\r\nExpect: 100-continue", ""));
    corpus.refused(413, "HEAD /l HTTP/1.1\r\nHost: h\r\nContent-Length: 104857601\r\n\r\n");
}

fn codings(corpus: &mut Corpus) {
    let post = |fields: &str| format!("POST /t HTTP/1.1\r\nHost: h\r\n{fields}\r\n\r\n3\r\nabc\r\n0\r\n\r\n");
    for value in ["chunked", "Chunked", "CHUNKED", " \tchunked\t "] {
        corpus.kept(&post(&format!("Transfer-Encoding:{value}")), seen("POST", "/t").body("abc"));
    }
    for (status, value) in [
        (501, "gzip"),
        (501, "identity"),
        (501, "xchunked"),
        (501, "chunkedx"),
        (501, "gzip, chunked"),
        (501, "identity, chunked"),
        (501, "deflate"),
        (501, "chunked;q=1"),
        (501, "chunked;"),
        (501, "x"),
        (501, "cow"),
        (501, "gzip,chunked"),
        (400, "chunked, chunked"),
        (400, "chunked,chunked"),
        (400, "chunked, identity"),
        (400, "chunked, gzip"),
        (400, ""),
        (400, ","),
        (400, ", chunked"),
        (400, "chunked,"),
        (400, "chunked ,"),
        (400, "\x0bchunked"),
        (400, "chunked\0"),
        (400, "chunk ed"),
        (400, "\"chunked\""),
        (400, "'chunked' "),
        (400, "\u{a0}chunked"),
        (400, "chunked\u{85}"),
        (400, "[chunked]"),
    ] {
        // A token that happens to have quotes around it is a coding that nobody knows.
        let status = if value.starts_with('\'') { 501 } else { status };
        corpus.refused(status, &post(&format!("Transfer-Encoding: {value}")));
    }
    corpus.refused(400, &post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"));
    corpus.refused(400, &post("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity"));
    corpus.refused(501, &post("Transfer-Encoding: identity\r\nTransfer-Encoding: chunked"));
    corpus.refused(400, &post("Transfer-Encoding : chunked"));
    corpus.refused(400, &post("Transfer-Encoding:\r\n chunked"));
    corpus.refused(400, &post(" Transfer-Encoding: chunked"));
    corpus.refused(400, &post("Transfer-Encoding: chunked\r\nContent-Length: 13"));
    corpus.refused(400, &post("Content-Length: 13\r\nTransfer-Encoding: chunked"));
    corpus.refused(400, &post("Content-Length: 0\r\nTransfer-Encoding: chunked"));
    corpus.refused(400, &post("Content-Length: 3\r\nTransfer-Encoding: identity"));
    corpus.refused(400, &post("Content-Length: 3\r\nTransfer-Encoding:"));
    corpus.refused(400, &post("Content-Length: x\r\nTransfer-Encoding: chunked"));
    corpus.refused(400, "POST /t HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
    corpus.refused(400, "POST /t HTTP/1.0\r\nConnection: keep-alive\r\nTransfer-Encoding: gzip\r\n\r\n");
}

fn chunks(corpus: &mut Corpus) {
    for (body, decoded) in [
        ("0\r\n\r\n", ""),
        ("3\r\nabc\r\n0\r\n\r\n", "abc"),
        ("1\r\na\r\n1\r\nb\r\n1\r\nc\r\n0\r\n\r\n", "abc"),
        ("00000003\r\nabc\r\n0000000000000000\r\n\r\n", "abc"),
        ("A\r\n0123456789\r\n0\r\n\r\n", "0123456789"),
        ("a\r\n0123456789\r\n0\r\n\r\n", "0123456789"),
        ("4\r\n\r\n\r\n\r\n0\r\n\r\n", "\r\n\r\n"),
        ("5\r\n0\r\n\r\n\r\n0\r\n\r\n", "0\r\n\r\n"),
        ("3;a\r\nabc\r\n0;b=c\r\n\r\n", "abc"),
        ("3;a=\"b;c\\\"\"\r\nabc\r\n0\r\n\r\n", "abc"),
        ("3 ;a ; b = c\r\nabc\r\n0\r\n\r\n", "abc"),
        ("3\r\nabc\r\n0\r\nT: u\r\n\r\n", "abc"),
        ("3\r\nabc\r\n0\r\nT: u\r\nHosts: x\r\nCookie: a=b\r\n\r\n", "abc"),
        ("3\r\nabc\r\n0\r\nT:\r\nT: \u{e9}\r\n\r\n", "abc"),
    ] {
        corpus.chunked(body, decoded);
    }
    for body in [
        "\r\n",
        "g\r\n",
        "-1\r\n",
        "+1\r\na\r\n0\r\n\r\n",
        "0x1\r\na\r\n0\r\n\r\n",
        "1_0\r\n",
        " 1\r\na\r\n0\r\n\r\n",
        "1 \r\na\r\n0\r\n\r\n",
        "1\t\r\na\r\n0\r\n\r\n",
        "1.0\r\n",
        "\u{b9}\r\na\r\n0\r\n\r\n",
        ";a\r\n",
        "00000000000000001\r\na\r\n0\r\n\r\n",
        "10000000000000000\r\n",
        "fffffffffffffffff\r\n",
        "1\na\n0\n\n",
        "1\na\r\n0\r\n\r\n",
        "1\r\na\n0\r\n\r\n",
        "1\ra\r\n0\r\n\r\n",
        "1\r\r\na\r\n",
        "1\n\ra\r\n",
        "1\r\nab\r\n0\r\n\r\n",
        "1\r\na0\r\n\r\n",
        "2\r\na\r\n0\r\n\r\n",
        "1\r\na\r0\r\n\r\n",
        "1\r\na\r\n\r\n",
        "1\r\na\r\n0\n\n",
        "1\r\na\r\n0\r\n\n",
        "1\r\na\r\n0\r\n\rX",
        "1;\r\na\r\n0\r\n\r\n",
        "1;a\na\r\n0\r\n\r\n",
        "1;a\rb\r\na\r\n",
        "1;a=\r\na\r\n",
        "1;=a\r\na\r\n",
        "1;a=\"b\r\na\r\n",
        "1;a b\r\na\r\n",
        "1;a=b c\r\na\r\n",
        "1;a\0\r\na\r\n",
        "1;a=\"\x07\"\r\na\r\n",
        "1;a=\"\n\"\r\na\r\n",
        "1;;\r\na\r\n",
        "1,a\r\na\r\n",
        "1;\u{e9}\r\na\r\n",
        "1 a\r\na\r\n",
        "0\r\nT\r\n\r\n",
        "0\r\nT : u\r\n\r\n",
        "0\r\n T: u\r\n\r\n",
        "0\r\n: u\r\n\r\n",
        "0\r\nT: u\r\n v\r\n\r\n",
        "0\r\nT: u\nV: w\r\n\r\n",
        "0\r\nT: \0\r\n\r\n",
        "0\r\nT\u{e9}: u\r\n\r\n",
        "0\r\nT: u\r\r\n\r\n",
        "0\r\nContent-Length: 5\r\n\r\nhello",
        "0\r\nTransfer-Encoding: chunked\r\n\r\n",
        "0\r\nhost: evil\r\n\r\n",
        "0\r\n\r\n\0",
    ] {
        if body == "0\r\n\r\n\0" {
            // The body is whole; what follows it is no request.
            let answers = vec![Answer::Seen(seen("POST", "/c")), Answer::Refused(400)];
            corpus.add(&format!("{CHUNKED}{body}"), answers, false, false);
        } else {
            corpus.refused_body(400, body);
        }
    }
}

fn persistence(corpus: &mut Corpus) {
    let get = |version: &str, connection: &str| format!("GET /p HTTP/{version}\r\nHost: h\r\n{connection}\r\n");
    for connection in [
        "",
        "Connection: keep-alive\r\n",
        "Connection: x\r\n",
        "Connection:\r\n",
        "Connection: Upgrade, HTTP2-Settings\r\n",
        "Connection: closed\r\n",
        "Connection: \"close\"\r\n",
        "Keep-Alive: timeout=5\r\n",
        "Proxy-Connection: close\r\n",
    ] {
        corpus.kept(&get("1.1", connection), seen("GET", "/p").with(&[("SERVER_PROTOCOL", "HTTP/1.1")]));
    }
    for connection in [
        "Connection: close\r\n",
        "connection: CLOSE\r\n",
        "Connection: x, close\r\n",
        "Connection: keep-alive,close\r\n",
        "Connection: keep-alive\r\nConnection: close\r\n",
        "Connection: ,close,\r\n",
    ] {
        corpus.closed(&get("1.1", connection), seen("GET", "/p"));
        corpus.closed(&get("1.0", connection), seen("GET", "/p").with(&[("SERVER_PROTOCOL", "HTTP/1.0")]));
    }
    corpus.kept(&get("1.0", "Connection: keep-alive\r\n"), seen("GET", "/p"));
    corpus.kept(&get("1.0", "Connection: Keep-Alive, x\r\n"), seen("GET", "/p"));
    corpus.closed(&get("1.0", "Keep-Alive: 300\r\n"), seen("GET", "/p"));
    // Pipelining, also after bodies of every framing.
    let answers = |paths: &[&str]| paths.iter().map(|path| Answer::Seen(seen("GET", path))).collect::<Vec<_>>();
    let gets = |paths: &[&str]| {
        paths.iter().map(|path| format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n")).collect::<Vec<_>>().concat()
    };
    corpus.add(&gets(&["/1", "/2"]), answers(&["/1", "/2"]), true, false);
    corpus.add(
        &gets(&["/1", "/2", "/3", "/4", "/5", "/6", "/7"]),
        answers(&["/1", "/2", "/3", "/4", "/5", "/6", "/7"]),
        true,
        false,
    );
    let first = |request: &str, seen: Seen| {
        let answers = vec![Answer::Seen(seen), Answer::Seen(self::seen("GET", "/2"))];
        (format!("{request}{}", gets(&["/2"])), answers)
    };
    for (bytes, answers) in [
        first("POST /1 HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc", seen("POST", "/1").body("abc")),
        first("POST /1 HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n", seen("POST", "/1")),
        first(
            "POST /1 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            seen("POST", "/1").body("abc"),
        ),
        first(
            "POST /1 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nT: u\r\n\r\n",
            seen("POST", "/1").body("abc"),
        ),
        first("HEAD /1 HTTP/1.1\r\nHost: h\r\n\r\n", seen("HEAD", "/1")),
        first("GET /1 HTTP/1.1\r\nHost: h\r\n\r\n\r\n", seen("GET", "/1")),
        first("POST /1 HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\na", seen("POST", "/1").body("a")),
        // A body that looks like a request.
        first(
            "POST /1 HTTP/1.1\r\nHost: h\r\nContent-Length: 30\r\n\r\nGET /x HTTP/1.1\r\nHost: h\r\n\r\n\r\n",
            seen("POST", "/1").body("GET /x HTTP/1.1\r\nHost: h\r\n\r\n\r\n"),
        ),
    ] {
        corpus.add(&bytes, answers, true, false);
    }
    // Nothing after the last request of a connection is touched (CVE-2024-49768).
    for ending in ["GET /1 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", "GET /1 HTTP/1.0\r\n\r\n"] {
        corpus.add(&format!("{ending}{}", gets(&["/2"])), answers(&["/1"]), false, false);
    }
    for refused in [
        "GET / HTTP/1.1\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: x\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
    ] {
        corpus.refused(400, &format!("{refused}{}", gets(&["/2"])));
        let mut answers = answers(&["/0"]);
        answers.push(Answer::Refused(400));
        corpus.add(&format!("{}{refused}{}", gets(&["/0"]), gets(&["/2"])), answers, false, false);
    }
}

fn expectations(corpus: &mut Corpus) {
    let put = |version: &str, fields: &str| format!("PUT /e HTTP/{version}\r\nHost: h\r\n{fields}\r\n\r\n");
    for expect in ["Expect: 100-continue", "expect:100-Continue", "Expect: 100-continue\r\nExpect: 100-continue"] {
        corpus.kept(&(put("1.1", &format!("{expect}\r\nContent-Length: 2")) + "hi"), seen("PUT", "/e").body("hi"));
    }
    corpus.kept(
        &(put("1.1", "Expect: 100-continue\r\nTransfer-Encoding: chunked") + "2\r\nhi\r\n0\r\n\r\n"),
        seen("PUT", "/e").body("hi"),
    );
    corpus.kept(&put("1.1", "Expect: 100-continue"), seen("PUT", "/e"));
    corpus.kept(&put("1.1", "Expect: 100-continue\r\nContent-Length: 0"), seen("PUT", "/e"));
    corpus.closed(&(put("1.0", "Expect: 100-continue\r\nContent-Length: 2") + "hi"), seen("PUT", "/e").body("hi"));
    corpus.closed(&(put("1.0", "Expect: magic\r\nContent-Length: 2") + "hi"), seen("PUT", "/e").body("hi"));
    for expect in ["magic", "", "100-continue, magic", "100", "100-continue;q=1", "101-continue", "\"100-continue\""] {
        corpus.refused(417, &(put("1.1", &format!("Expect: {expect}\r\nContent-Length: 2")) + "hi"));
    }
    corpus.refused(417, &put("1.1", "Expect: 100-continue\r\nExpect: magic"));
}

fn limits(corpus: &mut Corpus) {
    let line = |bytes: usize| format!("GET /{} HTTP/1.1\r\nHost: h\r\n\r\n", "a".repeat(bytes - 14));
    corpus.kept(&line(8190), seen("GET", &format!("/{}", "a".repeat(8176))));
    corpus.refused(414, &line(8191));
    corpus.refused(414, &"G".repeat(8193));
    corpus.refused(414, &format!("GET /{}", "a".repeat(100_000)));
    let field = |bytes: usize| format!("GET /n HTTP/1.1\r\nHost: h\r\nA: {}\r\n\r\n", "b".repeat(bytes - 3));
    corpus.kept(&field(8190), seen("GET", "/n"));
    corpus.refused(431, &field(8191));
    corpus.refused(431, &format!("GET / HTTP/1.1\r\nHost: h\r\n{}", "A".repeat(8193)));
    let fields = |count: usize| format!("GET /n HTTP/1.1\r\nHost: h\r\n{}\r\n", "A: b\r\n".repeat(count));
    corpus.kept(&fields(99), seen("GET", "/n").with(&[("HTTP_A", &["b"; 99].join(","))]));
    corpus.refused(431, &fields(100));
    let head = |count: usize| {
        format!("GET /n HTTP/1.1\r\nHost: h\r\n{}\r\n", format!("A: {}\r\n", "b".repeat(8000)).repeat(count))
    };
    corpus.kept(&head(8), seen("GET", "/n"));
    corpus.refused(431, &head(9));
    // Not the fields beyond a limit, nor what they would have framed (CVE-2026-58044).
    corpus.refused(
        431,
        &format!("POST / HTTP/1.1\r\nHost: h\r\n{}Content-Length: 5\r\n\r\nhello", "A: b\r\n".repeat(99)),
    );
    let extension = |bytes: usize| format!("{CHUNKED}1;{}\r\nx\r\n0\r\n\r\n", "a".repeat(bytes));
    corpus.kept(&extension(4095), seen("POST", "/c").body("x"));
    corpus.refused(400, &extension(4096));
    let extensions =
        |chunks: usize| format!("{CHUNKED}{}0\r\n\r\n", format!("1;{}\r\nx\r\n", "a".repeat(4000)).repeat(chunks));
    corpus.kept(&extensions(4), seen("POST", "/c").body("xxxx"));
    corpus.refused(400, &extensions(5));
    let trailers = |count: usize| format!("{CHUNKED}0\r\n{}\r\n", "T: u\r\n".repeat(count));
    corpus.kept(&trailers(100), seen("POST", "/c").without(&["HTTP_T"]));
    corpus.refused(431, &trailers(101));
    corpus.refused(431, &format!("{CHUNKED}0\r\nT: {}\r\n\r\n", "u".repeat(17_000)));
    let long = "0123456789".repeat(20_000);
    corpus.kept(
        &format!("POST /b HTTP/1.1\r\nHost: h\r\nContent-Length: 200000\r\n\r\n{long}"),
        seen("POST", "/b").body(&long),
    );
    corpus.kept(&format!("{CHUNKED}30d40\r\n{long}\r\n0\r\n\r\n"), seen("POST", "/c").body(&long));
}

/// The client sends no more than this.
fn endings(corpus: &mut Corpus) {
    for nothing in ["", "\r\n", "\r\n\r\n"] {
        corpus.add(nothing, Vec::new(), false, true);
    }
    for unfinished in [
        "G",
        "GET",
        "GET /",
        "GET / HTTP/1.1",
        "GET / HTTP/1.1\r",
        "GET / HTTP/1.1\r\n",
        "GET / HTTP/1.1\r\nHost: h",
        "GET / HTTP/1.1\r\nHost: h\r\n",
        "GET / HTTP/1.1\r\nHost: h\r\n\r",
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nab",
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3",
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab",
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n",
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r",
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nT: u\r\n",
    ] {
        corpus.add(unfinished, vec![Answer::Refused(400)], false, true);
    }
    let whole = "GET /w HTTP/1.1\r\nHost: h\r\n\r\n";
    corpus.add(whole, vec![Answer::Seen(seen("GET", "/w"))], false, true);
    corpus.add(
        &format!("{whole}{whole}"),
        vec![Answer::Seen(seen("GET", "/w")), Answer::Seen(seen("GET", "/w"))],
        false,
        true,
    );
    corpus.add(&format!("{whole}GET"), vec![Answer::Seen(seen("GET", "/w")), Answer::Refused(400)], false, true);
    corpus.add(
        "POST /w HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhi",
        vec![Answer::Seen(seen("POST", "/w").body("hi"))],
        false,
        true,
    );
}
