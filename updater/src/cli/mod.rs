//! The command line: typed text → request → answer as sentences or JSON, and one exit code.
//!
//! Not here: what a verb does (`engine`, `publish`). Rule: a failure says what happened, what was left untouched and
//! what to do next; exit codes are made in one place.

mod args;
#[cfg(feature = "author")]
mod container;
mod desired;
mod doctor;
mod help;
#[cfg(feature = "author")]
mod image;
mod manual;
#[cfg(feature = "author")]
mod patches;
mod progress;
mod provision;
mod render;
mod service;

use std::io::IsTerminal as _;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser as _;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;

use self::args::{Cli, QuarantineVerb, Verb};
use self::args::{RollbackArgs, UpdateArgs};
use self::progress::Display;
use crate::config::Config;
use crate::engine::answers::{Answer, BootVerdict, Reach, Request};
use crate::engine::{Engine, Failure, host_reason, mark_deadline_passed};
use crate::reason::{Reason, Why};

/// Usage errors, as sysexits.h has it.
const EXIT_USAGE: u8 = 64;
/// What a file for `apply` leaves whose services fail behind its OS.
const OS_DONE: &str = "The OS is as the file says. The services before the one that failed are, too; that one serves from its image of before.";
/// Something was changed, under `--detailed-exitcode`.
const EXIT_CHANGED: u8 = 2;

/// What a verb leaves to print: text for people, a JSON document for programs.
pub(crate) struct Output {
    text: String,
    json: serde_json::Value,
    changed: bool,
    /// The exit code of an answer that is no success, such as an unhealthy machine.
    reason: Option<Reason>,
}

/// Runs the program.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            // Help and version are no errors.
            return ExitCode::from(if error.use_stderr() { EXIT_USAGE } else { 0 });
        }
    };
    log(cli.verbose);
    let result = run(&cli);
    finish(&cli, result)
}

fn finish(cli: &Cli, result: Result<Output, Failure>) -> ExitCode {
    match result {
        Ok(output) => {
            if cli.json {
                println!("{:#}", output.json);
            } else {
                print!("{}", output.text);
            }
            match output.reason {
                Some(reason) => ExitCode::from(reason.exit_code()),
                None if output.changed && cli.detailed_exitcode => ExitCode::from(EXIT_CHANGED),
                None => ExitCode::SUCCESS,
            }
        }
        Err(failure) => {
            let Why { reason, detail } = &failure.why;
            if cli.json {
                println!(
                    "{:#}",
                    serde_json::json!({
                        "answer": "failure", "reason": reason, "detail": detail, "untouched": failure.untouched,
                        "remedy": reason.remedy(), "exit_code": reason.exit_code(),
                    })
                );
            } else {
                eprintln!("switchback: {}", reason.description());
                if !detail.is_empty() {
                    eprintln!("  why    {detail}");
                }
                eprintln!("  safe   {}", failure.untouched);
                eprintln!("  next   {}", reason.remedy());
            }
            ExitCode::from(reason.exit_code())
        }
    }
}

