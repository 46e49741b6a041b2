//! `[schedule]` as it is declared: when the machine may act by itself.
//!
//! Not here: deciding (`schedule`). Rule: without the section nothing is done by itself, and a window or a lock that nobody waits
//! for is an error, not a silent wish.

use std::time::Duration;

use jiff::SignedDuration;
use jiff::civil::{Time, Weekday};
use jiff::tz::TimeZone;
use serde::Deserialize;
use url::Url;

use crate::schedule::{self, Allow, Day, Days, Gates, LENGTH_MAX, Zone};

/// The shortest time between two looks at the source: a registry is asked by many.
const CHECK_MIN: Duration = Duration::from_secs(60);

/// The longest: a year.
const CHECK_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

const LENGTH_WRONG: &str = "`length` is out of bounds: expected more than 0s, at most 7days";

/// `[schedule]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Schedule {
    /// Between two looks at the source.
    #[serde(deserialize_with = "check")]
    pub check: Duration,
    /// The most that is added to that, at random.
    #[serde(with = "humantime_serde")]
    pub jitter: Duration,
    /// When a release may be fetched and written.
    pub download: Download,
    /// When the machine may restart into it.
    pub reboot: Reboot,
    /// What a metered link is used for.
    pub metered: Metered,
    /// The zone of the windows by its IANA name; absent: the machine's.
    pub time_zone: Option<ZoneName>,
    /// `[[schedule.window]]`.
    #[serde(rename = "window")]
    pub windows: Vec<Window>,
    /// `[schedule.lock]`: the server that lets machines restart in turn.
    pub lock: Option<LockServer>,
}

impl Default for Schedule {
    fn default() -> Schedule {
        Schedule {
            check: Duration::from_secs(6 * 3600),
            jitter: Duration::from_secs(30 * 60),
            download: Download::default(),
            reboot: Reboot(Allow::Manual),
            metered: Metered::default(),
            time_zone: None,
            windows: Vec::new(),
            lock: None,
        }
    }
}

/// When a release may be fetched.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Download {
    /// As soon as it is seen.
    #[default]
    Any,
    /// While a window is open.
    Window,
    /// When an operator says so.
    Manual,
}

/// What a metered link is used for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Metered {
    /// Nothing is fetched over it.
    #[default]
    Wait,
    /// It is a link like any other.
    Use,
}

/// When the machine may restart: a word or a list of words.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "OneOrMore")]
pub struct Reboot(
    /// What the words come to.
    pub Allow,
);

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "expected \"immediate\", \"manual\" or a list of \"window\", \"lock\", \"sessions\", \"inhibitors\""
)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl TryFrom<OneOrMore> for Reboot {
    type Error = String;
    fn try_from(words: OneOrMore) -> Result<Reboot, String> {
        let words = match words {
            OneOrMore::One(word) => vec![word],
            OneOrMore::More(words) => words,
        };
        match &words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            [] => {
                Err("`reboot` is empty: expected \"immediate\" or \"manual\", if it is to wait for nothing"
                    .into())
            }
            ["immediate"] => Ok(Reboot(Allow::Gates(Gates::default()))),
            ["manual"] => Ok(Reboot(Allow::Manual)),
            words => gates(words).map(Allow::Gates).map(Reboot),
        }
    }
}

fn gates(words: &[&str]) -> Result<Gates, String> {
    let mut gates = Gates::default();
    for word in words {
        let gate = match *word {
            "window" => &mut gates.window,
            "lock" => &mut gates.lock,
            "sessions" => &mut gates.sessions,
            "inhibitors" => &mut gates.inhibitors,
            "immediate" | "manual" => return Err(format!("`{word}` stands alone in `reboot`")),
            _ => {
                return Err(format!(
                    "`{word}` is nothing to wait for in `reboot`: expected `window`, `lock`, `sessions`, `inhibitors`, \
                     or `immediate` or `manual` alone"
                ));
            }
        };
        *gate = true;
    }
    Ok(gates)
}

/// The name of a time zone, well-formed; whether a machine knows it is another question.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct ZoneName(String);

impl TryFrom<String> for ZoneName {
    type Error = String;
    fn try_from(name: String) -> Result<ZoneName, String> {
        let good = |byte: u8| byte.is_ascii_alphanumeric() || b"_+-".contains(&byte);
        let part = |part: &str| !part.is_empty() && part.bytes().all(good);
        match name.split('/').all(part) {
            true => Ok(ZoneName(name)),
            false => {
                Err(format!("`{name}` is no time zone: expected a name such as `Europe/Berlin` or `UTC`"))
            }
        }
    }
}

