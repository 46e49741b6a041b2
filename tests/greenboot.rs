//! greenboot's own stock checks, unchanged, on a machine in a file: they are executed, and their exit codes decide.
//!
//! Rule: the scripts are those that the crate `greenboot` ships; what they need of the host is made in a mount namespace,
//! so that the answer is the same on every host and none is changed.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use switchback_partitions::slot::Slot;
use switchback_tests::lab::registry::Registry;
use switchback_tests::lab::tools;
use switchback_tests::machine::{Answer, Machine};
use switchback_tests::scene::{SMALL_DISK, Scene};

const ROOT_BYTES: u64 = 8 << 20;
const STOCK: [&str; 3] = [
    "check/required.d/01_repository_dns_check.sh",
    "check/required.d/02_watchdog.sh",
    "check/wanted.d/01_update_platforms_check.sh",
];
/// The host's `/etc` without what the scripts look at; `$1` is run in it, then the rest as a program.
const NAMESPACE: &str = r#"set -e
old=$(mktemp -d)
mount --bind /etc "$old"
mount -t tmpfs etc /etc
for file in "$old"/*; do
    case ${file##*/} in ostree | greenboot) ;; *) ln -s "$file" /etc/ ;; esac
done
eval "$1"
shift
exec "$@""#;

/// The program on this machine, on a host whose `/etc` is prepared by shell commands.
fn ask_on(machine: &Machine, etc: &str, network: bool, arguments: &[&str]) -> Answer {
    let inner = machine.command(arguments);
    let mut outer = Command::new(tools::program("unshare", "util-linux").unwrap());
    outer.args(if network { &["-rm"][..] } else { &["-rmn"] });
    outer.args(["--", "sh", "-c", NAMESPACE, "sh", etc]).arg(inner.get_program()).args(inner.get_args());
    Answer::of(&outer.env("SWITCHBACK_PROGRESS", "none").arg("--json").output().unwrap()).unwrap()
}

fn results(report: &Value) -> Vec<[String; 3]> {
    let text = |check: &Value, key: &str| check[key].as_str().unwrap_or_default().to_owned();
    let checks = report["checks"].as_array().unwrap();
    checks.iter().map(|check| ["name", "outcome", "detail"].map(|key| text(check, key))).collect()
}

/// Puts greenboot's scripts and ours into the root that `version` will be built from.
fn bring_scripts(scene: &Scene, version: &str) {
    for tool in ["curl", "jq"] {
        tools::program(tool, tool).unwrap();
    }
    let crate_folder = tools::fetched("greenboot").unwrap();
    let to = scene.desk.path(&format!("root-{version}")).join("usr/lib/greenboot");
    for script in STOCK {
        let file = to.join(script);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::copy(crate_folder.join("usr/lib/greenboot").join(script), file).unwrap();
    }
    for (path, text) in [
        ("green.d/tell.sh", "echo \"$SWITCHBACK_VERSION in $SWITCHBACK_SLOT\" > ../green\n"),
        ("red.d/tell.sh", "test ! -e ../state/reboot-requested; echo \"before the restart: $?\" > ../red\n"),
    ] {
        std::fs::create_dir_all(to.join(path).parent().unwrap()).unwrap();
        std::fs::write(to.join(path), text).unwrap();
    }
}

fn machine_with_1_0() -> (Scene, Machine) {
    let scene = Scene::new().unwrap();
    bring_scripts(&scene, "1.0");
    scene.release("1.0", true, ROOT_BYTES).unwrap();
    let key = scene.desk.path("os.pub");
    let mut machine = scene.machine(&scene.desk.reference("stable"), &[&key], "").unwrap();
    scene.provision(&machine, &scene.desk.reference("1.0"), &key, &SMALL_DISK).unwrap();
    assert_eq!(machine.start().unwrap(), Some(Slot::A));
    (scene, machine)
}

fn read(machine: &Machine, name: &str) -> Option<String> {
    std::fs::read_to_string(machine.state_dir().with_file_name(name)).ok()
}

fn unchanged(machine: &Machine) {
    let (source, root) = (tools::fetched("greenboot").unwrap(), machine.state_dir().with_file_name("root"));
    for script in STOCK {
        let path = Path::new("usr/lib/greenboot").join(script);
        let pair = [source.join(&path), root.join(&path)].map(|file| std::fs::read(file).unwrap());
        assert_eq!(pair[0], pair[1], "{script}");
    }
}

