//! As much of HTTP/1.1 as the load generator needs: requests out, responses with a content length in.

use std::io::Write;

use super::{Closer, Connections, Request};

/// The longest response head that is looked at.
const LONGEST_HEAD: usize = 16 * 1024;

/// Writes the head of a request into `head`.
pub(super) fn write_head(head: &mut Vec<u8>, request: Request, connections: Connections, id: u64) {
    head.clear();
    let close = match connections {
        Connections::Short(_, Closer::Server) => "Connection: close\r\n",
        Connections::Short(_, Closer::Client) | Connections::KeepAlive(_) => "",
    };
    let common = "HTTP/1.1\r\nHost: lab.example\r\nUser-Agent: tcpcopy-lab\r\nAccept: */*\r\n";
    // Writing to a vector cannot fail.
    let _ = match request {
        Request::Get(size) => write!(head, "GET /f{size}?id={id} {common}{close}\r\n"),
        Request::Post(size) => {
            write!(head, "POST /upload?id={id} {common}Content-Length: {size}\r\n{close}\r\n")
        }
    };
}

/// What became of the bytes given to a [`Response`].
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// More has to come.
    More,
    /// The response is complete and right.
    Done,
    /// The response is not what was asked for.
    Wrong(&'static str),
}

/// One response on its way in.
#[derive(Debug, Default)]
pub(super) struct Response {
    head: Vec<u8>,
    /// Body bytes that have come and that must come, once the head is complete.
    body: Option<(usize, usize)>,
    closes: bool,
}

impl Response {
    /// Makes ready for the next response.
    pub(super) fn reset(&mut self) {
        self.head.clear();
        self.body = None;
        self.closes = false;
    }

    /// Whether any byte has come.
    pub(super) fn begun(&self) -> bool {
        !self.head.is_empty() || self.body.is_some()
    }

    /// Whether the server said that it closes the connection.
    pub(super) fn closes(&self) -> bool {
        self.closes
    }

    /// Takes bytes as they come; the body must be `expected` (`None`: any body).
    pub(super) fn take(&mut self, bytes: &[u8], expected: Option<&[u8]>) -> Step {
        let Some((have, length)) = self.body else { return self.take_head(bytes, expected) };
        let end = have + bytes.len();
        if end > length {
            return Step::Wrong("more bytes than the response has");
        }
        if expected.is_some_and(|expected| expected.get(have..end) != Some(bytes)) {
            return Step::Wrong("another body");
        }
        self.body = Some((end, length));
        if end == length { Step::Done } else { Step::More }
    }

    fn take_head(&mut self, bytes: &[u8], expected: Option<&[u8]>) -> Step {
        // A head that comes whole, as nearly all do, is not copied.
        if self.head.is_empty()
            && let Some(end) = end_of_head(bytes)
        {
            let (head, rest) = bytes.split_at(end);
            return self.parse(head, rest, expected);
        }
        self.head.extend_from_slice(bytes);
        match end_of_head(&self.head) {
            Some(end) => {
                let all = std::mem::take(&mut self.head);
                let (head, rest) = all.split_at(end);
                self.parse(head, rest, expected)
            }
            None if self.head.len() > LONGEST_HEAD => Step::Wrong("an endless head"),
            None => Step::More,
        }
    }

    fn parse(&mut self, head: &[u8], rest: &[u8], expected: Option<&[u8]>) -> Step {
        if !head.starts_with(b"HTTP/1.1 200") {
            return Step::Wrong("a status other than 200");
        }
        let mut length = None;
        for line in head.split(|&byte| byte == b'\n') {
            let Some(colon) = line.iter().position(|&byte| byte == b':') else { continue };
            let (name, value) = line.split_at(colon);
            let value = value.get(1..).unwrap_or_default().trim_ascii();
            if name.eq_ignore_ascii_case(b"content-length") {
                length = std::str::from_utf8(value).ok().and_then(|value| value.parse().ok());
            } else if name.eq_ignore_ascii_case(b"connection") {
                self.closes = value.eq_ignore_ascii_case(b"close");
            }
        }
        let Some(length) = length else { return Step::Wrong("no content length") };
        if expected.is_some_and(|expected| expected.len() != length) {
            return Step::Wrong("a body of another length");
        }
        self.body = Some((0, length));
        self.take(rest, expected)
    }
}

fn end_of_head(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OK: &[u8] =
        b"HTTP/1.1 200 OK\r\nServer: nginx\r\ncontent-LENGTH: 5\r\nConnection: close\r\n\r\nhello";

    #[test]
    fn a_response_may_come_in_any_pieces() {
        for cut in 0..OK.len() {
            let mut response = Response::default();
            let (first, second) = OK.split_at(cut);
            if cut > 0 {
                assert_eq!(response.take(first, Some(b"hello")), Step::More, "cut at {cut}");
            }
            assert_eq!(response.take(second, Some(b"hello")), Step::Done, "cut at {cut}");
            assert!(response.closes());
        }
    }

    #[test]
    fn wrong_responses_are_told_apart() {
        let take = |bytes: &[u8], expected: &[u8]| Response::default().take(bytes, Some(expected));
        assert_eq!(take(OK, b"hallo"), Step::Wrong("another body"));
        assert_eq!(take(OK, b"hello!"), Step::Wrong("a body of another length"));
        assert_eq!(take(b"HTTP/1.1 502 Bad\r\n\r\n", b""), Step::Wrong("a status other than 200"));
        assert_eq!(take(&[OK, b"x"].concat(), b"hello"), Step::Wrong("more bytes than the response has"));
        assert_eq!(take(b"HTTP/1.1 200 OK\r\n\r\n", b""), Step::Wrong("no content length"));
    }

    #[test]
    fn a_request_carries_its_id() {
        let mut head = Vec::new();
        write_head(&mut head, Request::Get(100), Connections::Short(1, Closer::Server), 42);
        let head = String::from_utf8(head).unwrap();
        assert!(
            head.starts_with("GET /f100?id=42 HTTP/1.1\r\n") && head.ends_with("Connection: close\r\n\r\n")
        );
    }
}
