//! What the program makes of a machine's health and of how its starts ended, on a machine in a file.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use switchback_partitions::slot::Slot;
use switchback_tests::lab::registry::Registry;
use switchback_tests::machine::Machine;
use switchback_tests::scene::{SMALL_DISK, Scene};

const ROOT_BYTES: u64 = 8 << 20;

/// The built-in check's outcome and words; the machine's root brings no other.
fn built_in(machine: &Machine) -> (i32, String) {
    let answer = machine.ask(&["health"]).unwrap();
    let checks = answer.said["checks"].as_array().unwrap();
    assert_eq!((checks.len(), &checks[0]["name"]), (1, &"can-update-again".into()), "{}", answer.said);
    (answer.code, checks[0]["detail"].as_str().unwrap_or_default().to_owned())
}

fn well() -> (i32, String) {
    (0, String::new())
}

#[test]
fn a_machine_without_checks_is_well_when_it_can_take_a_release_as_it_could_before() {
    let scene = Scene::new().unwrap();
    let registry = Registry::start(&scene.folder().join("registry")).unwrap();
    let host = registry.host();
    let plain = ["--plain-http", &host, "--with-signatures", "--tag", "stable"];
    for version in ["1.0", "1.1"] {
        scene.release(version, true, ROOT_BYTES).unwrap();
        scene.desk.push(version, &format!("{host}/os"), &plain).unwrap();
    }
    let key = scene.desk.path("os.pub");
    let more = format!("plain_http = [\"{host}\"]\n[health]\ndeadline = \"4s\"");
    let source = format!("{host}/os:stable");
    let mut machine = scene.machine(&source, &[&key], &more).unwrap();
    scene.provision(&machine, &scene.desk.reference("1.0"), &key, &SMALL_DISK).unwrap();
    assert_eq!(machine.start().unwrap(), Some(Slot::A));
    let root = machine.state_dir().with_file_name("root");
    std::fs::remove_dir_all(root.join("usr/lib/switchback/health.d")).unwrap();
    assert_eq!(built_in(&machine), well());
    let configured = std::fs::read_to_string(machine.config()).unwrap();
    let with = |from: &str, to: &str| {
        assert!(configured.contains(from), "{configured}");
        std::fs::write(machine.config(), configured.replace(from, to)).unwrap();
    };

    // A registry that never answered is not missed.
    with(&source, "127.0.0.1:1/os:stable");
    assert_eq!(built_in(&machine), well());
    // Looking is no proof; an update is.
    with("", "");
    assert_eq!(machine.ask(&["check"]).unwrap().code, 0);
    assert!(!machine.state_dir().join("registry-reached").exists());
    assert_eq!(machine.ask(&["update", "--stage"]).unwrap().said["outcome"], "staged");
    assert_eq!(built_in(&machine), well());
    // It answers that the tag is gone: nothing that this release could be blamed for.
    with(&source, &format!("{host}/os:gone"));
    assert_eq!(built_in(&machine), well());

    with("", "");
    drop(registry);
    let (code, said) = built_in(&machine);
    assert_eq!(code, 50);
    let expected = format!("{host}/os gave this machine a release before, and cannot be used now: ");
    assert!(said.starts_with(&expected) && said.contains("refused"), "{said}");
    // Another registry, or a folder, was not there before.
    for other in
        ["127.0.0.1:1/os:stable".to_owned(), format!("oci:{}:1.0", scene.folder().join("no").display())]
    {
        with(&source, &other);
        assert_eq!(built_in(&machine), well(), "{other}");
    }

    // What every update needs.
    with(&key.display().to_string(), "/no/such/key.pub");
    let (code, said) = built_in(&machine);
    assert!(code == 50 && said.starts_with("no release could be accepted: while reading the key"), "{said}");
    with(&source, "127.0.0.1:1/os:stable");
    std::fs::create_dir(machine.state_dir().join("can-write.new")).unwrap();
    let (code, said) = built_in(&machine);
    assert!(code == 50 && said.starts_with("the state folder cannot be written"), "{said}");
}
