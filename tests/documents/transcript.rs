//! A machine in a file on which the commands of a page are typed one after the other.
//!
//! Not here: what the page should say. What happens between two commands and is not typed on the machine stands in the
//! page as a comment: `publish VERSION`, `publish VERSION unwell`, `power on`, `write FILE LINE`. Rule: the output is the program's own;
//! only the name of the temporary folder is replaced.

use std::collections::VecDeque;
use std::path::PathBuf;

use switchback_tests::lab::tools;
use switchback_tests::machine::{Machine, text};
use switchback_tests::small_release::{Desk, SmallRelease};
use tempfile::TempDir;

const ROOT_BYTES: u64 = 24 << 20;
/// Stands for the temporary folder in what is shown.
const SHOWN: &str = "/srv";

/// The machine, its author, and what it said unasked.
pub struct Transcript {
    folder: TempDir,
    desk: Desk,
    machine: Machine,
    /// What `boot-check` said when the system called it, not shown yet.
    said: VecDeque<String>,
    code: i32,
}

impl Transcript {
    /// A machine that runs 1.0 and follows the tag `stable`, on which 1.0 lies.
    pub fn begin() -> Transcript {
        let folder = tempfile::tempdir().expect("a folder");
        let switchback = tools::switchback().expect("the program is built");
        let desk = Desk::new(&folder.path().join("author"), &switchback).expect("a desk");
        let settings = format!(
            "[source]\nimage = \"{}\"\n[trust.policy.os]\nkeys = [\"{}\"]\n",
            desk.reference("stable"),
            desk.path("os.pub").display()
        );
        let machine =
            Machine::new(&folder.path().join("machine"), &switchback, &settings).expect("a machine");
        let mut transcript = Transcript { folder, desk, machine, said: VecDeque::new(), code: 0 };
        transcript.author(&["image", "keygen", "os"]);
        transcript.publish("1.0", true);
        let disk = transcript.machine.disk().display().to_string();
        let (release, loader) = (transcript.desk.reference("1.0"), transcript.desk.path("loader.efi"));
        let sizes = ["--size", "512M", "--slot-size", "64M"];
        let from = ["--release", &release, "--trust", "os.pub", "--loader", &loader.display().to_string()];
        transcript.author(&[&["provision", disk.as_str()][..], &sizes, &from].concat());
        transcript.machine.power_on().expect("the first start");
        transcript
    }

    /// Does what a comment of the page says.
    pub fn direct(&mut self, directive: &str) {
        match directive.split_whitespace().collect::<Vec<_>>()[..] {
            ["publish", version] => self.publish(version, true),
            ["publish", version, "unwell"] => self.publish(version, false),
            ["write", file, ref words @ ..] => {
                std::fs::write(self.path(file), words.join(" ") + "\n").expect("the file is written");
            }
            ["power", "on"] => self.said.extend(self.machine.power_on().expect("the machine starts").said),
            _ => panic!("what does `<!-- {directive} -->` mean?"),
        }
    }

    /// Types the commands of a block; gives the block as it should be.
    pub fn play(&mut self, block: &[String]) -> Vec<String> {
        let commands: Vec<&str> = block.iter().filter_map(|line| line.strip_prefix("$ ")).collect();
        let mut out = Vec::new();
        for command in commands {
            out.push(format!("$ {command}"));
            out.extend(self.type_in(command).trim_end().lines().map(|line| line.trim_end().to_string()));
        }
        out
    }

    fn type_in(&mut self, command: &str) -> String {
        if command == "echo $?" {
            return self.code.to_string();
        }
        if let Some(file) = command.strip_prefix("cat ") {
            return std::fs::read_to_string(self.path(file)).expect(file);
        }
        let words: Vec<&str> = command.split_whitespace().collect();
        assert_eq!(words[0], "switchback", "{command}: only switchback, `cat` and `echo $?` are typed here");
        if words == ["switchback", "boot-check"]
            && let Some(said) = self.said.pop_front()
        {
            return self.shown(&said);
        }
        let folder = self.path("");
        let mut typed = self.machine.command(&words[1..]);
        let output = typed.current_dir(folder).output().expect("the program starts");
        self.code = output.status.code().expect("the program ends by itself");
        self.shown(&format!("{}{}", text(&output.stderr), text(&output.stdout)))
    }

    /// A file in the folder in which the commands are typed.
    fn path(&self, file: &str) -> PathBuf {
        self.machine.config().with_file_name(file)
    }

    fn shown(&self, said: &str) -> String {
        said.replace(&self.folder.path().display().to_string(), SHOWN)
    }

    fn publish(&self, version: &str, healthy: bool) {
        let release = SmallRelease { version, healthy, root_bytes: ROOT_BYTES };
        let partition = format!("root={}", self.desk.root_image(&release).expect("a root"));
        let from = ["--partition", &partition, "--kernel", "vmlinuz", "--initrd", "initrd"];
        let name = ["--product", "demo", "--name", "demo-os", "--version", version];
        let rest = ["--level", "3", "--output", "oci:images"];
        self.author(&[&["image", "build"][..], &from, &name, &rest].concat());
        let built = format!("oci:images:{version}");
        self.author(&["image", "sign", &built, "--key", "os.key"]);
        self.author(&["image", "push", &built, "oci:images", "--tag", "stable"]);
    }

    fn author(&self, arguments: &[&str]) {
        let output = self.desk.command(arguments).output().expect("the program starts");
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    }
}
