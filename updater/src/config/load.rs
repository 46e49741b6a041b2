//! From files to one `Config`: each file is checked alone, so that an error names its line; then the later wins.
//!
//! Rule: relative paths count from the folder of the file that holds them, wherever the program is started.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use super::{BootBackend, CONFIG_PATH, Check, Config, MachineKind};
use crate::reason::Reason;

/// The longest configuration file that is read, in bytes.
pub const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// Keys that hold paths; `*` stands for any key or list index.
const PATHS: &[&[&str]] = &[
    &["source", "ca_file"],
    &["source", "auth_file"],
    &["trust", "policy", "*", "keys", "*"],
    &["machine", "disk"],
    &["machine", "state_dir"],
    &["machine", "esp"],
    &["machine", "root"],
    &["machine", "running"],
    &["machine", "watchdog"],
    &["machine", "data_dir"],
    &["machine", "run_dir"],
    &["machine", "runtime"],
    &["service", "*", "trust", "keys", "*"],
    &["boot", "custom", "command"],
    &["health", "check", "*", "cwd"],
];

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file or folder could not be read.
    #[error("while reading the configuration {}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// The system's word.
        source: std::io::Error,
    },
    /// A line is wrong.
    #[error("while reading the configuration {}, line {line}: {problem}\n  {line} | {text}", path.display())]
    Line {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What is wrong and what was expected.
        problem: String,
        /// The line itself.
        text: String,
    },
    /// Something is missing that no line could be blamed for.
    #[error("while reading the configuration {}: {problem}", path.display())]
    Missing {
        /// The main file.
        path: PathBuf,
        /// What is missing.
        problem: String,
    },
}

impl ConfigError {
    /// The public reason.
    pub fn reason(&self) -> Reason {
        Reason::ConfigInvalid
    }
}

/// One file, read and found to be well-formed.
struct Source {
    path: PathBuf,
    text: String,
}

impl Config {
    /// Reads `path` and then `config.d/*.toml` beside it in the order of their names; the later wins, key by key.
    /// Checks add up by name.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let mut sources = vec![Source::read(path)?];
        let drop_ins = path.parent().unwrap_or(Path::new(".")).join("config.d");
        for file in toml_files(&drop_ins)? {
            sources.push(Source::read(&file)?);
        }
        Config::from_sources(&sources, path)
    }

    /// The configuration of this machine; the defaults when there is none.
    pub fn load_default() -> Result<Config, ConfigError> {
        let path = Path::new(CONFIG_PATH);
        if path.exists() {
            return Config::load(path);
        }
        let mut sources = Vec::new();
        for file in toml_files(&path.with_file_name("config.d"))? {
            sources.push(Source::read(&file)?);
        }
        Config::from_sources(&sources, path)
    }

    fn from_sources(sources: &[Source], main: &Path) -> Result<Config, ConfigError> {
        let mut merged = Table::new();
        for source in sources {
            let _checked: Config = source.parse()?;
            let mut table: Table = source.parse()?;
            // The parent of a bare file name is the empty path, which nothing can make absolute.
            let parent = source.path.parent().filter(|parent| !parent.as_os_str().is_empty());
            let folder = std::path::absolute(parent.unwrap_or(Path::new(".")))
                .map_err(|error| ConfigError::Io { path: source.path.clone(), source: error })?;
            PATHS.iter().for_each(|key| absolutise(&mut table, key, &folder));
            absolutise_image(&mut table, &folder);
            merge(&mut merged, table);
        }
        let config = Config::deserialize(Value::Table(merged))
            .map_err(|error| ConfigError::Missing { path: main.to_owned(), problem: error.to_string() })?;
        config.check(sources, main)?;
        Ok(config)
    }

    /// What spans several keys, perhaps of several files.
    fn check(&self, sources: &[Source], main: &Path) -> Result<(), ConfigError> {
        if let Some(os) = &self.trust.policy.os {
            let at = ["trust", "policy", "os", "threshold"];
            if os.keys.is_empty() {
                return Err(blame(
                    sources,
                    main,
                    &at[..3],
                    "`keys` is empty: nothing could be accepted".into(),
                ));
            }
            if os.threshold == 0 || os.threshold > os.keys.len() {
                let problem = format!(
                    "`threshold` is {}: expected 1 to {} (the keys named)",
                    os.threshold,
                    os.keys.len()
                );
                return Err(blame(sources, main, &at, problem));
            }
        }
        if self.machine.kind == MachineKind::Image && self.machine.disk.is_none() {
            let problem = "`kind` is \"image\", so `disk` must name the image file".into();
            return Err(blame(sources, main, &["machine", "kind"], problem));
        }
        if self.boot.backend == BootBackend::Custom && self.boot.custom.command.is_none() {
            let problem =
                "`backend` is \"custom\", so [boot.custom] `command` must name its executable".into();
            return Err(blame(sources, main, &["boot", "backend"], problem));
        }
        if let Some(schedule) = &self.schedule
            && let Err((key, problem)) = schedule.check()
        {
            return Err(blame(sources, main, &["schedule", key], problem));
        }
        if let Err((name, problem)) = super::service::in_order(&self.service) {
            return Err(blame(sources, main, &["service", name.as_str(), "after"], problem));
        }
        Ok(())
    }
}