fn run(cli: &Cli) -> Result<Output, Failure> {
    let progress = Display::new(cli.progress, cli.json).map_err(|e| Failure::before(Reason::Internal, e))?;
    let request = match &cli.verb {
        Verb::Status { service: Some(name) } => return service::status(&configured(cli)?, name),
        Verb::Update(UpdateArgs { service: Some(name), source, .. }) => {
            return service::update(&configured(cli)?, name, source.to.as_deref(), &progress);
        }
        Verb::Rollback(RollbackArgs { service: Some(name), .. }) => {
            return service::rollback(&configured(cli)?, name, &progress);
        }
        Verb::History { service: Some(name), limit } => {
            return service::history(&configured(cli)?, name, *limit);
        }
        Verb::Logs { service: Some(name), .. } => return service::logs(&configured(cli)?, name),
        Verb::Quarantine(QuarantineVerb::List { service: Some(name) }) => {
            return service::quarantine(&configured(cli)?, name, None);
        }
        Verb::Quarantine(QuarantineVerb::Release { service: Some(name), release }) => {
            return service::quarantine(&configured(cli)?, name, Some(release));
        }
        Verb::Hold { bundle, command } => return service::hold(bundle, command),
        Verb::Daemon => {
            crate::daemon::run(&configured(cli)?, &progress)?;
            return Ok(service::stopped());
        }
        Verb::Status { .. } => Request::Status,
        Verb::Check(source) => Request::Check { to: source.to.clone() },
        Verb::Update(update) => Request::Update {
            to: update.source.to.clone(),
            reach: reach(update.dry_run, update.stage, update.reboot),
        },
        Verb::Rollback(rollback) => Request::Rollback {
            reach: reach(rollback.dry_run, false, rollback.reboot),
            below_floor: rollback.below_floor,
        },
        Verb::History { limit, .. } => Request::History { limit: *limit },
        Verb::Logs { release, .. } => Request::Logs { release: release.clone() },
        Verb::Quarantine(QuarantineVerb::List { .. }) => Request::Quarantine { release: None },
        Verb::Quarantine(QuarantineVerb::Release { release, .. }) => {
            Request::Quarantine { release: Some(release.clone()) }
        }
        Verb::Verify { slot } => Request::Scrub { slot: *slot },
        Verb::Apply { file, dry_run } => return apply(cli, file, *dry_run, &progress),
        Verb::Health => Request::Health,
        Verb::BootCheck { no_reboot, .. } => Request::BootCheck { no_reboot: *no_reboot },
        Verb::Doctor(doctor) => return Ok(doctor::run(doctor, cli.config.as_deref())),
        Verb::Provision(provision) => return provision::run(provision, &progress),
        #[cfg(feature = "author")]
        Verb::Image(verb) => return image::run(verb, &progress),
        Verb::Completions { shell } => return Ok(manual::completions(*shell)),
        Verb::Man { output } => return manual::run(output.as_deref()),
        // `main` hands this over before the command line is parsed; typed by a person it has no meaning.
        Verb::Init(_) => {
            let detail = "`switchback init` is started by the kernel as PID 1 of an initramfs";
            return Err(Failure::refused(Why::new(Reason::NotSupported, detail)));
        }
    };
    ask(cli, request, &progress)
}

/// What a file says: the OS first, as its release may move services, then services by themselves.
fn apply(cli: &Cli, file: &Path, dry_run: bool, progress: &Display) -> Result<Output, Failure> {
    let wanted = desired::read(file, dry_run)?;
    let os = wanted.os.map(|request| ask(cli, request, progress)).transpose()?;
    if wanted.services.is_empty() {
        // `read` refuses a file that names nothing.
        return os.ok_or_else(|| Failure::refused(Why::new(Reason::Internal, "nothing was asked for")));
    }
    let services = service::apply(&configured(cli)?, &wanted.services, dry_run, progress);
    let services = services.map_err(|failure| match &os {
        Some(os) if os.changed => Failure { untouched: OS_DONE, ..failure },
        _ => failure,
    })?;
    Ok(match os {
        None => services,
        Some(os) => Output {
            text: os.text + &services.text,
            json: serde_json::json!({
                "answer": "applied", "os": os.json, "services": services.json["services"],
            }),
            changed: os.changed || services.changed,
            reason: None,
        },
    })
}

fn ask(cli: &Cli, request: Request, progress: &Display) -> Result<Output, Failure> {
    let config = configured(cli)?;
    let machine = crate::host::open(&config).map_err(|e| Failure::before(host_reason(&e), e))?;
    if let Verb::BootCheck { deadline_passed: true, .. } = &cli.verb {
        // Before anything else is opened: the machine is about to be restarted for not getting this far.
        let slot = mark_deadline_passed(&*machine)?;
        return Ok(Output {
            text: format!("The deadline of the trial in slot {slot} has passed; the start is marked so.\n"),
            json: serde_json::json!({ "answer": "deadline-passed", "slot": slot }),
            reason: None,
            changed: true,
        });
    }
    let looks_only = matches!(
        request,
        Request::Status
            | Request::Check { .. }
            | Request::History { .. }
            | Request::Logs { .. }
            | Request::Quarantine { release: None }
            | Request::Scrub { .. }
            | Request::Health
    );
    let mut engine = Engine::open(&*machine, &config, progress, !looks_only)?;
    let answer = engine.handle(request)?;
    Ok(output(&answer))
}

