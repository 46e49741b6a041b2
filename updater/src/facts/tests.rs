//! Facts against power cuts, damage, lack of space and other versions.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::*;
use crate::host::state_dir::Folder;
use crate::lifecycle::{Release, Verdict};

/// A medium with both copies and a power supply that fails after a number of written bytes.
#[derive(Clone)]
struct Medium {
    bytes: [Arc<Mutex<Vec<u8>>>; 2],
    power: Arc<AtomicU64>,
}

struct Copy {
    medium: Medium,
    at: usize,
}

impl Medium {
    fn new() -> Medium {
        Medium::of(COPY_BYTES)
    }

    /// Short copies, enough for a few facts, so that many restarts are cheap.
    fn of(bytes: u64) -> Medium {
        let copy = || Arc::new(Mutex::new(vec![0; bytes as usize]));
        Medium { bytes: [copy(), copy()], power: Arc::new(AtomicU64::new(u64::MAX)) }
    }

    fn facts(&self) -> Facts {
        let copy = |at| Box::new(Copy { medium: self.clone(), at }) as Box<dyn Store>;
        Facts::from_copies([copy(0), copy(1)])
    }

    /// The same bytes in a machine that is switched on again; `bytes` more may be written.
    fn restarted(&self, bytes: u64) -> Medium {
        let copy = |at: usize| Arc::new(Mutex::new(self.bytes[at].lock().unwrap().clone()));
        Medium { bytes: [copy(0), copy(1)], power: Arc::new(AtomicU64::new(bytes)) }
    }

    fn damage(&self, at: usize, offset: usize) {
        self.bytes[at].lock().unwrap()[offset] ^= 1;
    }
}

