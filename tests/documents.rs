//! What the documents tell people to type is typed here, and what they show is what the program prints.
//!
//! Not here: links and contents of the book (`tidy`). A block marked ```` ```sh,tested ```` is run, one marked
//! ```` ```console,tested ```` is compared with the real output; `UPDATE_GOLDEN=1` writes the real output into the page.
//! Rule: a block is run as a reader would run it, by the real program, without root; nothing is prepared but what the
//! page itself says.

#![expect(clippy::expect_used, reason = "a test's own machinery: failing loudly is its job")]

#[path = "documents/help.rs"]
mod help;
#[path = "documents/transcript.rs"]
mod transcript;

use std::process::{Command, Stdio};

use switchback_tests::lab::tools;
use switchback_tests::page::{Page, same};
use switchback_tests::reader::Reader;

use self::help::Help;
use self::transcript::Transcript;

/// The page whose console blocks are one story, told on one machine.
const TRANSCRIPT: &str = "docs/src/operate.md";
const PICTURE: &str = "docs/src/images/demo.svg";

#[test]
fn what_readme_says_to_type_works() {
    run_blocks(&Page::read("README.md"));
}

#[test]
fn what_get_started_says_to_type_works() {
    run_blocks(&Page::read("docs/src/get-started.md"));
}

#[test]
fn what_the_recipes_say_to_type_works() {
    for program in ["buildah", "mmdebstrap", "fakeroot"] {
        tools::program(program, program).expect(program);
    }
    run_blocks(&Page::read("docs/src/recipes.md"));
}

#[test]
fn operate_shows_what_the_program_prints() {
    let page = Page::read(TRANSCRIPT);
    let blocks = page.blocks().into_iter().filter(|block| block.info == "console,tested");
    let mut transcript = Transcript::begin();
    let mut real = page.lines.clone();
    let (mut differences, mut commands) = (Vec::new(), 0);
    for block in blocks {
        for directive in &block.directives {
            transcript.direct(directive);
        }
        let output = transcript.play(&block.lines);
        commands += output.iter().filter(|line| line.starts_with("$ ")).count();
        if !same(&output.join("\n"), &block.lines.join("\n")) {
            differences.push(format!("{TRANSCRIPT}:{}: prints\n{}", block.line, output.join("\n")));
        }
        // One element of `real` per line of the page, so that the blocks after this one keep their places.
        real[block.first..block.first + block.lines.len()].fill(String::from("\0"));
        real[block.first] = output.join("\n");
    }
    assert!(commands > 10, "{TRANSCRIPT} shows hardly any command");
    if differences.is_empty() {
        return;
    }
    assert!(
        std::env::var_os("UPDATE_GOLDEN").is_some(),
        "{}\nUPDATE_GOLDEN=1 writes it into the page",
        differences.join("\n")
    );
    let text: Vec<&str> = real.iter().map(String::as_str).filter(|line| *line != "\0").collect();
    std::fs::write(tools::repository().join(TRANSCRIPT), text.join("\n") + "\n")
        .expect("the page is written");
}

#[test]
fn the_picture_shows_the_demo() {
    let demo = Command::new(env!("CARGO_BIN_EXE_demo"))
        .arg(tools::switchback().expect("the program is built"))
        .output()
        .expect("the demo starts");
    let text = String::from_utf8_lossy(&demo.stdout).into_owned();
    assert!(demo.status.success(), "{text}{}", String::from_utf8_lossy(&demo.stderr));
    let mut draw = Command::new(tools::repository().join("tests/tools/demo-picture"));
    let mut draw = draw.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the script starts");
    let mut stdin = draw.stdin.take().expect("a pipe");
    std::io::Write::write_all(&mut stdin, text.as_bytes()).expect("the script reads");
    drop(stdin);
    let picture = draw.wait_with_output().expect("the script ends");
    assert!(picture.status.success(), "tests/tools/demo-picture failed");
    let picture = String::from_utf8(picture.stdout).expect("a picture is text");
    assert!(picture.matches("<text").count() > 20, "the picture is empty: the demo's words changed");
    let path = tools::repository().join(PICTURE);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &picture).expect("the picture is written");
    }
    let kept = std::fs::read_to_string(&path).expect(PICTURE);
    assert!(
        same(&said(&kept), &said(&picture)),
        "{PICTURE} is not what the demo says: UPDATE_GOLDEN=1 redraws it"
    );
}

/// The words of a picture.
fn said(picture: &str) -> String {
    let texts = picture.lines().filter_map(|line| line.strip_prefix("<text"));
    texts.filter_map(|line| line.split_once('>')).map(|(_, words)| words.replace("</text>", "\n")).collect()
}

#[test]
fn every_verb_and_flag_in_the_documents_exists() {
    let mut help = Help::new(tools::switchback().expect("the program is built"));
    let mut findings = Vec::new();
    let mut checked = 0;
    for page in Page::all() {
        for (line, command) in page.commands() {
            checked += 1;
            findings.extend(help.look_up(&command).err().map(|e| format!("{}:{line}: {e}", page.path)));
        }
        // Flags alone, in the pages that speak of nobody else's.
        if ["README.md", TRANSCRIPT, "docs/src/glossary.md"].contains(&page.path.as_str()) {
            for (line, flag) in page.flags() {
                checked += 1;
                if !help.is_flag(&flag) {
                    findings.push(format!("{}:{line}: no verb has {flag}", page.path));
                }
            }
        }
    }
    assert!(checked > 60, "only {checked} commands found in the documents");
    assert!(findings.is_empty(), "\n{}", findings.join("\n"));
}

#[test]
fn every_help_says_what_is_changed_what_is_left_alone_and_what_comes_next() {
    let mut help = Help::new(tools::switchback().expect("the program is built"));
    let missing = help.shortcomings();
    assert!(missing.is_empty(), "\n{}", missing.join("\n"));
    let examples = help.examples();
    assert!(examples.len() > 20, "{examples:?}");
    let wrong: Vec<String> = examples.iter().filter_map(|example| help.look_up(example).err()).collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn every_make_target_in_the_documents_exists() {
    let makefile = std::fs::read_to_string(tools::repository().join("Makefile")).expect("Makefile");
    let has = |target: &str| makefile.lines().any(|line| line.starts_with(&format!("{target}:")));
    let mut findings = Vec::new();
    for page in Page::all() {
        for (line, targets) in page.targets() {
            let missing = targets.into_iter().filter(|target| !has(target));
            findings.extend(missing.map(|target| format!("{}:{line}: no target {target}", page.path)));
        }
    }
    assert!(findings.is_empty(), "\n{}", findings.join("\n"));
}

/// Runs a page's `sh,tested` blocks as one script, in an empty folder.
fn run_blocks(page: &Page) {
    let blocks = page.blocks();
    let tested = blocks.iter().filter(|block| block.info == "sh,tested");
    let script: String = tested.map(|block| block.script(&page.path)).collect();
    assert!(script.lines().count() > 4, "{} has no tested blocks", page.path);
    let typed = Reader::new().expect("a desk").types(&script);
    typed.unwrap_or_else(|error| panic!("{}: {error:#}", page.path));
}