fn configured(cli: &Cli) -> Result<Config, Failure> {
    let config = match &cli.config {
        Some(path) => Config::load(path),
        None => Config::load_default(),
    };
    config.map_err(|e| Failure::before(Reason::ConfigInvalid, e))
}

fn reach(dry_run: bool, stage: bool, reboot: bool) -> Reach {
    match (dry_run, stage, reboot) {
        (true, _, _) => Reach::DryRun,
        (_, true, _) => Reach::Stage,
        (_, _, true) => Reach::Reboot,
        _ => Reach::Arm,
    }
}

fn output(answer: &Answer) -> Output {
    let reason = match answer {
        Answer::Health(report) => report.why().map(|why| why.reason),
        Answer::Scrub(scrubbed) if scrubbed.is_damaged() => Some(Reason::SlotDamaged),
        // Whoever asks whether the slots are sound must not take "nobody knows" for yes.
        Answer::Scrub(scrubbed) => scrubbed.is_unjudged().then_some(Reason::Busy),
        // Not success: `boot-complete.target` must not be reached, or systemd would bless the entry that was left.
        Answer::BootCheck(check)
            if matches!(check.verdict, BootVerdict::Returning | BootVerdict::Stranded) =>
        {
            Some(check.reason.unwrap_or(Reason::HealthFailed))
        }
        _ => None,
    };
    Output {
        text: render::text(answer),
        json: serde_json::to_value(answer).unwrap_or_default(),
        changed: answer.changed(),
        reason,
    }
}

fn log(verbose: u8) {
    let default = ["warn", "info,switchback=debug", "debug"][usize::from(verbose.min(2))];
    // `TARGET=LEVEL,…`: the fuller syntax of `EnvFilter` needs a regular expression engine, which a device has no room for.
    let asked = std::env::var("SWITCHBACK_LOG").unwrap_or_default();
    let asked = Some(asked).filter(|asked| !asked.is_empty()).and_then(|asked| asked.parse::<Targets>().ok());
    let filter = asked.or_else(|| default.parse().ok()).unwrap_or_default();
    // Left to itself it colours a file and the journal, too.
    let colours =
        std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty());
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = lines.with_ansi(colours).with_target(false);
    tracing_subscriber::registry().with(lines.with_filter(filter)).init();
}

#[cfg(test)]
mod tests {
    use switchback_partitions::slot::Slot;

    use super::*;
    use crate::engine::answers::{Scrubbed, SlotScrub, Soundness};

    #[test]
    fn what_was_not_judged_is_no_success_and_damage_goes_before_it() {
        use Soundness::{Changed, Damaged, Empty, HalfWritten, Sound};
        for (soundness, reason) in [
            ([Sound, Sound], None),
            ([Sound, Empty], None),
            ([Sound, HalfWritten], None),
            ([Sound, Changed], Some(Reason::Busy)),
            ([Damaged, Changed], Some(Reason::SlotDamaged)),
        ] {
            let slots = Slot::ALL.map(|slot| SlotScrub {
                slot,
                running: slot == Slot::A,
                release: None,
                soundness: soundness[slot.index()],
                detail: String::new(),
            });
            let output = output(&Answer::Scrub(Scrubbed { slots: slots.into() }));
            assert_eq!(output.reason, reason, "{}", output.text);
            assert_eq!(output.text.contains("NOT JUDGED"), soundness.contains(&Changed), "{}", output.text);
        }
    }
}
