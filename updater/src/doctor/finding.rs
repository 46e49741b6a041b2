//! One thing that was looked at, as data for people and programs.
//!
//! Not here: looking. Rule: names are stable, in kebab-case, and part of the interface; a finding that is not well
//! cannot be made without saying what to do.

use serde::Serialize;

/// How it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Worth knowing, or not looked at; nothing is wrong.
    Note,
    /// The machine can be updated, and something that would save it one day is missing.
    Warning,
    /// The machine cannot be updated, or would not come back.
    Problem,
}

/// What belongs together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Group {
    /// The program and its settings.
    Program,
    /// The disk and its two slots.
    Slots,
    /// The bootloader and its record.
    Boot,
    /// The updater's own memory.
    State,
    /// What ends a hang, a panic or a trial that nobody judges.
    Return,
    /// Whose signatures count.
    Trust,
    /// Where releases come from.
    Source,
    /// What services need.
    Services,
}

impl Group {
    /// The heading.
    pub fn title(self) -> &'static str {
        match self {
            Group::Program => "Program and settings",
            Group::Slots => "Slots",
            Group::Boot => "Boot",
            Group::State => "State",
            Group::Return => "The way back",
            Group::Trust => "Trust",
            Group::Source => "Source and clock",
            Group::Services => "Services",
        }
    }
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Its stable name.
    pub name: &'static str,
    /// The group it is shown in.
    pub group: Group,
    /// How it is.
    pub result: Level,
    /// What was looked at: a file, a device, a service.
    pub looked_at: String,
    /// What was found there.
    pub found: String,
    /// What to do, where there is something to do.
    pub remedy: Option<String>,
}

/// A finding in the making.
pub struct Subject {
    group: Group,
    name: &'static str,
    looked_at: String,
}

impl Group {
    /// Begins the finding `name` about `looked_at`.
    pub fn at(self, name: &'static str, looked_at: impl ToString) -> Subject {
        Subject { group: self, name, looked_at: looked_at.to_string() }
    }
}

impl Subject {
    /// As it should be.
    pub fn ok(self, found: impl Into<String>) -> Finding {
        self.finding(Level::Ok, found.into(), None)
    }

    /// Worth knowing.
    pub fn note(self, found: impl Into<String>) -> Finding {
        self.finding(Level::Note, found.into(), None)
    }

    /// Something is missing, and this brings it.
    pub fn warning(self, found: impl Into<String>, remedy: impl Into<String>) -> Finding {
        self.finding(Level::Warning, found.into(), Some(remedy.into()))
    }

    /// Updates are not possible until this is done.
    pub fn problem(self, found: impl Into<String>, remedy: impl Into<String>) -> Finding {
        self.finding(Level::Problem, found.into(), Some(remedy.into()))
    }

    fn finding(self, result: Level, found: String, remedy: Option<String>) -> Finding {
        let Subject { group, name, looked_at } = self;
        Finding { name, group, result, looked_at, found, remedy }
    }
}

/// Everything that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The worst result of all.
    pub result: Level,
    /// In the order of their groups.
    pub findings: Vec<Finding>,
}

impl Report {
    /// The report of these findings.
    pub fn of(mut findings: Vec<Finding>) -> Report {
        findings.sort_by_key(|finding| finding.group);
        let result = findings.iter().map(|finding| finding.result).max().unwrap_or(Level::Ok);
        Report { result, findings }
    }

    /// How many have this result.
    pub fn count(&self, level: Level) -> usize {
        self.findings.iter().filter(|finding| finding.result == level).count()
    }
}
