//! What the program says, word for word: one life of a machine, and every answer of every verb in it.
//!
//! Not here: whether what it says is true (`update`, `verbs`, `doctor`, `refused`), what the book shows (`documents`).
//! Rule: an answer is compared with the file kept in `tests/golden`; `UPDATE_GOLDEN=1` rewrites the files, so that a change
//! of words is seen and read before it lands.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

#[path = "golden/chance.rs"]
mod chance;
#[path = "golden/kept.rs"]
mod kept;
#[path = "golden/teller.rs"]
mod teller;

use switchback_partitions::slot::Slot;

use crate::kept::Kept;
use crate::teller::Teller;

/// Narrower than any terminal, what every terminal has, and a wide one.
const WIDTHS: [usize; 3] = [60, 80, 140];

#[test]
fn every_answer_in_the_life_of_a_machine_is_the_one_that_is_kept() {
    let mut kept = Kept::new();
    let mut teller = Teller::new();
    author(&mut teller, &mut kept);
    update(&mut teller, &mut kept);
    way_back(&mut teller, &mut kept);
    errors(&mut teller, &mut kept);
    kept.finish();
}

/// What the author of an image reads, up to a disk with 1.0 in slot a.
fn author(teller: &mut Teller, kept: &mut Kept) {
    teller.author(&["image", "keygen", "guest"]);
    teller.author(&["image", "keygen", "guest"]);
    teller.build("1.0", true);
    teller.author(&["image", "inspect", "oci:images:1.0"]);
    teller.author(&["image", "sign", "oci:images:1.0", "--key", "os.key"]);
    teller.author(&["image", "push", "oci:images:1.0", "oci:images", "--tag", "stable"]);
    teller.author(&["image", "inspect", "oci:images:1.0"]);
    teller.author(&["image", "inspect", "oci:images:1.0", "--json"]);
    kept.page("author", teller.page());
    teller.provision(&["--dry-run"]);
    teller.provision(&[]);
    teller.provision(&[]);
    teller.provision(&["--force", "--json"]);
    kept.page("provision", teller.page());
}

/// 1.1 comes, and is well.
fn update(teller: &mut Teller, kept: &mut Kept) {
    assert_eq!(teller.machine.power_on().unwrap().slot, Slot::A);
    for verb in [&["status"][..], &["check"], &["history"], &["logs"], &["quarantine", "list"], &["verify"]] {
        teller.machine(verb);
    }
    teller.machine(&["update"]);
    teller.machine(&["rollback"]);
    teller.machine(&["boot-check"]);
    kept.page("fresh", teller.page());
    for verb in [&["status"][..], &["check"], &["history"], &["logs"], &["quarantine", "list"], &["verify"]] {
        teller.machine(&[verb, &["--json"]].concat());
    }
    teller.machine(&["update", "--json"]);
    teller.machine(&["boot-check", "--json"]);
    kept.page("fresh-json", teller.page());

    teller.publish("1.1", true);
    teller.machine(&["check"]);
    teller.machine(&["check", "--to", "1.0"]);
    teller.machine(&["check", "--json"]);
    teller.machine(&["update", "--dry-run"]);
    teller.machine(&["update", "--dry-run", "--json"]);
    teller.machine(&["update", "--stage"]);
    teller.machine(&["status"]);
    kept.page("staged", teller.page());
    teller.machine(&["--detailed-exitcode", "update"]);
    teller.machine(&["--detailed-exitcode", "update"]);
    teller.machine(&["status"]);
    teller.machine(&["status", "--json"]);
    teller.machine(&["rollback", "--dry-run"]);
    teller.machine(&["rollback"]);
    teller.machine(&["status"]);
    teller.machine(&["update", "--reboot"]);
    kept.page("armed", teller.page());

    assert_eq!(teller.machine.start().unwrap(), Some(Slot::B));
    teller.machine(&["status"]);
    teller.machine(&["update"]);
    teller.machine(&["rollback", "--dry-run"]);
    teller.machine(&["boot-check"]);
    teller.machine(&["status"]);
    for verb in ["history", "health", "verify"] {
        teller.machine(&[verb]);
    }
    teller.machine(&["health", "--json"]);
    kept.page("confirmed", teller.page());
}