#[test]
fn greenboots_stock_checks_are_executed_unchanged_and_judged_by_their_exit_code() {
    let (scene, machine) = machine_with_1_0();
    unchanged(&machine);
    let [dns, watchdog, platforms] = [
        "required.d/01_repository_dns_check.sh",
        "required.d/02_watchdog.sh",
        "wanted.d/01_update_platforms_check.sh",
    ];
    let absent = "exit status 1: /etc/ostree/remotes.d doesn't exist";

    // A host that is no ostree system: the required script fails the machine, the wanted one says the same and does not.
    let answer = ask_on(&machine, "", true, &["health"]);
    assert_eq!(answer.code, 50, "{}", answer.said);
    let web = ["web", "passed", ""];
    assert_eq!(
        results(&answer.said),
        [web, [dns, "failed", absent], [watchdog, "passed", ""], [platforms, "wanted-failed", absent]]
    );

    // No remote: the one skips itself with success, the other calls it a mistake; the machine is healthy.
    let answer = ask_on(&machine, "mkdir -p /etc/ostree/remotes.d", true, &["health"]);
    assert_eq!(answer.code, 0, "{}", answer.said);
    let found = results(&answer.said);
    assert_eq!(found[..3], [web, [dns, "passed", ""], [watchdog, "passed", ""]]);
    assert_eq!(found[3][..2], [platforms, "wanted-failed"]);
    assert!(found[3][2].contains("No update platforms found, this can be a mistake"), "{found:?}");

    // A remote that resolves and answers: everything passes.
    let registry = Registry::start(&scene.folder().join("registry")).unwrap();
    let port = registry.port();
    let remote =
        |url: &str| format!("mkdir -p /etc/ostree/remotes.d; echo 'url={url}' > /etc/ostree/remotes.d/it");
    let answer = ask_on(&machine, &remote(&format!("http://localhost:{port}/v2/")), true, &["health"]);
    assert_eq!(answer.code, 0, "{}", answer.said);
    assert_eq!(
        results(&answer.said),
        [web, [dns, "passed", ""], [watchdog, "passed", ""], [platforms, "passed", ""]]
    );

    // A remote whose name nobody knows, without any network: both fail, and only the required one counts.
    let answer = ask_on(&machine, &remote("https://updates.invalid/repo"), false, &["health"]);
    assert_eq!(answer.code, 50, "{}", answer.said);
    let found = results(&answer.said);
    assert_eq!(found[1][..2], [dns, "failed"]);
    assert!(found[1][2].ends_with("DNS queries:\nupdates.invalid"), "{found:?}");
    assert_eq!(found[3][..2], [platforms, "wanted-failed"]);

    // greenboot's own switch, in the machine's root.
    let conf = machine.state_dir().with_file_name("root").join("etc/greenboot");
    std::fs::create_dir_all(&conf).unwrap();
    let disabled = "DISABLED_HEALTHCHECKS=(\"01_repository_dns_check.sh\")\n";
    std::fs::write(conf.join("greenboot.conf"), disabled).unwrap();
    let answer = ask_on(&machine, "", true, &["health"]);
    assert_eq!(answer.code, 0, "{}", answer.said);
    assert!(results(&answer.said).iter().any(|row| *row == [dns, "disabled", ""]), "{}", answer.said);
    assert_eq!((read(&machine, "green"), read(&machine, "red")), (None, None), "looking is no verdict");
}

#[test]
fn a_trial_is_confirmed_or_returned_by_greenboots_checks_and_the_scripts_for_after_the_verdict_run() {
    let (scene, mut machine) = machine_with_1_0();
    let ostree = "mkdir -p /etc/ostree/remotes.d";
    assert_eq!(ask_on(&machine, ostree, true, &["boot-check"]).said["verdict"], "nothing");
    for version in ["1.1", "1.2"] {
        bring_scripts(&scene, version);
        scene.release(version, true, ROOT_BYTES).unwrap();
    }
    scene.desk.publish("1.1").unwrap();
    assert_eq!(machine.ask(&["update", "--reboot"]).unwrap().code, 0);
    assert_eq!(machine.start().unwrap(), Some(Slot::B));
    unchanged(&machine);
    let answer = ask_on(&machine, ostree, true, &["boot-check"]);
    assert_eq!((answer.code, &answer.said["verdict"]), (0, &"confirmed".into()), "{}", answer.said);
    assert_eq!(answer.said["health"]["checks"].as_array().unwrap().len(), 4);
    assert_eq!(answer.said["hooks"][0]["name"], "green.d/tell.sh");
    assert_eq!(read(&machine, "green").as_deref(), Some("1.1 in b\n"));
    assert_eq!(read(&machine, "red"), None);

    // The same scripts on a host where the required one fails: the machine goes back.
    scene.desk.publish("1.2").unwrap();
    assert_eq!(machine.ask(&["update", "--reboot"]).unwrap().code, 0);
    assert_eq!(machine.start().unwrap(), Some(Slot::A));
    let answer = ask_on(&machine, "", true, &["boot-check"]);
    assert_eq!((answer.code, &answer.said["verdict"]), (50, &"returning".into()), "{}", answer.said);
    assert!(answer.said["detail"].as_str().unwrap().contains("remotes.d doesn't exist"), "{}", answer.said);
    assert_eq!(read(&machine, "red").as_deref(), Some("before the restart: 0\n"));
    assert_eq!(answer.said["hooks"].as_array().unwrap().len(), 1, "once, not at each step");
    assert_eq!(read(&machine, "green").as_deref(), Some("1.1 in b\n"), "no good news for 1.2");
    assert!(machine.reboot_requested());
    assert_eq!(machine.start().unwrap(), Some(Slot::B));
    let answer = ask_on(&machine, ostree, true, &["boot-check"]);
    assert_eq!(answer.said["verdict"], "returned", "{}", answer.said);
    assert_eq!(answer.said["hooks"], Value::Null, "the verdict was told before the restart");
}
