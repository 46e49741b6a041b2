//! A machine and its author in one folder, and what they were told, command by command.
//!
//! Not here: which commands (`golden`), what differs from run to run (`chance`). Rule: commands are typed in the machine's or
//! the author's folder with relative paths, so that no text depends on where the test runs.

use std::process::{Command, Output};

use switchback_bootloader::esp::{EspDir as _, FatEsp};
use switchback_partitions::device::disk::Disk as _;
use switchback_partitions::slot::Slot;
use switchback_tests::lab::tools;
use switchback_tests::machine::{Machine, text};
use switchback_tests::scene::{SMALL_DISK, Scene};
use switchback_tests::small_release::{SmallRelease, build_arguments};
use switchback_tests::story::ROOT_BYTES;

use crate::WIDTHS;
use crate::chance::{Digests, without_chance};

/// Tables and the doctor's report are never narrower than this.
const NARROWEST: usize = 80;
/// The verbs in whose answers a table may stand.
const TABLES: [&str; 6] = ["history", "health", "logs", "quarantine", "boot-check", "doctor"];

/// Types, and writes down.
pub struct Teller {
    scene: Scene,
    pub machine: Machine,
    digests: Digests,
    page: String,
}

impl Teller {
    pub fn new() -> Teller {
        let scene = Scene::new().unwrap();
        let source = "oci:../author/images:stable";
        let machine = scene.machine(source, &["../author/os.pub".as_ref()], "").unwrap();
        Teller { scene, machine, digests: Digests::default(), page: String::new() }
    }

    /// What was written down since the last page.
    pub fn page(&mut self) -> String {
        std::mem::take(&mut self.page)
    }

    /// Types on the machine; where it holds a table, at every width.
    pub fn machine(&mut self, typed: &[&str]) {
        let folder = self.machine.config().parent().unwrap().to_path_buf();
        let config = if typed.contains(&"--config") { [].as_slice() } else { &["--config", "config.toml"] };
        let ask = |columns: usize| {
            let mut command = Command::new(tools::switchback().unwrap());
            command.current_dir(&folder).args(config).args(typed).env("COLUMNS", columns.to_string());
            command.env("SWITCHBACK_PROGRESS", "none").output().unwrap()
        };
        let looks = TABLES.iter().any(|verb| typed.contains(verb)) && !typed.contains(&"--json");
        // `boot-check` may be asked once only: its answer is the start's, not the question's.
        if !looks || typed.contains(&"boot-check") || typed.contains(&"release") {
            let output = ask(NARROWEST);
            self.write_down(typed, &output);
            return;
        }
        self.page.push_str(&format!("$ switchback {}\n", typed.join(" ")));
        let answers = WIDTHS.map(|columns| (columns, ask(columns)));
        for (columns, output) in &answers {
            fits(typed, &text(&output.stdout), (*columns).max(NARROWEST));
        }
        let all = answers.each_ref().map(|(_, output)| self.plain(output));
        if all.iter().all(|answer| *answer == all[0]) {
            self.page.push_str(&all[0]);
        } else {
            for ((columns, _), answer) in answers.iter().zip(&all) {
                self.page.push_str(&format!("--- {columns} columns\n{answer}"));
            }
        }
        self.page.push('\n');
    }

    /// Types a mistake on the machine, with nothing in the environment: what is set there counts as typed.
    pub fn mistyped(&mut self, typed: &[&str]) {
        let mut command = Command::new(tools::switchback().unwrap());
        let output =
            command.args(typed).env_remove("SWITCHBACK_PROGRESS").env("COLUMNS", "80").output().unwrap();
        self.write_down(typed, &output);
    }

    /// Types at the author's desk.
    pub fn author(&mut self, typed: &[&str]) {
        let output = self.scene.desk.command(typed).output().unwrap();
        self.write_down(typed, &output);
    }

    /// Builds a release and gives its digest a name.
    pub fn build(&mut self, version: &str, healthy: bool) {
        let release = SmallRelease { version, healthy, root_bytes: ROOT_BYTES };
        let partition = format!("root={}", self.scene.desk.root_image(&release).unwrap());
        let typed = build_arguments(version, &partition);
        let output = self.scene.desk.command(&typed).output().unwrap();
        let found = self.scene.desk.run(&["image", "inspect", &format!("oci:images:{version}")]).unwrap();
        let sign = version.replace('.', "");
        self.digests.name(found["digest"].as_str().unwrap(), &sign);
        self.digests.name(found["slots"][0]["verity_root"].as_str().unwrap(), &format!("e{sign}"));
        self.write_down(&typed, &output);
    }

