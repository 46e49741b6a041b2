//! What the stories of one machine have in common: it runs 1.0, releases are published, the program is asked.
//!
//! Not here: the stories. Rule: a question is held to its exit code, and a refusal to its three sentences.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use serde_json::Value;
use switchback_partitions::slot::Slot;

use crate::machine::{Answer, Machine};
use crate::scene::{SMALL_DISK, Scene};
use crate::small_release::SmallRelease;

/// Bytes of each root.
pub const ROOT_BYTES: u64 = 8 << 20;

/// A machine that runs 1.0 from slot A, confirmed, and looks at the tag `stable`.
pub fn machine_with_1_0() -> (Scene, Machine) {
    configured_machine("")
}

/// The same with more lines of configuration behind `[source]`, sections included.
pub fn configured_machine(more: &str) -> (Scene, Machine) {
    let scene = Scene::new().unwrap();
    scene.release("1.0", true, ROOT_BYTES).unwrap();
    let key = scene.desk.path("os.pub");
    let mut machine = scene.machine(&scene.desk.reference("stable"), &[&key], more).unwrap();
    scene.provision(&machine, &scene.desk.reference("1.0"), &key, &SMALL_DISK).unwrap();
    assert_eq!(machine.power_on().unwrap().slot, Slot::A);
    (scene, machine)
}

/// Builds, signs and publishes a release; gives its digest.
pub fn publish(scene: &Scene, version: &str, healthy: bool) -> String {
    publish_with(scene, version, healthy, &[])
}

/// The same with more arguments of `image build`.
pub fn publish_with(scene: &Scene, version: &str, healthy: bool, more: &[&str]) -> String {
    let release = SmallRelease { version, healthy, root_bytes: ROOT_BYTES };
    let image = scene.desk.root_image(&release).unwrap();
    publish_image(scene, version, &image, more)
}

/// The same from a root image on the desk.
pub fn publish_image(scene: &Scene, version: &str, image: &str, more: &[&str]) -> String {
    scene.desk.build_partition(version, image, more).unwrap();
    scene.desk.sign(&scene.desk.reference(version), &[]).unwrap();
    scene.desk.publish(version).unwrap().to_string()
}

/// Asks, and holds the program to its exit code.
pub fn ask(machine: &Machine, arguments: &[&str], code: i32) -> Answer {
    let answer = machine.ask(arguments).unwrap();
    assert_eq!(answer.code, code, "switchback {}: {} {}", arguments.join(" "), answer.said, answer.told);
    if code >= 10 {
        assert_eq!(answer.said["exit_code"], code, "{}", answer.said);
        for field in ["detail", "untouched", "remedy"] {
            assert!(
                answer.said[field].as_str().is_some_and(|text| !text.is_empty()),
                "{field}: {}",
                answer.said
            );
        }
    }
    answer
}

/// What happened, version, slot and reason of each line of history.
pub fn history(machine: &Machine) -> Vec<[String; 4]> {
    let entries = ask(machine, &["history"], 0).said["entries"].as_array().unwrap().clone();
    let text = |entry: &Value, field: &str| entry[field].as_str().unwrap_or_default().to_string();
    entries
        .iter()
        .map(|entry| ["what", "version", "slot", "reason"].map(|field| text(entry, field)))
        .collect()
}

/// The answer to `status`.
pub fn status(machine: &Machine) -> Value {
    ask(machine, &["status"], 0).said
}

/// The boot record's word on a slot.
pub fn boot_of(machine: &Machine, slot: Slot) -> String {
    status(machine)["slots"][slot.index()]["boot"]["state"].as_str().unwrap().to_string()
}
