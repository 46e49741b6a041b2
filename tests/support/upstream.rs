//! What a server in front of a real registry needs: the registry's own answer to a request.
//!
//! Not here: which requests are spoilt (the test's closure). Rule: the answer is passed on as it came, status, type, range
//! and body, so that a spoilt exchange is a true one but for the fault.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use anyhow::{Context as _, Result};

use crate::faults::{Reply, Request};

/// Headers that matter to a client of a registry.
const PASSED_ON: [&str; 4] = ["content-type", "content-range", "docker-content-digest", "www-authenticate"];

/// What the registry at `host` answers to `request`.
pub fn ask(host: &str, request: &Request) -> Result<Reply> {
    let mut stream = TcpStream::connect(host)?;
    let mut head = format!("GET {} HTTP/1.0\r\nHost: {host}\r\n", request.path);
    for name in ["accept", "range"] {
        if let Some(value) = request.header(name) {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|end| end == b"\r\n\r\n").context("an answer without a head")?;
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    let status = head.split_whitespace().nth(1).context("an answer without a status")?.parse()?;
    let mut reply = Reply::new(status, &answer[end + 4..]);
    for (name, value) in head.lines().filter_map(|line| line.split_once(": ")) {
        if PASSED_ON.contains(&name.to_ascii_lowercase().as_str()) {
            reply = reply.with(name, value);
        }
    }
    Ok(reply)
}
