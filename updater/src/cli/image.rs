//! `image`: the author's verbs, from typed text to `publish` and back to text.
//!
//! Not here: how a release is made, signed or copied (`publish`). Rule: one digest is printed at the end of each verb,
//! alone on its line with `--json` beside it, for scripts to go on with.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Output;
use super::args::{BindArgs, BuildArgs, ImageVerb, InspectArgs, KeyKind, PushArgs, RegistryArgs, SignArgs};
use super::container;
use super::patches;
use super::progress::Display;
use super::render::bytes;
use crate::digest::Digest;
use crate::engine::Failure;
use crate::engine::source::{open, resolve};
use crate::host::bounded::read_bounded;
use crate::install::registry_reason;
use crate::progress::{Phase, Progress as _};
use crate::publish::bind::{BindError, BindRequest, Part, bind};
use crate::publish::build::{BootSource, BuildRequest, BuildStep, InitrdSource, RootSource, build};
use crate::publish::container::Container;
use crate::publish::initramfs::InitramfsRequest;
use crate::publish::inspect::{Inspection, inspect};
use crate::publish::push::{PushError, PushEvent, PushOptions, Pushed, push_release};
use crate::publish::sign::{self, Form, SigningKey};
use crate::reason::{Reason, Why};
use crate::registry::reference::{Reference, Source, Version};
use crate::registry::{Registry, RegistryAccess};

/// What every failure of these verbs leaves as it was.
const TAGS_STAND: &str = "No tag was moved and nothing that was there before was changed.";
/// What is made anew goes into a folder first.
const INTO_A_FOLDER: &str =
    "--output takes a folder, `oci:FOLDER[:TAG]`; send it on with `switchback image push`";
/// Bound of a private key file in bytes.
const KEY_BYTES_MAX: u64 = 64 * 1024;

pub(super) fn run(verb: &ImageVerb, progress: &Display) -> Result<Output, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Failure::before(Reason::Internal, e))?;
    let done = match verb {
        ImageVerb::Build(args) => runtime.block_on(run_build(args, progress)),
        ImageVerb::Bind(args) => runtime.block_on(run_bind(args, progress)),
        ImageVerb::Push(args) => runtime.block_on(run_push(args, progress)),
        ImageVerb::Sign(args) => runtime.block_on(run_sign(args)),
        ImageVerb::Inspect(args) => runtime.block_on(run_inspect(args)),
        ImageVerb::Diff(args) => runtime.block_on(patches::run_diff(args)),
        ImageVerb::Keygen { prefix, kind } => keygen(prefix, *kind),
    };
    done.map_err(|failure| Failure { untouched: TAGS_STAND, ..failure })
}

async fn run_build(args: &BuildArgs, progress: &Display) -> Result<Output, Failure> {
    let output = &args.output;
    let Source::Layout(folder) = &output.source else {
        return Err(refused(INTO_A_FOLDER.into()));
    };
    let container = match &args.from_container {
        Some(reference) => Some(container::fetch(args, reference, folder, progress).await?),
        None => None,
    };
    let image = container.as_ref().map(|unpacked| &unpacked.image);
    let (product, name, version) = container::words(args, image)?;
    let (boot, kernel) = match image {
        Some(image) if args.kernel.is_none() && args.uki.is_none() => {
            container::boot(args, image).map(|(boot, kernel)| (boot, Some(kernel)))?
        }
        _ => (boot(args)?, None),
    };
    let request = BuildRequest {
        product,
        name: name.clone(),
        version: version.clone(),
        security_version: args.security_version,
        compatible: args.compatible.clone(),
        ram_bytes: args.ram.0,
        root: image.map_or_else(|| root(args), |image| Ok(RootSource::Folder(image.root.clone())))?,
        foreign: args.foreign,
        keep_compressed_modules: args.keep_compressed_modules,
        boot,
        verity_salt: args
            .verity_salt
            .as_deref()
            .map(hex::decode)
            .transpose()
            .map_err(|e| refused(e.to_string()))?,
        level: args.level,
        like: patches::like(args, folder).await?,
        output: folder.clone(),
        tag: output.tag().map(str::to_string),
    };
    // The builder's threads report to a plain counter; the display is drawn here, where it may borrow.
    let (sender, mut steps) = tokio::sync::mpsc::unbounded_channel();
    let told: crate::publish::build::Progress = Arc::new(move |step| {
        let _ = sender.send(step);
    });
    let work = build(request, told);
    tokio::pin!(work);
    let mut shown = Shown::default();
    let built = loop {
        tokio::select! {
            Some(step) = steps.recv() => shown.step(progress, step),
            built = &mut work => break built.map_err(|e| {
                container::named(Failure::before(Reason::NotSupported, e), image)
            })?,
        }
    };
    shown.end(progress);
    let text = format!(
        "{}{name} {version} is built{}: {} of root, {} stored, root hash {}\n{}\n",
        built.notes.iter().map(|note| format!("{note}\n")).collect::<String>(),
        image.map(|image| from(args, image, kernel.as_deref())).unwrap_or_default(),
        bytes(built.root_bytes),
        bytes(built.stored_bytes),
        built.roothash,
        built.digest
    );
    let mut json = serde_json::json!({
        "answer": "built", "digest": built.digest, "layout": built.layout, "tag": built.tag, "roothash": built.roothash,
        "root_bytes": built.root_bytes, "stored_bytes": built.stored_bytes, "cmdline": built.cmdline,
        "notes": built.notes,
    });
    if let Some(image) = image {
        json["container"] =
            serde_json::json!({ "digest": image.digest, "layers": image.layers, "kernel": kernel });
    }
    Ok(done(text, json))
}