/// The checks of every `*.toml` in `folder` (`[[check]]` tables); none when the folder is absent.
pub fn checks_in(folder: &Path) -> Result<Vec<Check>, ConfigError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        #[serde(default)]
        check: Vec<Check>,
    }
    let mut checks = Vec::new();
    for path in toml_files(folder)? {
        let file: File = Source::read(&path)?.parse()?;
        checks.extend(file.check);
    }
    Ok(checks)
}

impl Source {
    fn read(path: &Path) -> Result<Source, ConfigError> {
        let failed = |source| ConfigError::Io { path: path.to_owned(), source };
        let mut text = String::new();
        let file = std::fs::File::open(path).map_err(failed)?;
        file.take(CONFIG_BYTES_MAX + 1).read_to_string(&mut text).map_err(failed)?;
        if text.len() as u64 > CONFIG_BYTES_MAX {
            let problem = format!("longer than {CONFIG_BYTES_MAX} bytes");
            return Err(ConfigError::Missing { path: path.to_owned(), problem });
        }
        Ok(Source { path: path.to_owned(), text })
    }

    fn parse<T: serde::de::DeserializeOwned>(&self) -> Result<T, ConfigError> {
        toml::from_str(&self.text).map_err(|error| {
            self.error_at(error.span().map_or(0, |span| span.start), error.message().to_owned())
        })
    }

    fn error_at(&self, offset: usize, problem: String) -> ConfigError {
        let before = self.text.get(..offset).unwrap_or(&self.text);
        let line = before.matches('\n').count() + 1;
        let text = self.text.lines().nth(line - 1).unwrap_or_default().to_owned();
        ConfigError::Line { path: self.path.clone(), line, problem, text }
    }

    /// The offset of a key, if this file holds it.
    fn offset_of(&self, key: &[&str]) -> Option<usize> {
        let (last, folders) = key.split_last()?;
        let mut table = DeTable::parse(&self.text).ok()?.into_inner();
        for folder in folders {
            let (_, value) = table.into_iter().find(|(name, _)| name.get_ref() == folder)?;
            let DeValue::Table(inner) = value.into_inner() else { return None };
            table = inner;
        }
        table.keys().find(|name| name.get_ref() == last).map(|name| name.span().start)
    }
}

/// The error at the last line that sets `key`, since that one counts.
fn blame(sources: &[Source], main: &Path, key: &[&str], problem: String) -> ConfigError {
    sources
        .iter()
        .rev()
        .find_map(|source| Some(source.error_at(source.offset_of(key)?, problem.clone())))
        .unwrap_or(ConfigError::Missing { path: main.to_owned(), problem })
}

fn toml_files(folder: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let failed = |source| ConfigError::Io { path: folder.to_owned(), source };
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Later keys replace earlier ones; tables are merged; checks add up, and one of the same name replaces.
fn merge(into: &mut Table, from: Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Table(old)), Value::Table(new)) => merge(old, new),
            (Some(Value::Array(old)), Value::Array(new)) if key == "check" => {
                let name = |check: &Value| check.get("name").cloned();
                old.retain(|check| !new.iter().any(|newer| name(newer) == name(check)));
                old.extend(new);
            }
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

fn absolutise(table: &mut Table, key: &[&str], folder: &Path) {
    fn visit(value: &mut Value, key: &[&str], folder: &Path) {
        match (value, key) {
            (Value::String(path), []) => *path = folder.join(&*path).to_string_lossy().into_owned(),
            (Value::Array(items), ["*", rest @ ..]) => {
                items.iter_mut().for_each(|item| visit(item, rest, folder));
            }
            (Value::Table(inner), [name, rest @ ..]) => {
                let named = inner.iter_mut().filter(|(key, _)| *name == "*" || key == name);
                named.for_each(|(_, value)| visit(value, rest, folder));
            }
            _ => {}
        }
    }
    if let Some(value) = table.get_mut(key[0]) {
        visit(value, &key[1..], folder);
    }
}