    /// Builds, signs and publishes a release; nobody is told.
    pub fn publish(&mut self, version: &str, healthy: bool) {
        let page = self.page.len();
        self.build(version, healthy);
        self.page.truncate(page);
        self.scene.desk.sign(&self.scene.desk.reference(version), &[]).unwrap();
        self.push_stable(version);
    }

    /// Moves the tag `stable`; nobody is told.
    pub fn push_stable(&mut self, version: &str) {
        self.scene.desk.publish(version).unwrap();
    }

    /// Provisions the machine's disk from 1.0.
    pub fn provision(&mut self, more: &[&str]) {
        let from = ["provision", "../machine/disk.img", "--release", "oci:images:1.0", "--trust", "os.pub"];
        let typed = [&from[..], &["--loader", "loader.efi"], &SMALL_DISK, more].concat();
        self.author(&typed);
    }

    /// Lets the machine come to rest in `slot`, and writes down what `boot-check` said at each start.
    pub fn power_on(&mut self, slot: Slot) {
        let boot = self.machine.power_on().unwrap();
        assert_eq!(boot.slot, slot, "{:?}", boot.said);
        for said in boot.said {
            self.page.push_str(&format!("(a start)\n{}\n", self.without_chance(&said)));
        }
    }

    /// The file that `apply` is given.
    pub fn desired(&mut self, content: &str) {
        let path = self.machine.config().with_file_name("desired.toml");
        std::fs::write(path, content).unwrap();
        self.page.push_str(&format!("$ cat desired.toml\n{content}\n"));
    }

    /// Changes the configuration.
    pub fn configure(&mut self, change: impl Fn(&str) -> String) {
        let text = std::fs::read_to_string(self.machine.config()).unwrap();
        let changed = change(&text);
        assert_ne!(text, changed, "nothing of the configuration was changed");
        std::fs::write(self.machine.config(), changed).unwrap();
    }

    /// One bit of the kernel of a slot.
    pub fn damage(&mut self, slot: Slot) {
        let layout = self.machine.layout().unwrap();
        let esp = FatEsp::new(self.machine.image().unwrap().partition(&layout.esp).unwrap());
        let file = format!("switchback/{slot}/linux");
        let mut bytes = esp.read(&file, 16 << 20).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        esp.write_tmp(&file, &mut &bytes[..]).unwrap();
    }

    fn write_down(&mut self, typed: &[&str], output: &Output) {
        let said = self.plain(output);
        self.page.push_str(&format!("$ switchback {}\n{said}\n", typed.join(" ")));
    }

    /// What was printed: standard error first, marked, then standard output and an exit code that is not 0.
    fn plain(&self, output: &Output) -> String {
        let code = output.status.code().unwrap();
        let (told, said) = (text(&output.stderr), text(&output.stdout));
        for line in told.lines().chain(said.lines()) {
            assert_eq!(line, line.trim_end(), "blanks at the end of a line");
        }
        let marked = told.lines().map(|line| {
            format!("2> {line}").trim_end().to_string()
                + "
"
        });
        let mut said = marked.collect::<String>() + &said;
        assert!(said.ends_with('\n'), "the last line has no end: {said}");
        assert!(!said.contains('\u{1b}'), "an escape sequence where there is no terminal: {said:?}");
        if code != 0 {
            said.push_str(&format!("# exit code {code}\n"));
        }
        self.without_chance(&said)
    }

    fn without_chance(&self, said: &str) -> String {
        let folder = self.scene.folder().display().to_string();
        without_chance(&said.replace(&folder, "/srv"), &self.digests)
    }
}

/// A table's lines begin with one blank; the doctor's report is one table, in which a path is never cut.
fn fits(typed: &[&str], said: &str, columns: usize) {
    let doctor = typed.contains(&"doctor");
    let table = |line: &&str| doctor || (line.starts_with(' ') && !line.starts_with("  "));
    for line in said.lines().filter(table) {
        let one_word = doctor && line.chars().skip(29).filter(|c| c.is_whitespace()).count() == 0;
        let width = line.chars().count();
        assert!(width <= columns || one_word, "{typed:?}: {width} columns in {columns}: {line}");
    }
}
