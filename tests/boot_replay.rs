//! Does a machine come back whose power went at any flush of an update, with any part of its disk's cache lost?
//!
//! Not here: the machine and the rebuilt disks (`support/lab`). Rules: one update is recorded, and every disk is made from
//! that recording; one line for each disk that is started; the recording of a run that failed is kept, for `--only`.

#[path = "boot_replay/boots.rs"]
mod boots;
#[path = "boot_replay/esp.rs"]
mod esp;
#[path = "boot/good.rs"]
#[expect(dead_code, reason = "the boot lab's scenarios; of them only the good update is played here")]
mod good;
#[path = "boot_replay/sample.rs"]
mod sample;
#[path = "boot_replay/story.rs"]
mod story;
#[path = "boot/witness.rs"]
#[expect(dead_code, reason = "the boot lab's scenarios ask more of it")]
mod witness;

use std::collections::VecDeque;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use switchback_tests::lab::fixtures::Lab;
use switchback_tests::lab::rebuilt::{Cut, Recording};
use switchback_tests::lab::scene;

use esp::Findings;
use scene::Scene;

/// Machines at once: one for each core of the smallest host.
const WORKERS: usize = 2;

/// Fewer disks prove too little.
const BOOTS_MIN: usize = 40;

/// How many cuts with one fault are named.
const CUTS_SHOWN: usize = 6;

/// As many are started when nothing else is said.
const BOOTS: usize = 48;

/// What the command line asks for.
struct Wish {
    only: Option<Cut>,
    boots: usize,
}

impl Wish {
    fn read() -> Result<Wish> {
        let words: Vec<String> = std::env::args().skip(1).collect();
        let after = |flag: &str| {
            let place = words.iter().position(|word| word == flag)?;
            Some(words.get(place + 1).with_context(|| format!("{flag} needs a word behind it")))
        };
        let only = after("--only").transpose()?.map(|word| word.parse()).transpose()?;
        let boots = after("--boots").transpose()?.map(|word| word.parse()).transpose()?;
        Ok(Wish { only, boots: boots.unwrap_or(BOOTS) })
    }
}

fn main() -> ExitCode {
    match Wish::read().and_then(|wish| run(&wish)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("boot-replay: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(wish: &Wish) -> Result<bool> {
    let lab = Lab::open()?;
    if let (Some(cut), Some(recording)) = (wish.only, story::kept()) {
        println!("boot-replay: {cut} of the recording that the last failure left");
        let recording = recording?;
        let findings = esp::look_at_all(&recording, &esp::extent(recording.image())?, None)?;
        return Ok(start_all(&lab, &recording, &findings, &[cut]) == 1);
    }
    let began = Instant::now();
    let mut scene = Scene::open(&lab, story::NAME, false)?;
    let recorded = story::record(&mut scene);
    let good = recorded.and_then(|recording| {
        println!("recorded a good update in {} s", began.elapsed().as_secs());
        replay(&lab, &recording, wish)
    });
    if good.as_ref().is_ok_and(|good| *good) {
        scene.strike();
    } else {
        println!("the recording: {}", scene.keep_evidence()?.display());
    }
    good
}

fn replay(lab: &Lab, recording: &Recording, wish: &Wish) -> Result<bool> {
    let began = Instant::now();
    let part = esp::extent(recording.image())?;
    let findings = esp::look_at_all(recording, &part, Some(&story::boot_files(lab)?))?;
    sample::print_figures(recording, &part, &findings);
    println!("looked at all of them in {} s", began.elapsed().as_secs());
    if let Some(cut) = wish.only {
        return Ok(start_all(lab, recording, &findings, &[cut]) == 1);
    }
    for (fault, cuts) in &findings.faults {
        let shown: Vec<String> = cuts.iter().take(CUTS_SHOWN).map(Cut::to_string).collect();
        println!("FAIL boot partition: {fault} · {} cuts: {} …", cuts.len(), shown.join(" "));
    }
    let cuts = sample::choose(&findings.distinct, &findings.renames, wish.boots);
    let passed = start_all(lab, recording, &findings, &cuts);
    println!("boot-replay: {} disks booted, {passed} PASS, {} FAIL", cuts.len(), cuts.len() - passed);
    ensure!(cuts.len() >= BOOTS_MIN, "{} disks are fewer than {BOOTS_MIN}", cuts.len());
    Ok(passed == cuts.len() && findings.faults.is_empty())
}

/// Starts each of the disks, says how it went, and returns how many came to rest.
fn start_all(lab: &Lab, recording: &Recording, findings: &Findings, cuts: &[Cut]) -> usize {
    let queue: Mutex<VecDeque<Cut>> = Mutex::new(cuts.iter().copied().collect());
    let passed = Mutex::new(0);
    std::thread::scope(|threads| {
        for _ in 0..WORKERS {
            threads.spawn(|| {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    let Some(cut) = next else { break };
                    let place = format!("{} of {} flushes · {}", cut.flush, recording.flushes(), cut.kept);
                    // One write for each disk, so that two that end together do not mix.
                    match boots::start(lab, recording, cut, findings.wanted(cut)) {
                        Ok(rest) => {
                            *passed.lock().unwrap_or_else(PoisonError::into_inner) += 1;
                            println!("PASS {place} · {rest}");
                        }
                        Err(error) => println!(
                            "FAIL {place} · {error:#}\nagain: cargo test --locked -q -p switchback-tests --test \
                             boot_replay -- --only {cut}"
                        ),
                    }
                }
            });
        }
    });
    passed.into_inner().unwrap_or_else(PoisonError::into_inner)
}
