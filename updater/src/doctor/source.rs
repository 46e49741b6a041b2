//! Where releases come from: does it answer, does it let this machine in, is the tag there? And its mirrors: do they answer?
//!
//! Not here: whether the release is any good (`check`). Rule: one question to each, with a limit of time; offline is no error,
//! and a mirror that is away is none that stops an update.

use std::time::Duration;

use tokio::time::timeout;

use super::finding::{Finding, Group};
use super::place::Seen;
use crate::digest::Digest;
use crate::engine::{chain, source};
use crate::registry::reference::{Reference, Source};
use crate::registry::{self, Patience, Registry, RegistryAccess, RegistryError, credentials};

/// All of it together.
const TIMEOUT: Duration = Duration::from_secs(45);
/// A person waits; an update is more patient.
const CONNECT: Duration = Duration::from_secs(10);

/// The source, and what it answers.
pub fn findings(seen: &Seen<'_>) -> Vec<Finding> {
    let named = seen.config.source.image.as_deref();
    let subject = Group::Source.at("source", "[source] image");
    let Some(named) = named else {
        return vec![
            subject.problem("nothing is configured", "Set `image` under [source] to HOST/REPOSITORY:TAG."),
        ];
    };
    let reference: Reference = match named.parse() {
        Ok(reference) => reference,
        Err(error) => return vec![subject.problem(chain(&error), "Correct `image` under [source].")],
    };
    let mut findings = vec![subject.ok(named)];
    findings.extend(credentials(seen, &reference));
    findings.extend(answers(seen, &reference));
    match source::mirrors(seen.config, &reference) {
        Ok(mirrors) => findings.extend(mirrors.iter().flat_map(|mirror| mirror_findings(seen, mirror))),
        Err(failure) => {
            let subject = Group::Source.at("mirror-reachable", "[source] mirrors");
            findings.push(subject.problem(failure.why.detail, "Correct `mirrors` under [source]."));
        }
    }
    findings
}

/// A mirror, which is asked for blobs alone: any answer about any blob will do.
fn mirror_findings(seen: &Seen<'_>, mirror: &Reference) -> Vec<Finding> {
    let subject = Group::Source.at("mirror-reachable", mirror);
    let answer = match &mirror.source {
        // A stick that is not plugged in costs an update nothing.
        Source::Layout(path) if !path.is_dir() => return vec![subject.note("is not there now")],
        Source::Layout(_) => return vec![subject.ok("is there")],
        Source::Registry { .. } if seen.place.offline => return vec![subject.note("not asked: --offline")],
        Source::Registry { .. } => {
            ask_for(seen, mirror, async |registry| registry.has_blob(&Digest::of(b"")).await.map(drop))
        }
    };
    let remedy =
        "Correct `mirrors` under [source], or mend the mirror; meanwhile blobs come from the source.";
    let mut findings: Vec<Finding> = credentials(seen, mirror).into_iter().collect();
    findings.push(match answer {
        Ok(()) => subject.ok("answers"),
        Err(error) => subject.warning(chain(&error), remedy),
    });
    findings
}

/// The file that configuration names: a registry may ask for what is in it only one day.
fn credentials(seen: &Seen<'_>, reference: &Reference) -> Option<Finding> {
    let (file, Source::Registry { host, .. }) = (seen.config.source.auth_file.as_ref()?, &reference.source)
    else {
        return None;
    };
    let subject = Group::Source.at("registry-credentials", file.display());
    Some(match credentials::find(host, Some(file)) {
        Ok(Some(_)) => subject.ok(format!("has credentials for {host}")),
        Ok(None) => subject.note(format!("has no credentials for {host}")),
        Err(error) => {
            subject.problem(chain(&error), "Correct `auth_file` under [source], or the file it names.")
        }
    })
}

fn answers(seen: &Seen<'_>, reference: &Reference) -> Vec<Finding> {
    let place = match &reference.source {
        Source::Layout(path) => path.display().to_string(),
        Source::Registry { host, .. } => host.clone(),
    };
    let reachable = Group::Source.at("registry-reachable", &place);
    let is_network = matches!(reference.source, Source::Registry { .. });
    if is_network && seen.place.offline {
        return vec![reachable.note("not asked: --offline")];
    }
    match ask(seen, reference) {
        Ok(digest) => vec![
            reachable.ok("answers"),
            Group::Source.at("registry-access", &place).ok("lets this machine read"),
            Group::Source.at("registry-tag", reference).ok(format!("is sha256:{}…", digest.short())),
        ],
        Err(error) => refused(reachable, &place, reference, &error),
    }
}

fn refused(
    reachable: super::finding::Subject,
    place: &str,
    reference: &Reference,
    error: &RegistryError,
) -> Vec<Finding> {
    let reason = crate::install::registry_reason(error);
    let access = Group::Source.at("registry-access", place);
    match error {
        RegistryError::Absent { .. } => vec![
            reachable.ok("answers"),
            access.ok("lets this machine read"),
            Group::Source.at("registry-tag", reference).problem(chain(error), reason.remedy()),
        ],
        RegistryError::Denied { .. } => {
            vec![reachable.ok("answers"), access.problem(chain(error), reason.remedy())]
        }
        // Refused here, before anything was sent: plain HTTP that is not named, or credentials that cannot be read.
        RegistryError::Refused { .. } | RegistryError::Io { .. } => {
            vec![access.problem(chain(error), "Correct what the message names under [source].")]
        }
        _ => vec![reachable.problem(chain(error), reason.remedy())],
    }
}

fn ask(seen: &Seen<'_>, reference: &Reference) -> Result<Digest, RegistryError> {
    ask_for(seen, reference, async |registry| match reference.digest() {
        // A digest has to be there as well.
        Some(digest) => registry.manifest(&digest, registry::MANIFEST_BYTES_MAX).await.map(|_| digest),
        None => registry.resolve(reference.tag().unwrap_or("latest")).await,
    })
}

/// One question, for as long as a person waits.
fn ask_for<T>(
    seen: &Seen<'_>,
    reference: &Reference,
    question: impl AsyncFnOnce(&dyn Registry) -> Result<T, RegistryError>,
) -> Result<T, RegistryError> {
    let what = reference.to_string();
    let patience = Patience { connect: CONNECT, silence: CONNECT, attempts: 2, ..Patience::default() };
    let access = RegistryAccess { patience, ..source::access(seen.config) };
    let registry = registry::open(reference, &access)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime
        .map_err(|error| RegistryError::Unreachable { what: what.clone(), detail: error.to_string() })?;
    let answer = runtime.block_on(async { timeout(TIMEOUT, question(&*registry)).await });
    // A name server that stays silent must not keep the program from ending.
    runtime.shutdown_background();
    answer.unwrap_or_else(|_| {
        Err(RegistryError::Unreachable { what, detail: format!("nothing within {} s", TIMEOUT.as_secs()) })
    })
}
