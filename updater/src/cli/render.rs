//! Answers as sentences and tables.
//!
//! Not here: any fact that is not in the answer. Rule: a text says what happened, what was left alone, what comes next.

mod lists;
mod logs;

pub(super) use self::logs::plain;

use comfy_table::{ColumnConstraint, ContentArrangement, Table, Width, presets};
use switchback_bootloader::boot_state::SlotBoot;

use crate::digest::Digest;
use crate::engine::answers::{
    Answer, BootCheck, BootVerdict, Check, Content, History, HistoryEntry, Outcome, ServiceLine, SlotStatus,
    Status, Update,
};
use crate::engine::costs::Costs;
use crate::health::{CheckOutcome, CheckResult, HealthReport};
use crate::install::{ReleaseName, Traffic};
use crate::schedule::report::Report;

/// Narrower tables cannot be read.
const TABLE_WIDTH_MIN: u16 = 80;
/// `2026-01-31`.
const DAY_WIDTH: u16 = 10;
/// The longest reason of a trial, with its colon.
const WHY_WIDTH_MIN: u16 = 19;

/// The whole answer as text, ending with a newline.
pub fn text(answer: &Answer) -> String {
    match answer {
        Answer::Status(status) => self::status(status),
        Answer::Check(answer) => check(answer),
        Answer::Update(answer) => update(answer, "update"),
        Answer::Rollback(answer) => update(answer, "rollback"),
        Answer::History(answer) => history(answer),
        Answer::Logs(answer) => logs::text(&answer.logs),
        Answer::Quarantine(answer) => lists::quarantine(answer),
        Answer::Scrub(answer) => lists::scrub(answer),
        Answer::Health(report) => asked_health(report),
        Answer::BootCheck(answer) => boot_check(answer),
    }
}

/// Bytes for people: `17.3 MiB`.
pub fn bytes(count: u64) -> String {
    indicatif::BinaryBytes(count).to_string()
}

/// A release for people: `example-os 1.1 (sha256:0123456789ab…)`.
pub fn release(name: &ReleaseName) -> String {
    format!("{} {} (sha256:{}…)", name.name, name.version, name.digest.short())
}

/// A digest in a column: its beginning, by which every verb that takes a digest knows it.
fn short(digest: Digest) -> String {
    format!("{}…", digest.short())
}

/// What the daemon does by itself, and what it waits for.
fn schedule_lines(report: &Report) -> Vec<String> {
    let at = |at: jiff::Timestamp| at.strftime("%Y-%m-%d %H:%M:%S").to_string();
    let mut lines = vec![format!(
        "schedule     as of {}: the source is looked at next at {}",
        at(report.at),
        at(report.next_check)
    )];
    if let Some(offer) = &report.offer {
        let wanted = if offer.available { "it is wanted" } else { &*offer.detail };
        lines.push(format!(
            "offered      {} {}: {}",
            plain(&offer.name),
            plain(&offer.version),
            plain(wanted)
        ));
    }
    for (name, gate) in [("download", &report.download), ("reboot", &report.reboot)] {
        for block in &gate.blocked_by {
            lines.push(format!("waits        {name}: {}", plain(&block.detail)));
        }
    }
    lines.extend(report.trouble.as_ref().map(|trouble| format!("trouble      {}", plain(trouble))));
    lines
}

