//! Who is logged in and what inhibits a restart, as systemd's login manager tells it.
//!
//! Not here: what follows from it (`schedule`). Rule: what cannot be seen is told as unseen, which blocks; only a machine without a
//! login manager has nobody logged in.

use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use switchback_bootloader::command;

use crate::schedule::{Inhibitor, Observed, Session};

/// There is one where this folder is.
const LOGIN_MANAGER: &str = "/run/systemd/seats";
/// How long is waited for it.
const PATIENCE: Duration = Duration::from_secs(10);

/// `busctl --json=short`.
#[derive(Deserialize)]
struct Reply<T> {
    data: (Vec<T>,),
}

/// `ListSessions`: id, user number, user name, seat, object.
type ListedSession = (String, u32, String, String, String);
/// `ListInhibitors`: what, who, why, mode, user number, process.
type ListedInhibitor = (String, String, String, String, u32, u32);

/// Who is logged in.
pub fn sessions() -> Observed<Vec<Session>> {
    observed("ListSessions", |listed: Vec<ListedSession>| {
        listed.into_iter().map(|(_, _, user, _, _)| Session { user }).collect()
    })
}

/// What asks for no restart now, and may: others are only told that one is coming.
pub fn inhibitors() -> Observed<Vec<Inhibitor>> {
    observed("ListInhibitors", |listed: Vec<ListedInhibitor>| {
        let blocks = |(what, _, _, mode, _, _): &ListedInhibitor| {
            mode.starts_with("block") && what.split(':').any(|what| what == "shutdown")
        };
        listed.into_iter().filter(blocks).map(|(_, who, why, ..)| Inhibitor { who, why }).collect()
    })
}

fn observed<T: for<'de> Deserialize<'de>, S: Default>(
    method: &str,
    told: impl FnOnce(Vec<T>) -> S,
) -> Observed<S> {
    if !Path::new(LOGIN_MANAGER).is_dir() {
        return Observed::Seen(S::default());
    }
    let reply = asked(method).map_err(|error| error.to_string()).and_then(|text| {
        let reply = serde_json::from_str::<Reply<T>>(&text);
        reply.map_err(|error| format!("its answer cannot be read: {error}"))
    });
    match reply {
        Ok(reply) => Observed::Seen(told(reply.data.0)),
        Err(why) => Observed::Unseen(format!("busctl: {why}")),
    }
}

/// What the manager answers. The program is systemd's own; a bus library costs more than all of the schedule.
fn asked(method: &str) -> Result<String, command::Failure> {
    const MANAGER: &str = "org.freedesktop.login1.Manager";
    let object = ["org.freedesktop.login1", "/org/freedesktop/login1", MANAGER];
    let arguments = [&["--system", "--json=short", "call"][..], &object, &[method]].concat();
    command::run(Path::new("busctl"), &arguments, PATIENCE)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In the form of `busctl --json=short`, with the signatures that org.freedesktop.login1(5) gives.
    #[test]
    fn answers_of_the_login_manager_are_read() {
        let sessions = r#"{"type":"a(susso)","data":[[["3",1000,"ada","seat0","/org/freedesktop/login1/session/_33"]]]}"#;
        let reply: Reply<ListedSession> = serde_json::from_str(sessions).unwrap();
        assert_eq!(reply.data.0[0].2, "ada");
        let inhibitors =
            r#"{"type":"a(ssssuu)","data":[[["shutdown:sleep","backup","it runs","block",0,812]]]}"#;
        let reply: Reply<ListedInhibitor> = serde_json::from_str(inhibitors).unwrap();
        assert_eq!(reply.data.0[0].1, "backup");
        let none: Reply<ListedInhibitor> =
            serde_json::from_str(r#"{"type":"a(ssssuu)","data":[[]]}"#).unwrap();
        assert!(none.data.0.is_empty());
    }
}