/// Which container image it was, as a part of the sentence.
fn from(args: &BuildArgs, image: &Container, kernel: Option<&str>) -> String {
    let named = args.from_container.as_ref().map(Reference::to_string).unwrap_or_default();
    let kernel = kernel.map(|version| format!(", kernel {version}")).unwrap_or_default();
    format!(" from {named} ({} layers{kernel})", image.layers)
}

/// The chunking of a large root is the only step that takes long enough for a bar.
#[derive(Default)]
struct Shown {
    bar: bool,
    done: u64,
}

impl Shown {
    fn step(&mut self, progress: &Display, step: BuildStep) {
        match step {
            BuildStep::Chunks { done, total } => {
                if !self.bar {
                    progress.begin(Phase::Chunk, total);
                    self.bar = true;
                }
                progress.advance(done.saturating_sub(self.done));
                self.done = done;
            }
            _ => self.end(progress),
        }
    }

    fn end(&mut self, progress: &Display) {
        if std::mem::take(&mut self.bar) {
            progress.end();
        }
    }
}

fn root(args: &BuildArgs) -> Result<RootSource, Failure> {
    match (&args.root, &args.partition) {
        (Some(folder), _) if !folder.is_dir() => Err(refused(format!("{} is no folder", folder.display()))),
        (Some(folder), _) => Ok(RootSource::Folder(folder.clone())),
        (None, Some(partition)) => match partition.split_once('=') {
            Some(("root", file)) => Ok(RootSource::Partition(PathBuf::from(file))),
            _ => Err(refused(format!("--partition takes `root=FILE`, not `{partition}`"))),
        },
        (None, None) => Err(refused(
            "a release needs --root FOLDER, --partition root=FILE or --from-container IMAGE".into(),
        )),
    }
}

fn boot(args: &BuildArgs) -> Result<BootSource, Failure> {
    match (&args.uki, &args.kernel) {
        (Some(uki), _) => Ok(BootSource::Uki(uki.clone())),
        (None, Some(kernel)) => Ok(BootSource::Kernel {
            kernel: kernel.clone(),
            initrd: match &args.initrd {
                Some(file) => InitrdSource::File(file.clone()),
                None => InitrdSource::Packed(InitramfsRequest {
                    init_binary: args.init_binary.clone(),
                    modules_dir: args.modules_dir.clone(),
                    modules_root: None,
                    extra_modules: args.modules.clone(),
                }),
            },
            devicetree: args.devicetree.clone(),
            cmdline: args.cmdline.clone(),
        }),
        (None, None) => Err(refused("a release needs --uki FILE or --kernel FILE".into())),
    }
}

async fn run_bind(args: &BindArgs, progress: &Display) -> Result<Output, Failure> {
    if !matches!(args.output.source, Source::Layout(_)) {
        return Err(refused(INTO_A_FOLDER.into()));
    }
    let part = async |reference: &Reference| {
        let (registry, digest) = found(reference, &args.registry).await?;
        Ok::<_, Failure>(Part { registry, digest })
    };
    let mut services = BTreeMap::new();
    for (name, reference) in &args.services {
        if services.insert(name.to_string(), part(reference).await?).is_some() {
            return Err(refused(format!("two images are named for the service `{name}`")));
        }
    }
    let request = BindRequest {
        version: args.version.clone(),
        created: jiff::Timestamp::now().to_string(),
        os: part(&args.os).await?,
        services,
        tag: args.output.tag().unwrap_or(&args.version).to_owned(),
    };
    let to = open(&args.output, &access(&args.registry))?;
    let shown = Pushing::new(progress);
    let bound = bind(&request, &*to, &|event| shown.tell(event)).await;
    shown.end();
    let digest = bound.map_err(|e| Failure::before(bind_reason(&e), e))?;
    let names: Vec<&str> = request.services.keys().map(String::as_str).collect();
    let text =
        format!("{} binds {} and {} at {}\n{digest}\n", args.version, args.os, names.join(", "), to.place());
    let json = serde_json::json!({
        "answer": "bound", "digest": digest, "place": to.place(), "tag": request.tag, "services": names,
    });
    Ok(done(text, json))
}