fn status(status: &Status) -> String {
    let mut out = String::new();
    let mut line = |text: String| {
        out.push_str(&text);
        out.push('\n');
    };
    for slot in &status.slots {
        line(slot_line(slot));
    }
    line(String::new());
    if let Some(at) = status.confirmed_at {
        line(format!(
            "since        {}, when the running release was confirmed",
            at.strftime("%Y-%m-%d %H:%M:%S")
        ));
    }
    line(format!("state        {}", status.state));
    line(format!("next         {}", status.next));
    for reason in &status.blocked_by {
        line(format!("blocked by   {reason}"));
    }
    if status.records_degraded {
        line("records      one of the two copies is damaged; the next start or update mends it".into());
    }
    if status.records_lost {
        line(
            "records      lost: what failed, was held back or happened before is not known any more, and the floor is \
             that of the running release"
                .into(),
        );
        line("             nothing has to be done, the next outcome is recorded again; if it repeats, check the state partition".into());
    }
    line(format!("source       {}", status.source.as_deref().unwrap_or("none configured")));
    if let Some(costs) = &status.last_written {
        let Costs { release, traffic, seconds, .. } = costs;
        line(format!(
            "last update  {} was written in {seconds:.1} s: {}",
            release.version,
            self::traffic(traffic)
        ));
    }
    if let Some(report) = &status.schedule {
        schedule_lines(report).into_iter().for_each(&mut line);
    }
    line(format!("floor        security version {}", status.floor));
    if let Some(held) = status.held {
        let version = status.held_version.as_deref().unwrap_or_default();
        line(format!("held back    {version} {held}, by an operator's rollback"));
    }
    if let Some(follows) = &status.services_follow {
        line(format!(
            "services     follow {} (sha256:{}…), which has the same OS",
            follows.version,
            follows.digest.short()
        ));
    }
    for service in &status.services {
        line(service_line(service));
    }
    for item in &status.quarantine {
        line(format!("quarantined  {} {}: {}", item.version, item.digest, item.reason.description()));
    }
    if let Some(last) = &status.last {
        line(format!("last         {}", history_line(last)));
    }
    line(format!("bootloader   {}; running slot by {}", status.bootloader, status.running_by));
    line(format!(
        "watchdog     {}",
        if status.watchdog { "held: a hang ends by itself" } else { "none: a hang does not end by itself" }
    ));
    out
}

fn service_line(service: &ServiceLine) -> String {
    let serves = service.release.as_ref().map_or("nothing".to_owned(), |release| {
        format!("{} (sha256:{}…)", release.version, release.digest.short())
    });
    let drift = service.drift.map(|bound| format!("; the release says sha256:{}…", bound.short()));
    format!("service      {} serves {serves}{}", service.name, drift.unwrap_or_default())
}

fn slot_line(slot: &SlotStatus) -> String {
    let mark = if slot.running { "*" } else { " " };
    let name = slot.release.as_ref().map(release);
    let problem = slot.problem.as_deref().unwrap_or_default();
    let content = match (slot.content, name) {
        (Content::Empty, _) => "empty".to_string(),
        (Content::HalfWritten, _) => "half written".to_string(),
        (Content::Unknown, _) => "unknown".to_string(),
        (Content::Release, name) => name.unwrap_or_default(),
        (Content::Damaged, Some(name)) => format!("{name}, DAMAGED ({problem})"),
        (Content::Damaged, None) => format!("DAMAGED ({problem})"),
    };
    let boot = match slot.boot {
        SlotBoot::Empty => "no boot entry".to_string(),
        SlotBoot::Good => "confirmed".to_string(),
        SlotBoot::Trial { tries_left, .. } => format!("on trial, {tries_left} starts left"),
        SlotBoot::Bad => "marked bad".to_string(),
    };
    let more = match (slot.running, slot.quarantined) {
        (true, _) => ", running",
        (_, true) => ", quarantined",
        _ => "",
    };
    format!("{mark} slot {}     {content}: {boot}{more}", slot.slot)
}

fn check(answer: &Check) -> String {
    let offer = release(&answer.release);
    if answer.available {
        format!("{offer} is available. Run `switchback update` to move to it.\n")
    } else {
        format!("{offer} is what the source offers. {}\n", answer.detail)
    }
}

fn traffic(traffic: &Traffic) -> String {
    let requests = if traffic.requests == 1 { "request" } else { "requests" };
    let copied = match traffic.copied {
        0 => String::new(),
        copied => format!(" ({} of it from this machine)", bytes(copied)),
    };
    format!(
        "{} fetched in {} {requests}, {} written{copied}, {} already in place, {} zero",
        bytes(traffic.fetched),
        traffic.requests,
        bytes(traffic.written),
        bytes(traffic.kept),
        bytes(traffic.zero)
    )
}

