//! How much memory an update of a 1 GiB slot takes, and the unpacking of a large container image, from a real registry.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::process::Command;
use std::time::Instant;

use switchback_partitions::slot::Slot;
use switchback_tests::lab::registry::Registry;
use switchback_tests::lab::{containers, tools};
use switchback_tests::machine::Answer;
use switchback_tests::scene::Scene;
use switchback_tests::small_release::noise;

const MIB: u64 = 1 << 20;
const ROOT_BYTES: u64 = 1024 * MIB;
const NOISE_BYTES: u64 = 768 * MIB;
/// What a device may have to spare.
const RESIDENT_BYTES_MAX: u64 = 64 * MIB;

#[test]
fn an_update_of_a_1_gib_slot_stays_under_64_mib() {
    let scene = Scene::new().unwrap();
    let registry = Registry::start(&scene.folder().join("registry")).unwrap();
    let (host, key) = (registry.host(), scene.desk.path("os.pub"));
    let place = format!("{host}/os");
    for (version, noise_bytes, bytes) in [("1.0", MIB, 4 * MIB), ("1.1", NOISE_BYTES, ROOT_BYTES)] {
        let (image, began) = (scene.desk.path("root.img"), Instant::now());
        std::fs::write(&image, noise(noise_bytes, noise_bytes as usize)).unwrap();
        std::fs::File::options().write(true).open(&image).unwrap().set_len(bytes).unwrap();
        scene.desk.build_partition(version, "root.img", &["--foreign"]).unwrap();
        std::fs::remove_file(image).unwrap();
        scene.desk.sign(&scene.desk.reference(version), &[]).unwrap();
        scene.desk.push(version, &place, &["--plain-http", &host, "--with-signatures"]).unwrap();
        println!(
            "{version}: {} MiB built, signed and pushed in {:.1} s",
            bytes / MIB,
            began.elapsed().as_secs_f64()
        );
    }
    // The registry has all of it; twice is enough for anybody's disk.
    std::fs::remove_dir_all(scene.desk.path("images")).unwrap();
    let plain = format!("plain_http = [\"{host}\"]");
    let mut machine = scene.machine(&format!("{place}:1.1"), &[&key], &plain).unwrap();
    let sizes = ["--size", "3G", "--slot-size", "1G", "--plain-http", &host];
    scene.provision(&machine, &format!("{place}:1.0"), &key, &sizes).unwrap();
    machine.pretend(Slot::A).unwrap();

    let update = machine.command(&["update", "--json"]);
    let mut timed = Command::new(tools::program("time", "time").unwrap());
    let output = timed.arg("-v").arg(update.get_program()).args(update.get_args()).output().unwrap();
    let answer = Answer::of(&output).unwrap();
    assert_eq!((answer.code, &answer.said["outcome"]), (0, &"armed".into()), "{}", answer.told);
    assert!(answer.number("/traffic/written").unwrap() >= NOISE_BYTES, "{}", answer.said);
    let resident = resident(&answer.told);
    println!(
        "update of a 1 GiB slot: {:.1} MiB resident at most, {} s, {}",
        resident as f64 / MIB as f64,
        answer.said["seconds"],
        answer.said["traffic"]
    );
    assert!(resident < RESIDENT_BYTES_MAX, "{resident} bytes resident");
}

/// What `time -v` says of the largest amount, in bytes.
fn resident(told: &str) -> u64 {
    let line = "Maximum resident set size (kbytes): ";
    told.lines().find_map(|text| text.trim().strip_prefix(line)).unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn a_container_image_of_700_mib_is_unpacked_in_under_64_mib() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let registry = Registry::start(&at("registry")).unwrap();
    let (host, context) = (registry.host(), at("context"));
    std::fs::create_dir(&context).unwrap();
    std::fs::write(context.join("noise"), noise(200 * MIB, 200 * MIB as usize)).unwrap();
    std::fs::File::create(context.join("zeros")).unwrap().set_len(500 * MIB).unwrap();
    std::fs::write(context.join("Containerfile"), "FROM scratch\nCOPY noise zeros /\n").unwrap();
    let buildah = |words: &[&str]| {
        let mut buildah = containers::buildah(folder.path()).unwrap();
        tools::run(buildah.args(words).env("HOME", folder.path())).unwrap()
    };
    buildah(&["bud", "--tag", "large", context.to_str().unwrap()]);
    let place = format!("{host}/large:1");
    let zstd = ["push", "--tls-verify=false", "--format", "oci", "--compression-format", "zstd"];
    buildah(&[&zstd[..], &["large", &format!("docker://{place}")]].concat());
    let mut timed = Command::new(tools::program("time", "time").unwrap());
    timed.arg("-v").arg(tools::switchback().unwrap()).args(["image", "build", "--from-container", &place]);
    timed.args([
        "--plain-http",
        &host,
        "--progress",
        "none",
        "--product",
        "p",
        "--name",
        "n",
        "--version",
        "1",
    ]);
    let output = timed.arg("--output").arg(format!("oci:{}", at("release").display())).output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    // It has no kernel, which is found out when all of it is unpacked.
    assert!(told.contains("it has neither /usr/lib/modules/VERSION/vmlinuz"), "{told}");
    let resident = resident(&told);
    println!("a container image of 700 MiB: {:.1} MiB resident at most", resident as f64 / MIB as f64);
    assert!(resident < RESIDENT_BYTES_MAX, "{resident} bytes resident");
}