fn bind_reason(error: &BindError) -> Reason {
    match error {
        BindError::Push(error) => push_reason(error),
        BindError::Index(_) => Reason::FormatRefused,
        BindError::Write { source, .. } => registry_reason(source),
    }
}

/// The bar of what is copied, from one release to the next.
struct Pushing<'a> {
    progress: &'a Display,
    begun: AtomicBool,
}

impl Pushing<'_> {
    fn new(progress: &Display) -> Pushing<'_> {
        Pushing { progress, begun: AtomicBool::new(false) }
    }

    fn tell(&self, event: PushEvent<'_>) {
        match event {
            PushEvent::Begin { bytes } => {
                self.end();
                self.begun.store(true, Ordering::Relaxed);
                self.progress.begin(Phase::Push, bytes);
            }
            PushEvent::Bytes(bytes) => self.progress.advance(bytes),
            PushEvent::Blob { .. } => {}
        }
    }

    fn end(&self) {
        if self.begun.swap(false, Ordering::Relaxed) {
            self.progress.end();
        }
    }
}

async fn run_push(args: &PushArgs, progress: &Display) -> Result<Output, Failure> {
    let (from_reference, to_reference) = (&args.from, &args.to);
    let access = access(&args.registry);
    let (from, to) = (open(from_reference, &access)?, open(to_reference, &access)?);
    let digest = resolve(&*from, from_reference).await?;
    // Its own tag first: the one written at the destination, else the one it had at its source.
    let own = to_reference.tag().or(from_reference.tag()).map(str::to_string);
    let mut tags: Vec<Option<String>> = own.into_iter().chain(args.tags.iter().cloned()).map(Some).collect();
    if tags.is_empty() {
        tags.push(None);
    }
    let send = async |tag, with_signatures| {
        let shown = Pushing::new(progress);
        let options = PushOptions { tag, with_signatures };
        let pushed = push_release(&*from, &digest, &*to, &options, &|event| shown.tell(event)).await;
        shown.end();
        pushed.map_err(|e| Failure::before(push_reason(&e), e))
    };
    let mut sent = Sent::default();
    let mut patched = Vec::new();
    if !args.patch_from.is_empty() {
        // Without a tag first: who follows it finds the patches, and where none can be made no tag has moved.
        sent.add(&send(None, false).await?);
        patched = patches::attach(args, (&*from, &digest), &*to, progress).await?;
    }
    for tag in tags {
        sent.add(&send(tag, args.with_signatures).await?);
    }
    let text = format!(
        "{} is at {}: {} sent in {} blobs, {} attached\n{}{digest}\n",
        args.from,
        to.place(),
        bytes(sent.bytes),
        sent.blobs,
        sent.attached,
        patches::lines(&patched)
    );
    let json = serde_json::json!({
        "answer": "pushed", "digest": digest, "place": to.place(), "blobs_sent": sent.blobs, "bytes_sent": sent.bytes,
        "attached": sent.attached, "patches": patched,
    });
    Ok(done(text, json))
}

/// What a push has sent, over all its tags; patches that it made are not counted.
#[derive(Default)]
struct Sent {
    blobs: u64,
    bytes: u64,
    attached: u64,
}

impl Sent {
    fn add(&mut self, pushed: &Pushed) {
        self.blobs += pushed.blobs_sent;
        self.bytes += pushed.bytes_sent;
        self.attached += pushed.attached;
    }
}

fn push_reason(error: &PushError) -> Reason {
    match error {
        PushError::Copy { source, .. } => registry_reason(source),
        PushError::Release { .. } | PushError::Attached { .. } | PushError::Container { .. } => {
            Reason::FormatRefused
        }
        PushError::Bytes { .. } => Reason::CorruptBlob,
        PushError::Temporary { .. } => Reason::WriteFailed,
    }
}