/// `[[schedule.window]]`: days, start and length.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "RawWindow")]
pub struct Window(schedule::Window);

/// As written; each key is checked where it stands, so that an error names its line.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawWindow {
    #[serde(default)]
    days: WindowDays,
    start: Start,
    #[serde(deserialize_with = "length")]
    length: SignedDuration,
}

impl TryFrom<RawWindow> for Window {
    type Error = &'static str;
    fn try_from(raw: RawWindow) -> Result<Window, &'static str> {
        schedule::Window::new(raw.days.0, raw.start.0, raw.length).map(Window).ok_or(LENGTH_WRONG)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Vec<Day>")]
struct WindowDays(Days);

impl Default for WindowDays {
    fn default() -> WindowDays {
        WindowDays(Days::EVERY)
    }
}

impl TryFrom<Vec<Day>> for WindowDays {
    type Error = String;
    fn try_from(days: Vec<Day>) -> Result<WindowDays, String> {
        let days = Days::of(days.into_iter().map(Weekday::from)).map(WindowDays);
        days.ok_or_else(|| {
            "`days` is empty: expected some of \"mon\" to \"sun\", or no `days` for all".into()
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
struct Start(Time);

impl TryFrom<String> for Start {
    type Error = String;
    fn try_from(text: String) -> Result<Start, String> {
        let number =
            |digits: &str| match digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_digit()) {
                true => digits.parse().ok(),
                false => None,
            };
        let time = text
            .split_once(':')
            .and_then(|(hour, minute)| Time::new(number(hour)?, number(minute)?, 0, 0).ok());
        time.map(Start).ok_or_else(|| format!("`{text}` is no time of day: expected \"00:00\" to \"23:59\""))
    }
}

/// `[schedule.lock]`: a FleetLock server.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockServer {
    /// What its paths are beneath.
    pub url: LockUrl,
    /// Machines of one group take turns with each other.
    #[serde(default)]
    pub group: LockGroup,
}

/// The address of a lock server; its path ends in `/`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct LockUrl(Url);

impl LockUrl {
    /// Relative paths are joined to it.
    pub fn base(&self) -> &Url {
        &self.0
    }
}

impl TryFrom<String> for LockUrl {
    type Error = String;
    fn try_from(text: String) -> Result<LockUrl, String> {
        let wrong =
            || format!("`{text}` is no address of a lock server: expected http://HOST/ or https://HOST/");
        let mut url = Url::parse(&text).map_err(|_| wrong())?;
        let plain = url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
        if !matches!(url.scheme(), "http" | "https") || !plain || url.password().is_some() {
            return Err(wrong());
        }
        // Without it, joining a path would replace the last part of this one.
        if !url.path().ends_with('/') {
            url.set_path(&format!("{}/", url.path()));
        }
        Ok(LockUrl(url))
    }
}

/// The name of a group, as the protocol allows it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct LockGroup(String);

impl LockGroup {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for LockGroup {
    fn default() -> LockGroup {
        LockGroup("default".into())
    }
}

impl TryFrom<String> for LockGroup {
    type Error = String;
    fn try_from(name: String) -> Result<LockGroup, String> {
        let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'.' || byte == b'-';
        match !name.is_empty() && name.bytes().all(good) {
            true => Ok(LockGroup(name)),
            false => Err(format!("`{name}` is no group: expected letters, digits, `.` and `-`")),
        }
    }
}

impl Schedule {
    /// Finds the rules of the zone on this machine. Not when the configuration is read: a name that an image does not know any
    /// more must close windows, and not keep `boot-check` from judging that image.
    pub fn find_zone(&self) -> Zone {
        let Some(ZoneName(name)) = &self.time_zone else {
            // Without a readable /etc/localtime every program of the machine takes UTC.
            return Zone::Known(TimeZone::try_system().unwrap_or(TimeZone::UTC));
        };
        match TimeZone::get(name) {
            Ok(zone) => Zone::Known(zone),
            Err(error) => Zone::Unknown {
                name: name.clone(),
                why: format!("{error}; the rules lie in /usr/share/zoneinfo, of the package tzdata"),
            },
        }
    }

    /// What decides, with the windows in `zone`.
    pub fn in_zone(&self, zone: Zone) -> schedule::Schedule {
        let gates = |window| Allow::Gates(Gates { window, ..Gates::default() });
        schedule::Schedule {
            check: SignedDuration::try_from(self.check).unwrap_or(SignedDuration::MAX),
            jitter: SignedDuration::try_from(self.jitter).unwrap_or(SignedDuration::MAX),
            download: match self.download {
                Download::Any => gates(false),
                Download::Window => gates(true),
                Download::Manual => Allow::Manual,
            },
            reboot: self.reboot.0.clone(),
            metered: match self.metered {
                Metered::Wait => schedule::Metered::Wait,
                Metered::Use => schedule::Metered::Use,
            },
            zone,
            windows: self.windows.iter().map(|window| window.0.clone()).collect(),
        }
    }

    /// What spans several keys: the key to blame, and what is wrong.
    pub(super) fn check(&self) -> Result<(), (&'static str, String)> {
        let reboot = match &self.reboot.0 {
            Allow::Manual => Gates::default(),
            Allow::Gates(gates) => *gates,
        };
        if self.jitter > self.check {
            return Err(("jitter", "`jitter` is longer than `check`: expected at most as long".into()));
        }
        if self.windows.is_empty() {
            let problem = "it waits for a window, so [[schedule.window]] must say when one opens".into();
            match (reboot.window, self.download) {
                (true, _) => return Err(("reboot", problem)),
                (_, Download::Window) => return Err(("download", problem)),
                _ => {}
            }
        } else if !reboot.window && self.download != Download::Window {
            let problem = "nothing waits for a window: expected \"window\" in `reboot` or `download`".into();
            return Err(("window", problem));
        }
        match (reboot.lock, &self.lock) {
            (true, None) => {
                Err(("reboot", "it waits for a lock, so [schedule.lock] must name a server".into()))
            }
            (false, Some(_)) => {
                Err(("lock", "nothing waits for the lock: expected \"lock\" in `reboot`".into()))
            }
            _ => Ok(()),
        }
    }
}

fn check<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let check: Duration = humantime_serde::deserialize(deserializer)?;
    match (CHECK_MIN..=CHECK_MAX).contains(&check) {
        true => Ok(check),
        false => Err(serde::de::Error::custom("`check` is out of bounds: expected 1m to 366 days")),
    }
}

fn length<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<SignedDuration, D::Error> {
    let length: Duration = humantime_serde::deserialize(deserializer)?;
    let length = SignedDuration::try_from(length).unwrap_or(SignedDuration::MAX);
    match length.is_positive() && length <= LENGTH_MAX {
        true => Ok(length),
        false => Err(serde::de::Error::custom(LENGTH_WRONG)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;

    fn load(text: &str) -> Result<Config, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        std::fs::write(&path, text).unwrap();
        Config::load(&path).map_err(|error| error.to_string())
    }

    fn decided(text: &str) -> schedule::Schedule {
        load(text).unwrap().schedule.unwrap().in_zone(Zone::Known(TimeZone::UTC))
    }

    #[test]
    fn without_the_section_nothing_is_done_and_with_it_alone_nothing_restarts() {
        assert_eq!(load("").unwrap().schedule, None);
        let schedule = decided("[schedule]\n");
        assert_eq!(schedule.check, SignedDuration::from_hours(6));
        assert_eq!((schedule.download, schedule.reboot), (Allow::Gates(Gates::default()), Allow::Manual));
    }

    #[test]
    fn everything_that_is_written_arrives() {
        let text = "[schedule]\ncheck = '1h'\njitter = '5m'\ndownload = 'window'\nmetered = 'use'\n\
            reboot = ['window', 'lock', 'sessions', 'inhibitors']\ntime_zone = 'Etc/GMT+5'\n\
            [[schedule.window]]\ndays = ['sat', 'sun']\nstart = '02:30'\nlength = '2h'\n\
            [[schedule.window]]\nstart = '23:00'\nlength = '7days'\n\
            [schedule.lock]\nurl = 'https://lock.example/fleet'\ngroup = 'web-1.a'\n";
        let written = load(text).unwrap().schedule.unwrap();
        let lock = written.lock.as_ref().unwrap();
        assert_eq!(
            (lock.url.base().as_str(), lock.group.as_str()),
            ("https://lock.example/fleet/", "web-1.a")
        );
        let window = |days: Days, hour, minute, hours| {
            let start = Time::constant(hour, minute, 0, 0);
            schedule::Window::new(days, start, SignedDuration::from_hours(hours)).unwrap()
        };
        let weekend = Days::of([Weekday::Saturday, Weekday::Sunday]).unwrap();
        let every = Gates { window: true, sessions: true, inhibitors: true, lock: true };
        let expected = schedule::Schedule {
            check: SignedDuration::from_hours(1),
            jitter: SignedDuration::from_mins(5),
            download: Allow::Gates(Gates { window: true, ..Gates::default() }),
            reboot: Allow::Gates(every),
            metered: schedule::Metered::Use,
            zone: Zone::Known(TimeZone::UTC),
            windows: vec![window(weekend, 2, 30, 2), window(Days::EVERY, 23, 0, 168)],
        };
        assert_eq!(written.in_zone(Zone::Known(TimeZone::UTC)), expected);
    }

    #[test]
    fn a_zone_that_the_machine_does_not_know_is_named_and_stops_no_verb() {
        let zone = |name: &str| {
            let text = format!("[schedule]\ntime_zone = '{name}'\n");
            load(&text).unwrap().schedule.unwrap().find_zone()
        };
        assert!(matches!(zone("UTC"), Zone::Known(_)));
        let Zone::Unknown { name, why } = zone("Europe/Berln") else { panic!("there is no such place") };
        assert_eq!(name, "Europe/Berln");
        assert!(why.contains("tzdata"), "{why}");
    }

    #[test]
    fn what_is_written_wrongly_is_named_with_its_line() {
        let window = "[[schedule.window]]\nstart = '02:00'\nlength = '1h'\n";
        for (text, line, expected) in [
            ("chek = '1h'", 2, "unknown field `chek`, expected one of `check`, `jitter`"),
            ("check = '30s'", 2, "expected 1m to 366 days"),
            ("check = 'often'", 2, "expected"),
            ("jitter = '7h'", 2, "`jitter` is longer than `check`"),
            ("download = 'never'", 2, "unknown variant `never`, expected one of `any`, `window`, `manual`"),
            ("download = 'window'", 2, "[[schedule.window]] must say when one opens"),
            ("reboot = ['window']", 2, "[[schedule.window]] must say when one opens"),
            ("reboot = ['windows']", 2, "`windows` is nothing to wait for in `reboot`: expected `window`"),
            ("reboot = ['manual', 'lock']", 2, "`manual` stands alone"),
            ("reboot = []", 2, "`reboot` is empty"),
            ("reboot = 3", 2, "expected \"immediate\", \"manual\" or a list"),
            ("reboot = 'lock'", 2, "[schedule.lock] must name a server"),
            ("metered = 'ask'", 2, "unknown variant `ask`, expected `wait` or `use`"),
            ("time_zone = '../etc/shadow'", 2, "`../etc/shadow` is no time zone"),
            ("time_zone = ''", 2, "`` is no time zone"),
            (window, 2, "nothing waits for a window"),
            ("reboot = 'window'\n[[schedule.window]]\nlength = '1h'", 3, "missing field `start`"),
            ("[[schedule.window]]\nstart = '24:00'\nlength = '1h'", 3, "`24:00` is no time of day"),
            ("[[schedule.window]]\nstart = '2:30'\nlength = '1h'", 3, "`2:30` is no time of day"),
            ("[[schedule.window]]\nstart = '02:30'\nlength = '0s'", 4, "`length` is out of bounds"),
            ("[[schedule.window]]\nstart = '02:30'\nlength = '169h'", 4, "`length` is out of bounds"),
            ("[[schedule.window]]\ndays = ['sunday']", 3, "unknown variant `sunday`, expected one of `mon`"),
            ("[[schedule.window]]\ndays = []", 3, "`days` is empty"),
            ("[[schedule.window]]\nend = '04:00'", 3, "unknown field `end`, expected one of `days`"),
            ("[schedule.lock]\nurl = 'lock.example'", 3, "`lock.example` is no address of a lock server"),
            ("[schedule.lock]\nurl = 'https://u:p@lock.example/'", 3, "is no address of a lock server"),
            ("[schedule.lock]\nurl = 'http://lock.example'\ngroup = 'a b'", 4, "`a b` is no group"),
            ("[schedule.lock]\nurl = 'http://lock.example'", 2, "nothing waits for the lock"),
        ] {
            let error = load(&format!("[schedule]\n{text}\n")).unwrap_err();
            assert!(error.contains(&format!("config.toml, line {line}: ")), "{text}\n{error}");
            assert!(error.contains(expected), "{text}\n{error}");
        }
    }
}