/// What an install waited for most, where it was large enough for anybody to ask.
fn limit(answer: &Update) -> String {
    let bytes = answer.traffic.written + answer.traffic.kept;
    match answer.stages {
        Some(stages) if bytes >= 64 << 20 => format!(", mostly {}", stages.limit.words()),
        _ => String::new(),
    }
}

/// What was really paid for: more than was wanted, by documents and by what had to come twice.
fn network(answer: &Update) -> String {
    let Some(network) = answer.network else { return String::new() };
    format!("; over the network came {} in {} requests in all", bytes(network.bytes), network.requests)
}

fn update(answer: &Update, verb: &str) -> String {
    let name = release(&answer.release);
    let slot = answer.slot;
    let time = format!("{:.1} s{}", answer.seconds, limit(answer));
    let cost = format!("{} in {time}{}", traffic(&answer.traffic), network(answer));
    match answer.outcome {
        Outcome::Unchanged => format!("Nothing changed. {}\n", answer.detail),
        Outcome::WouldUpdate => {
            format!(
                "{verb} would move to {name} in slot {slot}, at most: {}\n{}\n",
                traffic(&answer.traffic),
                answer.detail
            )
        }
        Outcome::Staged => {
            format!("{name} is staged in slot {slot}, read back and verified: {cost}.\n{}\n", answer.detail)
        }
        Outcome::Moved => {
            format!("{name} runs, without a restart. {} It took {:.1} s.\n", answer.detail, answer.seconds)
        }
        Outcome::WouldMove => {
            format!(
                "{verb} would move to {name}, without a restart: its OS is the one that runs. {}\n",
                answer.detail
            )
        }
        Outcome::Fetched => {
            format!("The images of {name} are here; its OS is the one that runs. {}\n", answer.detail)
        }
        Outcome::Disarmed => {
            format!(
                "{name} in slot {slot} is not armed any more: the next reboot stays here.\n{}\n",
                answer.detail
            )
        }
        Outcome::Armed => format!(
            "{name} is armed in slot {slot}: {cost}.\nThe next reboot starts its trial ({} starts at most). {}\n",
            answer.tries, answer.detail
        ),
        Outcome::Rebooting => format!(
            "{name} is armed in slot {slot}: {cost}.\nRebooting into its trial ({} starts at most).\n",
            answer.tries
        ),
    }
}

fn history(answer: &History) -> String {
    if answer.entries.is_empty() && answer.records_lost {
        return "Nothing is known: the records of before were lost.\n".to_string();
    }
    if answer.entries.is_empty() {
        return "Nothing has happened yet.\n".to_string();
    }
    let mut table = table();
    table.set_header(["when", "what", "version", "slot", "digest", "why"]);
    for entry in &answer.entries {
        table.add_row([
            entry.at.strftime("%Y-%m-%d %H:%M:%S").to_string(),
            entry.what.clone(),
            entry.version.clone(),
            entry.slot.map(|slot| slot.to_string()).unwrap_or_default(),
            entry.digest.map(short).unwrap_or_default(),
            why(entry),
        ]);
    }
    // A piece of what happened or of a digest is worth nothing; the time may break between day and hour.
    whole(&mut table, &[1, 4]);
    at_least(&mut table, 0, DAY_WIDTH);
    at_least(&mut table, 5, WHY_WIDTH_MIN);
    let mut kept: Vec<&str> =
        answer.entries.iter().filter(|entry| entry.log).map(|entry| entry.version.as_str()).collect();
    kept.dedup();
    let pointers: String = kept
        .iter()
        .map(|version| format!("`switchback logs {version}` shows the log of its trial.\n"))
        .collect();
    format!("{}\n{pointers}", table.trim_fmt())
}

fn why(entry: &HistoryEntry) -> String {
    match &entry.reason {
        Some(reason) if entry.detail.is_empty() => reason.to_string(),
        Some(reason) => format!("{reason}: {}", entry.detail),
        None => entry.detail.clone(),
    }
}