/// `oci:FOLDER` is a path as well.
fn absolutise_image(table: &mut Table, folder: &Path) {
    let services =
        table.get("service").and_then(Value::as_table).map(|all| all.keys().cloned().collect::<Vec<_>>());
    let services = services.unwrap_or_default().into_iter().map(|name| vec!["service".to_owned(), name]);
    for place in services.chain([vec!["source".to_owned()]]) {
        let mut places = place.iter();
        let first = places.next().and_then(|name| table.get_mut(name));
        let image = places.fold(first, |at, name| at?.get_mut(name)).and_then(|at| at.get_mut("image"));
        image.into_iter().for_each(|image| absolutise_layout(image, folder));
    }
    let mirrors = table.get_mut("source").and_then(|source| source.get_mut("mirrors"));
    let mirrors = mirrors.and_then(Value::as_array_mut).into_iter().flatten();
    mirrors.for_each(|mirror| absolutise_layout(mirror, folder));
}

fn absolutise_layout(image: &mut Value, folder: &Path) {
    if let Value::String(image) = image
        && let Some(path) = image.strip_prefix("oci:")
    {
        *image = format!("oci:{}", folder.join(path).display());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::Probe;
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("config.d")).unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    fn load(files: &[(&str, &str)]) -> Result<Config, String> {
        let folder = folder(files);
        let real = std::fs::canonicalize(folder.path()).unwrap();
        Config::load(&real.join("config.toml"))
            .map_err(|error| error.to_string().replace(&*real.to_string_lossy(), "ETC"))
    }

    #[test]
    fn the_documented_example_is_the_defaults() {
        let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/src/config.toml");
        assert_eq!(Config::load(Path::new(example)).unwrap(), Config::default());
    }

    #[test]
    fn every_commented_key_of_the_example_is_a_key() {
        let example = include_str!("../../../docs/src/config.toml");
        let key = |line: &str| {
            line.split([' ', '=']).next().is_some_and(|word| !word.is_empty()) && line.contains(" = ")
        };
        let open: String = example
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(rest) if rest.starts_with('[') || key(rest) && !rest.starts_with("/etc") => rest,
                _ => line,
            })
            .map(|line| format!("{line}\n"))
            .collect();
        let config = load(&[("config.toml", &open)]).unwrap();
        assert_eq!(config.trust.policy.os.unwrap().keys.len(), 2);
        assert_eq!(config.health.checks.len(), 1);
        assert!(config.source.image.is_some() && config.boot.custom.command.is_some());
        assert!(config.source.bandwidth.is_some() && config.source.budget.is_some());
    }

    #[test]
    fn a_later_file_wins_key_by_key_and_checks_add_up_by_name() {
        let check = |name: &str, secs: u8| {
            format!(
                "[[health.check]]\nname = \"{name}\"\nkind = \"tcp\"\naddress = \"a:1\"\ntimeout = \"{secs}s\"\n"
            )
        };
        let config = load(&[
            (
                "config.toml",
                &format!("[boot]\ntries = 2\narmed = \"1m\"\n{}{}", check("one", 1), check("two", 1)),
            ),
            ("config.d/20-b.toml", "[boot]\ntries = 5\n"),
            ("config.d/10-a.toml", &format!("[boot]\ntries = 4\n{}{}", check("two", 7), check("three", 1))),
            ("config.d/ignored.txt", "nonsense"),
        ])
        .unwrap();
        assert_eq!((config.boot.tries, config.boot.armed), (5, Duration::from_secs(60)));
        let checks: Vec<_> =
            config.health.checks.iter().map(|check| (check.name.as_str(), check.timeout.as_secs())).collect();
        assert_eq!(checks, [("one", 1), ("two", 7), ("three", 1)]);
    }

    #[test]
    fn relative_paths_count_from_the_file_that_holds_them() {
        let folder = folder(&[
            (
                "config.toml",
                "[source]\nimage = \"oci:releases:1.0\"\nmirrors = [\"r.example/os\", \"oci:stick\"]\n\
                 [machine]\nstate_dir = \"state\"\n",
            ),
            ("config.d/a.toml", "[trust.policy.os]\nkeys = [\"os.pub\", \"/abs.pub\"]\n"),
        ]);
        let config = Config::load(&folder.path().join("config.toml")).unwrap();
        assert_eq!(config.machine.state_dir, folder.path().join("state"));
        assert_eq!(config.source.image, Some(format!("oci:{}/releases:1.0", folder.path().display())));
        assert_eq!(
            config.source.mirrors,
            ["r.example/os".to_owned(), format!("oci:{}/stick", folder.path().display())]
        );
        let keys = config.trust.policy.os.unwrap().keys;
        assert_eq!(keys, [folder.path().join("config.d/os.pub"), "/abs.pub".into()]);
    }

    #[test]
    fn a_command_is_a_program_or_a_line_for_the_shell() {
        let config = load(&[(
            "config.toml",
            "health.check = [{ name = 'a', kind = 'command', command = 'true && true' },\
             { name = 'b', kind = 'command', command = ['true', 'x'], env = { K = 'v' } }]",
        )])
        .unwrap();
        let argv = |at: usize| match &config.health.checks[at].probe {
            Probe::Command { argv, .. } => argv.join(" "),
            other => panic!("{other:?}"),
        };
        assert_eq!((argv(0).as_str(), argv(1).as_str()), ("/bin/sh -c true && true", "true x"));
    }

    #[test]
    fn an_error_names_file_line_and_what_was_expected() {
        for (text, line, expected) in [
            ("[boot]\n\ntrys = 3\n", 3, "unknown field `trys`, expected one of `backend`, `tries`"),
            ("[bot]\n", 1, "unknown field `bot`, expected one of `source`"),
            ("[boot]\ntries = 10\n", 2, "`tries` is 10: expected 1 to 9"),
            ("[boot]\ntries = \"three\"\n", 2, "invalid type: string \"three\", expected u8"),
            ("[boot]\nretries = 3\n", 2, "expected 0 to 2"),
            ("[boot]\ntrial_deadline = \"soon\"\n", 2, "expected"),
            ("[machine]\nsector_bytes = 520\n", 2, "expected 512 or 4096"),
            ("[machine]\nkind = \"disc\"\n", 2, "unknown variant `disc`, expected `disk` or `image`"),
            ("[machine]\nkind = \"image\"\n", 2, "`disk` must name the image file"),
            ("[boot]\nbackend = \"custom\"\n", 2, "must name its executable"),
            ("[trust.policy.os]\nkeys = ['a']\nthreshold = 2\n", 3, "expected 1 to 1"),
            ("[trust.policy.os]\nkeys = []\n", 1, "`keys` is empty"),
            ("[source\n", 1, "expected"),
            ("[source]\nbandwidth = \"2M\"\n", 2, "no pace: a size above 0 and `/s`"),
            ("[source]\nbudget = \"much\"\n", 2, "no size"),
            ("[source]\nbudget = \"0\"\n", 2, "`budget` is 0"),
            (
                "[[health.check]]\nname = 'a'\nkind = 'tcp'\nurl = 'x'\n",
                1,
                "`url` does not belong to this kind",
            ),
            ("[[health.check]]\nname = 'a'\nkind = 'tcp'\n", 1, "check `a`: missing key `address`"),
            ("[[health.check]]\nname = 'a'\nkind = 'http'\nurl = 'ftp://x'\n", 1, "http:// or https://"),
            (
                "[[health.check]]\nname = 'a'\nkind = 'file'\npath = '/x'\ntimout = '1s'\n",
                5,
                "unknown field `timout`",
            ),
        ] {
            let error = load(&[("config.toml", text)]).unwrap_err();
            assert!(error.contains(&format!("ETC/config.toml, line {line}: ")), "{text}\n{error}");
            assert!(error.contains(expected), "{text}\n{error}");
        }
    }

    #[test]
    fn an_error_across_files_is_found_in_the_file_that_set_the_key_last() {
        let error = load(&[
            ("config.toml", "[trust.policy.os]\nkeys = ['a']\nthreshold = 1\n"),
            ("config.d/site.toml", "# site\n[trust.policy.os]\nthreshold = 3\n"),
        ])
        .unwrap_err();
        assert!(error.contains("ETC/config.d/site.toml, line 3: "), "{error}");
    }

    #[test]
    fn an_absent_or_endless_file_is_an_error() {
        let folder = folder(&[]);
        let path = folder.path().join("config.toml");
        assert!(matches!(Config::load(&path), Err(ConfigError::Io { .. })));
        std::fs::write(&path, "#".repeat(CONFIG_BYTES_MAX as usize + 1)).unwrap();
        assert!(matches!(Config::load(&path), Err(ConfigError::Missing { .. })));
    }
}
