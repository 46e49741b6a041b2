//! One rebuilt disk, started.
//!
//! Rule: it comes to rest by itself, on a release that is wholly there; a panic of its kernel is never retried away.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use switchback_tests::lab::fixtures::Lab;
use switchback_tests::lab::qemu::BOOT_TIMEOUT;
use switchback_tests::lab::rebuilt::{Cut, Recording};

use crate::scene::{Scene, TRIES};
use crate::story::NAME;

/// What the machine may be at once it has come to rest. `installing`: an update was cut off and waits for the next order.
const AT_REST: [&str; 3] = ["idle", "installing", "staged"];

/// How long a line that was printed may take to be read on a busy host.
const CONSOLE_TIMEOUT: Duration = Duration::from_secs(60);

/// Says what the root is mounted from, unless that is a dm-verity device that gives every one of its blocks.
const ROOT_IS_VERITY: &str = r#"root=$(awk '$2 == "/" && $1 ~ "^/dev/" { print $1 }' /proc/mounts | tail -n 1)
node=$(basename "$(readlink -f "$root")")
echo "/ is on $root: $(cat "/sys/block/$node/dm/name" "/sys/block/$node/ro")"
[ -d "/sys/block/$node/dm" ] && dd if="/dev/$node" of=/dev/null bs=1M 2>&1"#;

/// Where a machine came to rest.
pub struct Rest {
    slot: String,
    version: String,
    state: String,
    starts: usize,
    took: Duration,
}

impl fmt::Display for Rest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Rest { slot, version, state, starts, took } = self;
        let times = if *starts == 1 { "start" } else { "starts" };
        let seconds = took.as_secs();
        write!(f, "came up on slot {slot}, version {version} ({state}), after {starts} {times}, {seconds} s")
    }
}

/// Starts the disk that a cut left, and waits until it is at rest with one of the `wanted` versions.
pub fn start(lab: &Lab, recording: &Recording, cut: Cut, wanted: &[&str]) -> Result<Rest> {
    let name = format!("{NAME}-{cut}").replace('/', "-");
    let mut scene = Scene::open(lab, &name, false)?;
    scene.bring(|disk, _| recording.lay_out(cut, disk))?;
    let began = Instant::now();
    match comes_to_rest(&mut scene, began, wanted) {
        Ok(rest) => {
            scene.strike();
            Ok(rest)
        }
        Err(error) => {
            let console = scene.vm().map_or(String::new(), |vm| vm.console().tail());
            let kept = scene.keep_evidence()?;
            bail!("{error:#}\nthe console's end:\n{console}serial log and disk: {}", kept.display())
        }
    }
}

fn comes_to_rest(scene: &mut Scene, began: Instant, wanted: &[&str]) -> Result<Rest> {
    scene.power_on()?;
    let mut seen = 0;
    let (version, status) = loop {
        let version = scene.wait_ready(BOOT_TIMEOUT)?;
        // It comes by another port than the word that the machine is ready, and may be read later.
        let console = scene.vm()?.console();
        let (line, word) = console.wait_for("LAB-CHECK ", seen, CONSOLE_TIMEOUT)?;
        let ended_well = word.text.ends_with(&format!("LAB-CHECK {version} 0"));
        ensure!(ended_well, "`boot-check` ended with `{}`\n{}", word.text, scene.explain());
        seen = line + 1;
        let status = scene.status()?;
        if status.good {
            break (version, status);
        }
        ensure!(scene.boots() <= TRIES, "{} starts, and no rest: {status:?}", scene.boots());
    };
    let took = began.elapsed();
    ensure!(status.version == version, "it says it is {version}, and runs {status:?}");
    ensure!(wanted.contains(&version.as_str()), "it came up with {version}, not {wanted:?}");
    ensure!(AT_REST.contains(&status.state.as_str()), "it is not at rest: {status:?}\n{}", scene.explain());
    ensure!(status.quarantine.is_empty(), "a power cut banned a release: {status:?}");
    scene.run(ROOT_IS_VERITY)?.ok().context("the root is not verified")?;
    let verified = scene.ask(&format!("verify {}", status.slot))?;
    let slots = verified["slots"].as_array().into_iter().flatten();
    let sound = slots.filter(|slot| slot["running"] == true && slot["soundness"] == "sound").count();
    ensure!(sound == 1, "the running slot is not what was signed: {verified:#}");
    let panics = scene.vm()?.console().count("Kernel panic")?;
    ensure!(panics == 0, "its kernel panicked {panics} times");
    let starts = scene.boots();
    Ok(Rest { slot: status.slot, version, state: status.state, starts, took })
}