fn history_line(entry: &HistoryEntry) -> String {
    let why = why(entry);
    let tail = if why.is_empty() { String::new() } else { format!(" ({why})") };
    let what = entry.what.replace('-', " ");
    format!("{what} {} at {}{tail}", entry.version, entry.at.strftime("%Y-%m-%d %H:%M:%S"))
}

fn table() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    if let Some(width) = width() {
        table.set_width(width);
    }
    table
}

/// As wide as the terminal, or as `COLUMNS` says where there is none, if one of them says: a serial console says 0, and
/// would get one letter a line.
pub(super) fn width() -> Option<u16> {
    let columns = || std::env::var("COLUMNS").ok()?.parse().ok();
    Table::new().width().or_else(columns).map(|width| width.max(TABLE_WIDTH_MIN))
}

fn at_least(table: &mut Table, column: usize, letters: u16) {
    if let Some(column) = table.column_mut(column) {
        let width = Width::Fixed(letters.saturating_add(column.padding_width()));
        column.set_constraint(ColumnConstraint::LowerBoundary(width));
    }
}

/// Columns that are never broken.
fn whole(table: &mut Table, columns: &[usize]) {
    for column in columns {
        if let Some(column) = table.column_mut(*column) {
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
    }
}

/// For a person who asks; a trial's judge knows what comes next.
fn asked_health(report: &HealthReport) -> String {
    let next = match report.why() {
        None => "",
        Some(_) => {
            "Nothing was changed. Mend what the failed checks name, or go back with `switchback rollback`.\n"
        }
    };
    health(report) + next
}

fn health(report: &HealthReport) -> String {
    let verdict = if report.why().is_none() { "healthy" } else { "not healthy" };
    format!("{}\nThe machine is {verdict}.\n", checks(&report.checks))
}

fn checks(checks: &[CheckResult]) -> String {
    let mut table = table();
    table.set_header(["check", "result", "attempts", "ms", "detail"]);
    for check in checks {
        let result = match check.outcome {
            CheckOutcome::Passed => "passed",
            CheckOutcome::Failed => "FAILED",
            CheckOutcome::DeadlineMissed => "TOO LATE",
            CheckOutcome::WantedFailed => "failed, only wanted",
            CheckOutcome::Disabled => "disabled",
        };
        let (attempts, millis) = (check.attempts.to_string(), check.millis.to_string());
        table.add_row([check.name.as_str(), result, &attempts, &millis, check.detail.trim_end()]);
    }
    table.trim_fmt()
}

fn boot_check(answer: &BootCheck) -> String {
    let name = answer.release.as_ref().map_or_else(|| "an unknown release".to_string(), release);
    let head = match answer.verdict {
        BootVerdict::Nothing => format!("{name} runs in slot {}; no trial is under way.", answer.slot),
        BootVerdict::Confirmed => format!("{name} in slot {} is healthy and confirmed.", answer.slot),
        BootVerdict::Returning => format!("{name} in slot {} failed its trial: going back.", answer.slot),
        BootVerdict::Returned => format!("The machine came back: {name} runs in slot {}.", answer.slot),
        BootVerdict::Stranded => {
            format!(
                "{name} in slot {} is not well, and the other slot holds nothing to return to.",
                answer.slot
            )
        }
        BootVerdict::NotStarted => {
            format!("The armed release never started; {name} runs in slot {}.", answer.slot)
        }
    };
    let checks = answer.health.as_ref().map(health).unwrap_or_default();
    let tail = if answer.detail.is_empty() { String::new() } else { format!("{}\n", answer.detail) };
    let failed = answer.hooks.iter().filter(|hook| hook.outcome.fails());
    let hooks: String = failed.map(|hook| format!("{} failed: {}\n", hook.name, hook.detail)).collect();
    let log = answer.log.as_ref();
    let log = log.map(|version| format!("`switchback logs {version}` shows the log of the trial.\n"));
    format!("{head}\n{checks}{tail}{hooks}{}", log.unwrap_or_default())
}
