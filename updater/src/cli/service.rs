//! The verbs with a service as their target: from typed text to an order, and what it came to as sentences.
//!
//! Not here: what is done (`services`). Rule: a failure says which slot serves, for that is what clients notice.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use serde_json::json;
use switchback_bootloader::boot_state::SlotBoot;

use super::Output;
use super::progress::Display;
use super::render::plain;
use crate::config::Config;
use crate::config::service::Name;
use crate::engine::Failure;
use crate::engine::answers::Answer;
use crate::reason::Reason;
use crate::services::asked::{self, ServiceHistory, ServiceLogs, SlotLog};
use crate::services::holder;
use crate::services::orders::{self, ServiceMoved, ServiceSlot, ServiceStatus, Services};

/// `status NAME`.
pub(super) fn status(config: &Config, name: &Name) -> Result<Output, Failure> {
    let services = orders::status(config, Some(name))?;
    let text = services.iter().map(text).collect();
    Ok(Output {
        text,
        json: json!({ "answer": "services", "services": services }),
        changed: false,
        reason: None,
    })
}

/// `update NAME`.
pub(super) fn update(
    config: &Config,
    name: &Name,
    to: Option<&str>,
    progress: &Display,
) -> Result<Output, Failure> {
    let moved = Services::open(config, progress)?.update(name, to)?;
    Ok(output(&moved, "serves from it already; nothing was changed"))
}

/// The services of a file for `apply`: each to its image, those that serve from it already left alone.
pub(super) fn apply(
    config: &Config,
    wanted: &BTreeMap<Name, String>,
    dry_run: bool,
    progress: &Display,
) -> Result<Output, Failure> {
    let services = Services::open(config, progress)?;
    let mut whole = Output { text: String::new(), json: json!({}), changed: false, reason: None };
    let mut parts = Vec::new();
    for (name, to) in wanted {
        if dry_run {
            let moves = services.plan(name, Some(to))?;
            whole.text += &format!("{name} would {}.\n", if moves { "move" } else { "stay as it is" });
            parts.push(json!({ "name": name, "would_move": moves }));
            continue;
        }
        let part = output(&services.update(name, Some(to))?, "serves from it already; nothing was changed");
        whole.text += &part.text;
        whole.changed |= part.changed;
        parts.push(part.json);
    }
    whole.json = json!({ "answer": "services", "services": parts });
    Ok(whole)
}

/// `rollback NAME`.
pub(super) fn rollback(config: &Config, name: &Name, progress: &Display) -> Result<Output, Failure> {
    let moved = Services::open(config, progress)?.rollback(name)?;
    Ok(output(&moved, "has nothing to go back to"))
}

/// `history NAME`.
pub(super) fn history(config: &Config, name: &Name, limit: usize) -> Result<Output, Failure> {
    let ServiceHistory { history, kept_volumes } = asked::history(config, name, limit)?;
    let mut output = super::output(&Answer::History(history));
    for folder in &kept_volumes {
        let line =
            format!("A volume as an image left it that had raised it and was left: {}\n", folder.display());
        output.text.push_str(&line);
    }
    output.json["service"] = name.as_str().into();
    output.json["kept_volumes"] = json!(kept_volumes);
    Ok(output)
}

/// `quarantine list NAME` and `quarantine release NAME RELEASE`.
pub(super) fn quarantine(config: &Config, name: &Name, release: Option<&str>) -> Result<Output, Failure> {
    let answer = asked::quarantine(config, name, release)?;
    let mut output = super::output(&Answer::Quarantine(answer));
    // The sentences are those of the OS; the order that they name is another one.
    output.text = output.text.replace("`switchback update`", &format!("`switchback update {name}`"));
    output.json["service"] = name.as_str().into();
    Ok(output)
}

/// `logs --service NAME`.
pub(super) fn logs(config: &Config, name: &Name) -> Result<Output, Failure> {
    let logs = asked::logs(config, name)?;
    let mut json = serde_json::to_value(&logs).unwrap_or_default();
    json["answer"] = "service-logs".into();
    Ok(Output { text: logs_text(&logs), json, changed: false, reason: None })
}

