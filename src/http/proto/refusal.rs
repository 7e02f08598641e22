//! Why a request is refused: the status for the client, a reason for both, and for the operator the setting that
//! would allow it. All of them are constants, so that refusing costs no allocation and the list can be read.

/// A refused request. The connection is closed after the answer: what follows it cannot be trusted to be a
/// request (CVE-2024-49768: a refused first request ends the connection before a pipelined second is touched).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub status: u16,
    pub reason: &'static str,
    /// The setting that would allow the request, if there is one.
    pub limit: Option<&'static str>,
}

const fn bad(reason: &'static str) -> Refusal {
    Refusal { status: 400, reason, limit: None }
}

const fn over(status: u16, reason: &'static str, limit: &'static str) -> Refusal {
    Refusal { status, reason, limit: Some(limit) }
}

pub const NOT_HTTP: Refusal = bad("not an HTTP request");
pub const BLANK_LINES: Refusal = bad("too many empty lines before the request");
pub const BARE_LF: Refusal = bad("line ends with LF alone");
pub const BARE_CR: Refusal = bad("CR inside a line");
pub const FOLDED: Refusal = bad("folded field line");
pub const REQUEST_LINE: Refusal = bad("malformed request line");
pub const FIELD_NAME: Refusal = bad("malformed field name");
pub const FIELD_VALUE: Refusal = bad("control character in a field value");
pub const TARGET: Refusal = bad("malformed request target");
pub const HOST_MISSING: Refusal = bad("no Host field");
pub const HOST_REPEATED: Refusal = bad("more than one Host field");
pub const HOST_INVALID: Refusal = bad("invalid Host field");
pub const TYPE_REPEATED: Refusal = bad("more than one Content-Type");
pub const LENGTH_INVALID: Refusal = bad("invalid Content-Length");
pub const LENGTH_REPEATED: Refusal = bad("more than one Content-Length");
pub const LENGTH_AND_CODING: Refusal = bad("both Content-Length and Transfer-Encoding");
pub const CODING_IN_HTTP10: Refusal = bad("Transfer-Encoding in HTTP/1.0");
pub const CODING_INVALID: Refusal = bad("invalid Transfer-Encoding");
pub const CHUNK_SIZE: Refusal = bad("invalid chunk size");
pub const CHUNK_EXTENSION: Refusal = bad("invalid or too long chunk extension");
pub const CHUNK_END: Refusal = bad("chunk not followed by CRLF");
pub const TRAILER: Refusal = bad("malformed trailer field");
pub const TRAILER_FORBIDDEN: Refusal = bad("a trailer field that frames or routes the request");
pub const UNFINISHED: Refusal = bad("the request ends too early");

pub const TRAILERS_LONG: Refusal = Refusal { status: 431, reason: "trailer fields too large", limit: None };
pub const CODING_UNKNOWN: Refusal = Refusal { status: 501, reason: "unknown transfer coding", limit: None };
pub const CONNECT: Refusal = Refusal { status: 501, reason: "CONNECT is not served", limit: None };
pub const EXPECTATION: Refusal = Refusal { status: 417, reason: "unknown expectation", limit: None };
pub const VERSION: Refusal = Refusal { status: 505, reason: "HTTP version not supported", limit: None };

pub const REQUEST_LINE_LONG: Refusal = over(414, "request line too long", "limit_request_line");
pub const FIELDS_MANY: Refusal = over(431, "too many fields", "limit_request_fields");
pub const FIELD_LONG: Refusal = over(431, "field too large", "limit_request_field_size");
pub const HEAD_LONG: Refusal = over(431, "request head too large", "limit_request_head");
pub const BODY_LONG: Refusal = over(413, "request body too large", "max_body");
pub const BODY_NO_TEMP_DIR: Refusal = over(413, "request body too large to buffer in memory", "temp_dir");
pub const TEMP_FULL: Refusal = over(503, "no room to buffer the request body", "temp_limit");
pub const TEMP_FAILED: Refusal = over(503, "the temporary file for the request body cannot be written", "temp_dir");
pub const HEAD_SLOW: Refusal = over(408, "request head not complete in time", "header_timeout");
pub const BODY_SLOW: Refusal = over(408, "request body not received in time", "body_timeout");
pub const PROXY_MISSING: Refusal = over(400, "this address expects a PROXY header first", "proxy_protocol");
pub const PROXY_INVALID: Refusal = over(400, "malformed PROXY header", "proxy_protocol");
pub const PROXY_UNTRUSTED: Refusal = over(403, "not a proxy that may name its clients", "forwarded_allow_ips");
pub const RETIRING: Refusal = Refusal { status: 503, reason: "the worker is being replaced", limit: None };
pub const MAINTENANCE: Refusal = Refusal { status: 503, reason: "the service is paused", limit: None };
pub const WAITED: Refusal = over(503, "all workers are busy", "request_timeout");
pub const SHED: Refusal = over(503, "all workers are busy", "queue_timeout");
pub const OVERDUE: Refusal = over(504, "the request took too long", "request_timeout");

/// When a client that got 503 may come again: a worker is replaced, and a full disk noticed, within some seconds.
pub const RETRY_AFTER_S: &str = "5";

/// The same during a maintenance, which takes as long as a migration does.
pub const MAINTENANCE_RETRY_AFTER_S: &str = "10";

/// The reason phrase that RFC 9110 section 15 names for a status.
pub fn phrase(status: u16) -> &'static str {
    match status {
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        408 => "Request Timeout",
        413 => "Content Too Large",
        414 => "URI Too Long",
        417 => "Expectation Failed",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "Error",
    }
}