/// Back by hand, and back by itself.
fn way_back(teller: &mut Teller, kept: &mut Kept) {
    teller.machine(&["rollback", "--dry-run"]);
    teller.machine(&["rollback", "--reboot"]);
    teller.power_on(Slot::A);
    teller.machine(&["status"]);
    teller.machine(&["update"]);
    teller.machine(&["history"]);
    kept.page("rolled-back", teller.page());

    teller.publish("1.2", false);
    teller.machine(&["update", "--reboot"]);
    teller.power_on(Slot::A);
    for verb in [&["status"][..], &["history"], &["logs"], &["logs", "9.9"], &["quarantine", "list"]] {
        teller.machine(verb);
    }
    teller.machine(&["update"]);
    teller.machine(&["rollback"]);
    kept.page("returned", teller.page());
    for verb in [&["status"][..], &["history"], &["logs"], &["quarantine", "list"], &["update"]] {
        teller.machine(&[verb, &["--json"]].concat());
    }
    kept.page("returned-json", teller.page());

    teller.machine(&["quarantine", "release", "9.9"]);
    teller.machine(&["quarantine", "release", "1.2"]);
    teller.machine(&["quarantine", "list"]);
    teller.machine(&["history"]);
    teller.machine(&["history", "--limit", "1", "--json"]);
    kept.page("released", teller.page());

    teller.machine(&["doctor"]);
    teller.machine(&["doctor", "--offline", "--json"]);
    kept.page("doctor", teller.page());

    teller.desired("release = \"1.0\"\n");
    teller.machine(&["--detailed-exitcode", "apply", "desired.toml"]);
    teller.desired("release = \"1.1\"\n");
    teller.machine(&["apply", "desired.toml", "--dry-run"]);
    teller.machine(&["--detailed-exitcode", "apply", "desired.toml"]);
    teller.machine(&["--detailed-exitcode", "apply", "desired.toml"]);
    teller.machine(&["apply", "desired.toml", "--json"]);
    teller.desired("release = \"1.1\"\nreboto = true\n");
    teller.machine(&["apply", "desired.toml"]);
    teller.machine(&["apply", "absent.toml"]);
    kept.page("apply", teller.page());

    teller.damage(Slot::A);
    teller.machine(&["verify"]);
    teller.machine(&["verify", "--json"]);
    kept.page("damaged", teller.page());
}

/// What goes wrong most often.
fn errors(teller: &mut Teller, kept: &mut Kept) {
    for typed in [
        &["updte"][..],
        &["update", "--stage", "--reboot"],
        &["update", "--to", "sha256:12"],
        &["verify", "c"],
        &["quarantine"],
        &["quarantine", "release"],
        &["init"],
    ] {
        teller.mistyped(typed);
    }
    kept.page("usage", teller.page());

    teller.build("1.3", true);
    let _ = teller.page();
    teller.push_stable("1.3");
    teller.machine(&["update"]);
    teller.machine(&["update", "--json"]);
    teller.machine(&["update", "--to", "absent"]);
    teller.machine(&["update", "--to", "127.0.0.1:1/os:stable"]);
    teller.configure(|text| text.replace("image = ", "imgae = "));
    teller.machine(&["status"]);
    teller.configure(|text| text.replace("imgae = ", "# image = "));
    teller.machine(&["update"]);
    teller.machine(&["--config", "absent.toml", "status"]);
    teller.configure(|text| text.replace("disk.img", "absent.img"));
    teller.machine(&["status"]);
    teller.machine(&["doctor", "--offline"]);
    kept.page("refused", teller.page());
}
