//! A slow line: everything a server sends comes no faster than a chosen number of bytes a second, and is counted.
//!
//! Not here: faults (`faults`). Rule: the bytes are the server's own; only their pace changes.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

/// Bytes passed on at a time.
const PIECE_BYTES: usize = 64 << 10;
/// A new pace is noticed within this.
const PAUSE_MAX: Duration = Duration::from_millis(200);

/// A line to one server; connections that are open when the value ends last until either side closes them.
pub struct SlowLine {
    host: String,
    shared: Arc<Shared>,
}

struct Shared {
    server: String,
    bytes_per_sec: AtomicU64,
    carried: AtomicU64,
    closed: AtomicBool,
}

impl SlowLine {
    /// A line to `server` (`host:port`).
    pub fn to(server: &str, bytes_per_sec: u64) -> Result<SlowLine> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let host = listener.local_addr()?.to_string();
        let shared = Arc::new(Shared {
            server: server.to_owned(),
            bytes_per_sec: AtomicU64::new(bytes_per_sec),
            carried: AtomicU64::new(0),
            closed: AtomicBool::new(false),
        });
        let line = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if line.closed.load(Ordering::SeqCst) {
                    break;
                }
                let line = Arc::clone(&line);
                // A client that is killed in the middle is what the tests are about.
                thread::spawn(move || line.connect(client).unwrap_or_default());
            }
        });
        Ok(SlowLine { host, shared })
    }

    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Changes the pace, also of what is under way; 0 is silence.
    pub fn set_pace(&self, bytes_per_sec: u64) {
        self.shared.bytes_per_sec.store(bytes_per_sec, Ordering::SeqCst);
    }

    /// Bytes that came from the server so far.
    pub fn carried(&self) -> u64 {
        self.shared.carried.load(Ordering::SeqCst)
    }
}

impl Drop for SlowLine {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        // Wakes the listener, which then sees that it is over.
        let _ = TcpStream::connect(&self.host);
    }
}

impl Shared {
    fn connect(&self, client: TcpStream) -> Result<()> {
        let server = TcpStream::connect(&self.server)?;
        let (mut to_server, mut from_client) = (server.try_clone()?, client.try_clone()?);
        thread::spawn(move || {
            let _ = std::io::copy(&mut from_client, &mut to_server);
            let _ = to_server.shutdown(Shutdown::Both);
        });
        let done = self.carry(&server, &client);
        let _ = client.shutdown(Shutdown::Both);
        let _ = server.shutdown(Shutdown::Both);
        done
    }

    fn carry(&self, mut server: &TcpStream, mut client: &TcpStream) -> Result<()> {
        let mut piece = vec![0; PIECE_BYTES];
        let mut due = Instant::now();
        loop {
            let count = server.read(&mut piece)?;
            if count == 0 {
                return Ok(());
            }
            while self.bytes_per_sec.load(Ordering::SeqCst) == 0 {
                thread::sleep(Duration::from_millis(10));
            }
            client.write_all(&piece[..count])?;
            self.carried.fetch_add(count as u64, Ordering::SeqCst);
            let pace = self.bytes_per_sec.load(Ordering::SeqCst).max(1);
            let earliest = Instant::now() - Duration::from_millis(50);
            due = due.max(earliest) + Duration::from_secs_f64(count as f64 / pace as f64).min(PAUSE_MAX);
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
    }
}