async fn run_sign(args: &SignArgs) -> Result<Output, Failure> {
    let (registry, digest) = found(&args.release, &args.registry).await?;
    let pem = read_bounded(&args.key, KEY_BYTES_MAX).ok().flatten();
    let pem = pem.ok_or_else(|| refused(format!("the key {} cannot be read", args.key.display())))?;
    let failed = |e: sign::SignError| Failure::before(Reason::NotSupported, e);
    let key = SigningKey::from_pem(&pem).map_err(failed)?;
    let form = if args.legacy { Form::SimpleSigning } else { Form::Bundle };
    sign::sign(&*registry, &digest, &key, form).await.map_err(failed)?;
    let id = key.public_key().map_err(failed)?.id();
    let text = format!("{} is signed by key {id}\n{digest}\n", args.release);
    Ok(done(text, serde_json::json!({ "answer": "signed", "digest": digest, "key": id.to_string() })))
}

async fn run_inspect(args: &InspectArgs) -> Result<Output, Failure> {
    let (registry, digest) = found(&args.release, &args.registry).await?;
    let inspection =
        inspect(&*registry, &digest).await.map_err(|e| Failure::before(Reason::FormatRefused, e))?;
    let json = serde_json::to_value(&inspection).unwrap_or_default();
    Ok(Output { text: describe(&inspection), json, changed: false, reason: None })
}

fn describe(found: &Inspection) -> String {
    let mut out = format!("{} {} at {}\n{}\n", found.name, found.version, found.place, found.digest);
    out.push_str(&format!("  product            {} ({:?})\n", found.product, found.kind).to_lowercase());
    out.push_str(&format!("  security version   {}\n", found.security_version));
    let compatible =
        if found.compatible.is_empty() { "any hardware".into() } else { found.compatible.join(", ") };
    out.push_str(&format!("  compatible         {compatible}\n"));
    for slot in &found.slots {
        out.push_str(&format!(
            "  slot {:<13} {} raw, {} stored, {} chunks of {} on average, {} zero\n",
            slot.name,
            bytes(slot.raw_bytes),
            bytes(slot.blob_bytes),
            slot.chunks.chunks,
            bytes(u64::from(slot.chunks.chunk_bytes_mean)),
            bytes(slot.chunks.zero_bytes)
        ));
        if let Some(root) = &slot.verity_root {
            out.push_str(&format!("  root hash          {root}\n"));
        }
    }
    for service in &found.services {
        out.push_str(&format!("  service {:<10} sha256:{}…\n", service.name, service.digest.short()));
    }
    for file in &found.boot {
        out.push_str(&format!("  boot {:<13} {}\n", file.kind, bytes(file.bytes)));
    }
    if let Some(cmdline) = &found.cmdline {
        out.push_str(&format!("  command line       {cmdline}\n"));
    }
    out.push_str(&format!("  first download     {}\n", bytes(found.fetch_bytes)));
    match found.signatures.as_slice() {
        [] => out.push_str("  signatures         none: a device takes it only when it is signed\n"),
        signatures => {
            let forms: Vec<&str> = signatures.iter().map(|signature| signature.form).collect();
            out.push_str(&format!("  signatures         {} (not verified here)\n", forms.join(", ")));
        }
    }
    out
}

fn keygen(prefix: &std::path::Path, kind: KeyKind) -> Result<Output, Failure> {
    let kind = match kind {
        KeyKind::P256 => sign::KeyKind::P256,
        KeyKind::Ed25519 => sign::KeyKind::Ed25519,
    };
    let (private, public) = sign::write_key_pair(kind, prefix).map_err(|e| match &e {
        sign::SignError::Io { path, source } if source.kind() == std::io::ErrorKind::AlreadyExists => {
            refused(format!("{} is there already: move it away or name another prefix", path.display()))
        }
        _ => Failure::before(Reason::NotSupported, e),
    })?;
    let text = format!(
        "{} is the private key: keep it off every device.\n{} is the public one: it goes into the image and to `provision`.\n",
        private.display(),
        public.display()
    );
    Ok(done(text, serde_json::json!({ "answer": "key", "private": private, "public": public })))
}

pub(super) async fn found(
    reference: &Reference,
    args: &RegistryArgs,
) -> Result<(Box<dyn Registry>, Digest), Failure> {
    let registry = open(reference, &access(args))?;
    let digest = match &reference.version {
        Some(Version::Digest(digest)) => *digest,
        _ => resolve(&*registry, reference).await?,
    };
    Ok((registry, digest))
}

pub(super) fn access(args: &RegistryArgs) -> RegistryAccess {
    RegistryAccess {
        plain_http: args.plain_http.clone(),
        ca_file: args.ca_file.clone(),
        auth_file: args.auth_file.clone(),
        ..RegistryAccess::default()
    }
}

pub(super) fn refused(detail: String) -> Failure {
    Failure::refused(Why::new(Reason::NotSupported, detail))
}

fn done(text: String, json: serde_json::Value) -> Output {
    Output { text, json, changed: true, reason: None }
}
