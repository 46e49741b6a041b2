//! Volumes of images that change what they write: copied before, left alone, set aside, and gone when nobody counts on them.

use switchback_tests::services::{Recipe, ServiceLab};

use super::scene::BUSYBOX;

/// An image that writes its name into its volume after what it found there, with the schema that it has.
fn publish(lab: &ServiceLab, tag: &str, schema: &str, end: &str) {
    let text = format!("echo {tag} >>/data/f; {end}");
    let recipe =
        Recipe { tag, programs: BUSYBOX, files: &[], command: &["/usr/bin/busybox", "sh", "-c", &text] };
    let labels = [("io.switchback.schema.data", schema)];
    lab.cook_labelled(&recipe, if schema.is_empty() { &[] } else { &labels }).unwrap();
    lab.sign(tag, "os").unwrap();
}

/// The volumes by name, with the lines of the file in each.
fn volumes(lab: &ServiceLab) -> Vec<String> {
    let folder = lab.path("data/volumes");
    let one = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(path.join("f")).unwrap_or_default();
        format!(
            "{}: {}",
            path.file_name().unwrap().to_string_lossy(),
            text.lines().collect::<Vec<_>>().join(" ")
        )
    };
    let mut volumes: Vec<String> = std::fs::read_dir(folder).unwrap().map(one).collect();
    volumes.sort();
    volumes
}

#[test]
fn a_raised_volume_is_a_copy_until_it_is_confirmed_and_set_aside_when_it_is_left() {
    let mut lab = ServiceLab::new().unwrap();
    let stays = "exec /usr/bin/busybox sleep 1000";
    publish(&lab, "one", "", stays);
    publish(&lab, "same", "", stays);
    publish(&lab, "raised", "1", stays);
    publish(&lab, "spoils", "2", "exit 1");
    publish(&lab, "again", "2", stays);
    publish(&lab, "odd", "two", stays);
    let order = |lab: &mut ServiceLab, tag: &str, code: i32| {
        lab.services = format!(
            "[service.job]\nimage = \"{}\"\nmode = \"recreate\"\nsoak = \"1s\"\ndrain = \"1s\"\nvolumes = [\"data:/data\"]\n\
             probe = {{ every = \"300ms\", passes = 3 }}\n",
            lab.reference(tag)
        );
        let answer = lab.ask(&["update", "job"]).unwrap();
        assert_eq!(answer.code, code, "{tag}: {} {}", answer.said, answer.told);
        answer.said["detail"].as_str().unwrap_or_default().to_owned()
    };
    order(&mut lab, "one", 0);
    order(&mut lab, "same", 0);
    assert_eq!(volumes(&lab), ["data: one same"], "the same schema is the same folder");
    order(&mut lab, "raised", 0);
    assert_eq!(volumes(&lab), ["data: one same", "data@1: one same raised"], "the old one is as it was");
    assert_eq!(lab.ask(&["rollback", "job"]).unwrap().code, 0);
    assert_eq!(volumes(&lab), ["data: one same same", "data@failed: one same raised"]);
    let history = lab.ask(&["history", "job"]).unwrap();
    let kept = history.said["kept_volumes"][0].as_str().unwrap();
    assert!(kept.ends_with("volumes/data@failed"), "{kept}");
    order(&mut lab, "raised", 0);
    assert_eq!(volumes(&lab)[1], "data@1: one same same raised", "a new copy, of what served meanwhile");
    let why = order(&mut lab, "spoils", 50);
    assert!(why.contains("what it made of the volume data is kept as data@failed"), "{why}");
    let then = [
        "data: one same same",
        "data@1: one same same raised raised",
        "data@failed: one same same raised spoils",
    ];
    assert_eq!(volumes(&lab), then, "the one that served goes on in its own");
    let why = order(&mut lab, "odd", 50);
    assert!(why.contains("io.switchback.schema.data is `two`, which is no number"), "{why}");
    order(&mut lab, "again", 0);
    let names: Vec<String> =
        volumes(&lab).iter().map(|line| line.split(':').next().unwrap().to_owned()).collect();
    assert_eq!(names, ["data@1", "data@2", "data@failed"], "no slot holds schema 0 any more");
}
