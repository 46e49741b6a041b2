//! Which of the rebuilt disks are started, and what the log was like.
//!
//! Rule: the same log gives the same choice.

use std::collections::BTreeSet;
use std::ops::Range;

use switchback_tests::lab::rebuilt::{Cut, Recording};

use crate::esp::Findings;

/// All cuts around the flushes in `always`, and of the others as many as make `count`, evenly spread.
pub fn choose(distinct: &[Cut], always: &BTreeSet<usize>, count: usize) -> Vec<Cut> {
    // A name that flush `number` made durable was written in the window before it.
    let is_near = |cut: &&Cut| always.contains(&cut.flush) || always.contains(&(cut.flush + 1));
    let mut chosen: BTreeSet<Cut> = distinct.iter().filter(is_near).copied().collect();
    let others: Vec<Cut> = distinct.iter().filter(|cut| !is_near(cut)).copied().collect();
    let wanted = count.saturating_sub(chosen.len()).min(others.len());
    let spread =
        (0..wanted).map(|index| others[index * (others.len() - 1) / wanted.max(2).saturating_sub(1)]);
    chosen.extend(spread);
    chosen.into_iter().collect()
}

/// The log in figures.
pub fn print_figures(recording: &Recording, esp: &Range<u64>, findings: &Findings) {
    let entries = recording.log().entries();
    let count = |is: &dyn Fn(usize) -> bool| (0..entries.len()).filter(|index| is(*index)).count();
    let writes = count(&|index| entries[index].is_write());
    let bytes: u64 = entries.iter().filter(|entry| entry.is_write()).map(|entry| entry.bytes).sum();
    let on_esp = count(&|index| entries[index].is_write() && esp.contains(&entries[index].offset));
    let windows: Vec<_> = (0..=recording.flushes()).map(|flush| recording.window(flush)).collect();
    let on_esp_at_once =
        windows.iter().map(|window| window.iter().filter(|entry| esp.contains(&entry.offset)).count());
    println!(
        "the log: {writes} writes ({} MiB), {} flushes, {} forced writes, {} discards; {on_esp} writes to the boot partition",
        bytes >> 20,
        recording.flushes(),
        count(&|index| entries[index].is_forced()),
        count(&|index| entries[index].is_discard()),
    );
    println!(
        "between two flushes at most {} writes, at most {} of them to the boot partition",
        windows.iter().map(Vec::len).max().unwrap_or(0),
        on_esp_at_once.max().unwrap_or(0),
    );
    for change in &findings.changes {
        let [from, to] = &change.names;
        let (flush, writes, sectors) = (change.flush, change.writes, change.sectors);
        println!("behind flush {flush}: {from} → {to}: {writes} writes, {sectors} sectors changed");
    }
    println!(
        "{} different disks with {} different boot partitions, {} of them with both names of a rename, {} cuts against a rule",
        findings.distinct.len(),
        findings.partitions,
        findings.doubled.len(),
        findings.faults.values().map(Vec::len).sum::<usize>(),
    );
}