fn logs_text(logs: &ServiceLogs) -> String {
    if logs.slots.is_empty() {
        return format!("{} has written nothing.\n", logs.name);
    }
    let one = |log: &SlotLog| {
        let held = log.release.as_ref().map_or("nothing", |release| &release.version);
        let serves = if log.serves { ", serves" } else { "" };
        let at = log.written_at.strftime("%Y-%m-%d %H:%M:%S");
        let text = plain(&log.text);
        let end = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
        let head = format!(
            "{} in slot {} ({held}{serves}), written last at {at}, all in {}",
            logs.name,
            log.slot,
            log.file.display()
        );
        format!("{head}:\n{text}{end}")
    };
    logs.slots.iter().map(one).collect::<Vec<_>>().join("\n")
}

/// `hold`.
pub(super) fn hold(bundle: &Path, command: &[OsString]) -> Result<Output, Failure> {
    holder::run(bundle, command).map_err(|error| Failure::before(Reason::ServiceFailed, error))?;
    Ok(Output { text: String::new(), json: json!({ "answer": "hold" }), changed: false, reason: None })
}

/// `daemon`, which ended.
pub(super) fn stopped() -> Output {
    let text = "Asked to stop; the services run on.\n".to_owned();
    Output { text, json: json!({ "answer": "daemon" }), changed: false, reason: None }
}

fn output(moved: &ServiceMoved, unchanged: &str) -> Output {
    let ServiceMoved { name, changed, slot, release, activation_seconds, seconds } = moved;
    let version = release.as_ref().map_or("nothing", |release| &release.version);
    let text = match (changed, activation_seconds) {
        (true, Some(activation)) => format!(
            "{name} serves {version} from slot {slot}: led there {activation} s after its start, confirmed after {seconds} s.\n"
        ),
        (true, None) => format!("{name} serves {version} from slot {slot}.\n"),
        (false, _) => format!("{name} {unchanged}.\n"),
    };
    let mut json = serde_json::to_value(moved).unwrap_or_default();
    json["answer"] = "service".into();
    Output { text, json, changed: *changed, reason: None }
}

fn text(service: &ServiceStatus) -> String {
    let mut lines = format!("{}\n", service.name);
    for ServiceSlot { slot, boot, release, pid } in &service.slots {
        let held = release.as_ref().map_or("nothing".to_owned(), |release| {
            format!("{} (sha256:{}…)", release.version, release.digest.short())
        });
        let word = match boot {
            SlotBoot::Good => "confirmed",
            SlotBoot::Trial { .. } => "on trial",
            SlotBoot::Bad => "bad",
            SlotBoot::Empty => "not started",
        };
        let serves = if service.serving == Some(*slot) { ", serves" } else { "" };
        let runs = pid.map_or(String::new(), |pid| format!(", process {pid}"));
        lines.push_str(&format!("  slot {slot}  {held}: {word}{serves}{runs}\n"));
    }
    if let Some(why) = service.last.as_ref().and_then(|last| last.why.as_ref()) {
        lines.push_str(&format!("  last    {why}\n"));
    }
    for digest in &service.quarantine {
        lines.push_str(&format!("  banned  sha256:{}…\n", digest.short()));
    }
    lines
}

#[cfg(test)]
mod tests {
    use switchback_partitions::slot::Slot;

    use super::*;
    use crate::digest::Digest;
    use crate::lifecycle::Release;

    #[test]
    fn logs_say_which_slot_wrote_and_move_no_cursor() {
        let at = jiff::Timestamp::from_second(1_700_000_000).unwrap();
        let release = Release { digest: Digest::of(b"1"), version: "1.1".into(), security_version: 0 };
        let log = |slot, serves, release, text: &str| SlotLog {
            slot,
            serves,
            release,
            written_at: at,
            file: format!("/data/logs/dns-{slot}.log").into(),
            text: text.into(),
        };
        let name: Name = "dns".parse().unwrap();
        let slots = vec![
            log(Slot::B, false, None, "old\u{1b}[2J\n"),
            log(Slot::A, true, Some(release), "no line end"),
        ];
        let shown = logs_text(&ServiceLogs { name: name.clone(), slots });
        assert_eq!(
            shown,
            "dns in slot b (nothing), written last at 2023-11-14 22:13:20, all in /data/logs/dns-b.log:\nold?[2J\n\n\
             dns in slot a (1.1, serves), written last at 2023-11-14 22:13:20, all in /data/logs/dns-a.log:\nno line end\n"
        );
        assert_eq!(logs_text(&ServiceLogs { name, slots: Vec::new() }), "dns has written nothing.\n");
    }
}