impl Store for Copy {
    fn len(&self) -> io::Result<u64> {
        Ok(COPY_BYTES)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let (bytes, offset) = (self.medium.bytes[self.at].lock().unwrap(), offset as usize);
        buffer.copy_from_slice(&bytes[offset..offset + buffer.len()]);
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let (mut bytes, offset) = (self.medium.bytes[self.at].lock().unwrap(), offset as usize);
        let power = self.medium.power.load(Ordering::Relaxed);
        let written = data.len().min(usize::try_from(power).unwrap_or(usize::MAX));
        bytes[offset..offset + written].copy_from_slice(&data[..written]);
        self.medium.power.store(power - written as u64, Ordering::Relaxed);
        if written < data.len() { Err(io::Error::other("power cut")) } else { Ok(()) }
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

fn release(version: &str, security_version: u64) -> Release {
    Release { digest: Digest::of(version.as_bytes()), version: version.into(), security_version }
}

fn outcome(seq: u64, verdict: Verdict, release: Release) -> Fact {
    let why = (verdict == Verdict::Returned).then(|| Why::new(Reason::HealthFailed, "web: 503 ".repeat(9)));
    Fact::Outcome(Outcome { seq, verdict, release: Some(release), slot: Slot::B, why, left: None })
}

#[test]
fn facts_survive_a_restart_and_teach_what_step_needs() {
    let medium = Medium::new();
    let mut facts = medium.facts();
    assert!(!facts.known().lost && !facts.degraded());
    facts.add(&outcome(0, Verdict::Confirmed, release("1.1", 5)), 100).unwrap();
    facts.add(&outcome(1, Verdict::Returned, release("1.2", 6)), 200).unwrap();
    let mark = Fact::Mark { boot_id: "b".into(), slot: Slot::B, stage: Stage::RootMounted };
    facts.add(&mark, 300).unwrap();

    let read = medium.facts();
    assert_eq!(read.known(), facts.known());
    assert_eq!(read.history(), facts.history());
    assert_eq!((read.known().floor, read.known().next_seq), (5, 2));
    assert_eq!(read.known().quarantine[&release("1.2", 6).digest].why.reason, Reason::HealthFailed);
    assert_eq!(read.known().marks["b"], (Slot::B, Stage::RootMounted));
    assert_eq!(read.history().iter().map(|entry| entry.at_unix_secs).collect::<Vec<_>>(), [100, 200]);
}

#[test]
fn what_is_known_is_not_written_again() {
    let medium = Medium::new();
    let mut facts = medium.facts();
    let mark = |stage| Fact::Mark { boot_id: "b".into(), slot: Slot::B, stage };
    facts.add(&outcome(0, Verdict::Confirmed, release("1.1", 5)), 1).unwrap();
    facts.add(&mark(Stage::BootCheck), 2).unwrap();
    let before = medium.bytes[0].lock().unwrap().clone();
    for again in [
        outcome(0, Verdict::Confirmed, release("1.1", 5)),
        mark(Stage::BootCheck),
        mark(Stage::Initramfs),
        Fact::HoldEnded,
        Fact::Released(release("1.1", 5).digest),
    ] {
        facts.add(&again, 3).unwrap();
    }
    assert_eq!(*medium.bytes[0].lock().unwrap(), before);
}

#[test]
fn an_operator_releases_from_quarantine_and_a_second_failure_returns_it() {
    let medium = Medium::new();
    let mut facts = medium.facts();
    let bad = release("1.2", 6);
    facts.add(&outcome(0, Verdict::Returned, bad.clone()), 1).unwrap();
    facts.add(&Fact::Released(bad.digest), 2).unwrap();
    let released = Happened::Released { digest: bad.digest, version: "1.2".into() };
    assert_eq!(facts.history().last().unwrap().what, released);
    assert_eq!(medium.facts().history().last().unwrap().what, released, "read back it says the same");
    assert!(facts.known().quarantine.is_empty() && medium.facts().known().released.contains(&bad.digest));
    facts.add(&outcome(1, Verdict::Returned, bad.clone()), 3).unwrap();
    assert!(medium.facts().known().quarantine.contains_key(&bad.digest));
    assert!(medium.facts().known().released.is_empty());
}

#[test]
fn a_power_cut_at_any_byte_leaves_the_old_or_the_new_facts() {
    let medium = Medium::of(4096);
    medium.facts().add(&outcome(0, Verdict::Confirmed, release("1.1", 5)), 1).unwrap();
    let old = medium.facts().known().clone();
    let new = {
        let mut facts = medium.restarted(u64::MAX).facts();
        facts.add(&outcome(1, Verdict::Returned, release("1.2", 6)), 2).unwrap();
        facts.known().clone()
    };
    assert_ne!(old, new);
    let (mut kept, mut added) = (0, 0);
    for power in 0..1400 {
        let cut = medium.restarted(power);
        let result = cut.facts().add(&outcome(1, Verdict::Returned, release("1.2", 6)), 2);
        let after = cut.restarted(u64::MAX);
        let known = after.facts().known().clone();
        assert!(known == old || known == new, "after {power} bytes: {known:?}");
        assert!(result.is_err() || known == new, "said to be durable after {power} bytes, and is not");
        if known == old {
            kept += 1
        } else {
            added += 1
        }
        // What the cut left is repaired by the next addition.
        after.facts().add(&outcome(2, Verdict::Confirmed, release("1.3", 9)), 3).unwrap();
        assert_eq!((after.facts().known().floor, after.facts().degraded()), (9, false));
    }
    assert!(kept > 100 && added > 100, "both sides of the commit were reached: {kept}, {added}");
}

#[test]
fn a_power_cut_while_repairing_never_takes_the_good_copy() {
    for damaged in [0, 1] {
        let medium = Medium::of(4096);
        medium.facts().add(&outcome(0, Verdict::Returned, release("1.1", 5)), 1).unwrap();
        let old = medium.facts().known().clone();
        medium.damage(damaged, 70);
        for power in (0..600).step_by(7) {
            let cut = medium.restarted(power);
            assert!(cut.facts().degraded());
            let _ = cut.facts().add(&outcome(1, Verdict::Confirmed, release("1.2", 6)), 2);
            let known = cut.restarted(u64::MAX).facts().known().clone();
            assert!(known.quarantine == old.quarantine && !known.lost, "copy {damaged}, {power} bytes");
        }
    }
}

#[test]
fn either_copy_alone_is_enough_and_the_loss_of_both_is_flagged() {
    for offset in [0, 9, 17, 40, 64, 80] {
        let medium = Medium::new();
        medium.facts().add(&outcome(0, Verdict::Returned, release("1.1", 5)), 1).unwrap();
        for at in [0, 1] {
            let one = medium.restarted(u64::MAX);
            one.damage(at, offset);
            assert_eq!(one.facts().known(), medium.facts().known(), "copy {at} damaged at {offset}");
            assert!(one.facts().degraded());
        }
        medium.damage(0, offset);
        medium.damage(1, offset);
        let facts = medium.facts();
        assert_eq!(facts.known(), &Known { lost: true, ..Known::default() });
    }
}

#[test]
fn a_damaged_copy_is_mended_so_that_the_next_damage_takes_nothing() {
    for at in [0, 1] {
        let medium = Medium::new();
        medium.facts().add(&outcome(0, Verdict::Returned, release("1.1", 5)), 1).unwrap();
        let known = medium.facts().known().clone();
        medium.damage(at, 70);
        medium.facts().repair().unwrap();
        assert!(!medium.facts().degraded());
        medium.damage(1 - at, 70);
        assert_eq!(medium.facts().known(), &known, "copy {at}, then the other");
    }
}

#[test]
fn a_length_that_lies_is_refused_before_it_is_read() {
    let medium = Medium::new();
    medium.facts().add(&outcome(0, Verdict::Returned, release("1.1", 5)), 1).unwrap();
    for copy in &medium.bytes {
        copy.lock().unwrap()[16..24].copy_from_slice(&u64::MAX.to_le_bytes());
    }
    assert!(medium.facts().known().lost);
}

#[test]
fn records_of_a_newer_version_are_carried_along_also_through_compaction() {
    let medium = Medium::new();
    let future = format::tests_only::record(900, br#"{"colour":"green"}"#);
    let odd_body = format::tests_only::record(1, br#"{"at_unix_secs":1,"verdict":"celebrated"}"#);
    medium.facts().write(&[future.clone(), odd_body.clone()]).unwrap();

    let mut facts = medium.facts();
    fill(&mut facts, 1500);
    let read = medium.facts();
    assert!(read.records.contains(&future) && read.records.contains(&odd_body));
    assert_eq!(read.known().next_seq, 1500);
}

#[test]
fn an_older_updater_understands_a_quarantine_whose_reason_it_does_not_know() {
    let stored = r#"{"reason":"eaten-by-a-dog","detail":"woof"}"#;
    let why: Why = serde_json::from_str(stored).unwrap();
    assert_eq!(why, Why::new(Reason::Unknown, "woof"));
}

/// Confirms one release after the other; a few fail.
fn fill(facts: &mut Facts, count: u64) {
    for seq in facts.known().next_seq..count {
        let verdict = if seq % 250 == 7 { Verdict::Returned } else { Verdict::Confirmed };
        facts.add(&outcome(seq, verdict, release(&format!("1.{seq}"), seq / 10)), seq).unwrap();
    }
}

#[test]
fn when_space_runs_out_history_goes_and_floor_and_quarantine_stay() {
    let medium = Medium::new();
    let mut facts = medium.facts();
    fill(&mut facts, 1500);
    let read = medium.facts();
    assert_eq!(read.known(), facts.known());
    assert_eq!((read.known().floor, read.known().next_seq), (149, 1500));
    assert_eq!(read.known().quarantine.len(), 6, "1.7, 1.257, … 1.1257");
    assert!(read.history().len() < 1400 && read.history().len() > 100, "{}", read.history().len());
    assert_eq!(read.history().last().unwrap().at_unix_secs, 1499);
}

#[test]
fn facts_that_cannot_be_forgotten_are_refused_when_full_and_nothing_is_lost() {
    let medium = Medium::new();
    let mut facts = medium.facts();
    let mut seq = 0;
    let error = loop {
        match facts.add(&outcome(seq, Verdict::Returned, release(&format!("1.{seq}"), 0)), 0) {
            Ok(()) => seq += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, FactsError::Full { .. }), "{error}");
    assert_eq!(medium.facts().known().quarantine.len() as u64, seq);
    assert!(seq > 500, "{seq}");
}

#[test]
fn the_format_is_frozen() {
    let facts = [
        Fact::Outcome(Outcome {
            seq: 0,
            verdict: Verdict::RolledBack,
            release: Some(Release {
                digest: Digest::from_raw([1; 32]),
                version: "1".into(),
                security_version: 2,
            }),
            slot: Slot::A,
            why: None,
            left: None,
        }),
        Fact::Mark { boot_id: "b".into(), slot: Slot::B, stage: Stage::Panicked },
        Fact::HoldEnded,
    ];
    let records: Vec<_> = facts.iter().map(|fact| Record::of(fact, 9)).collect();
    let bytes = format::encode(3, &records);
    let text = String::from_utf8_lossy(&bytes[64..]);
    let ones = "01".repeat(32);
    let expected = format!(
        "{{\"at_unix_secs\":9,\"seq\":0,\"verdict\":\"rolled-back\",\"release\":{{\"digest\":\"sha256:{ones}\",\
         \"version\":\"1\",\"security_version\":2}},\"slot\":\"a\"}}"
    );
    assert_eq!(&bytes[..24], b"SWBFACTS\x03\0\0\0\0\0\0\0\x06\x01\0\0\0\0\0\0");
    assert_eq!(&bytes[72..72 + expected.len()], expected.as_bytes());
    assert_eq!(&bytes[64..72], [1, 0, 0, 0, expected.len() as u8, 0, 0, 0]);
    assert!(text.contains("{\"boot_id\":\"b\",\"slot\":\"b\",\"stage\":\"panicked\"}"));
}

#[test]
fn the_files_are_reserved_once_and_may_be_read_by_anyone() {
    let folder = tempfile::tempdir().unwrap();
    Facts::open(&Folder::new(folder.path()))
        .unwrap()
        .add(&outcome(0, Verdict::Confirmed, release("1", 4)), 1)
        .unwrap();
    for name in ["facts-1", "facts-2"] {
        assert_eq!(std::fs::metadata(folder.path().join(name)).unwrap().len(), COPY_BYTES);
    }
    assert_eq!(Facts::open(&Folder::new(folder.path())).unwrap().known().floor, 4);
    // The second file never came to be: the power went in between.
    std::fs::remove_file(folder.path().join("facts-2")).unwrap();
    let mut facts = Facts::open(&Folder::new(folder.path())).unwrap();
    assert_eq!((facts.known().floor, facts.degraded()), (4, true));
    facts.add(&outcome(1, Verdict::Confirmed, release("2", 5)), 2).unwrap();
    std::fs::remove_file(folder.path().join("facts-1")).unwrap();
    assert_eq!(Facts::open(&Folder::new(folder.path())).unwrap().known().floor, 5);
}

#[test]
fn whoever_only_looks_makes_no_folder_and_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let gone = folder.path().join("gone");
    let facts = Facts::read(&Folder::new(&gone)).unwrap();
    assert_eq!((facts.known(), facts.degraded(), gone.exists()), (&Known::default(), false, false));
    Facts::open(&Folder::new(folder.path()))
        .unwrap()
        .add(&outcome(0, Verdict::Confirmed, release("1", 4)), 1)
        .unwrap();
    std::fs::remove_file(folder.path().join("facts-2")).unwrap();
    // A file that the power cut short while its space was being reserved: blank, as for a writer.
    for cut in [None, Some(0), Some(100)] {
        if let Some(len) = cut {
            std::fs::File::create(folder.path().join("facts-2")).unwrap().set_len(len).unwrap();
        }
        let mut facts = Facts::read(&Folder::new(folder.path())).unwrap();
        assert_eq!((facts.known().floor, facts.degraded(), facts.known().lost), (4, true, false));
        assert!(facts.add(&outcome(1, Verdict::Confirmed, release("2", 5)), 2).is_err());
        let len = std::fs::metadata(folder.path().join("facts-2")).ok().map(|file| file.len());
        assert_eq!(len, cut);
    }
    assert_eq!(Facts::read(&Folder::new(folder.path())).unwrap().known().floor, 4, "nothing was added");
}
