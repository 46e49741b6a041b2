//! One layer, a tar archive, put on the tree.
//!
//! Not here: where the bytes come from (`source`), what paths mean (`tree`). Rule: every byte that comes out of the
//! decoder is counted against the caller's limit and hashed, and the layer counts only when the hash is the config's.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use tar::EntryType;

use super::tree::{Kind, Meta, Tree, show};
use crate::digest::Digest;
use crate::progress::Progress;

/// The largest extended header (names, attributes) of one entry, in bytes. Linux takes 64 KiB of attributes a file.
const EXTENDED_BYTES_MAX: u64 = 1 << 20;
/// What names a deletion: `.wh.NAME` (OCI image-spec, layer.md, "Whiteouts").
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Where a pax header keeps extended attributes.
const XATTR_KEY: &[u8] = b"SCHILY.xattr.";

/// How a layer is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

impl Packing {
    /// By media type, OCI's and docker's; none for what is no layer.
    pub fn of(media_type: &str) -> Option<Packing> {
        let rest = [
            "application/vnd.oci.image.layer.v1.tar",
            "application/vnd.oci.image.layer.nondistributable.v1.tar",
            "application/vnd.docker.image.rootfs.diff.tar",
            "application/vnd.docker.image.rootfs.foreign.diff.tar",
        ];
        let rest = rest.iter().find_map(|prefix| media_type.strip_prefix(prefix))?;
        match rest {
            "" => Some(Packing::Plain),
            "+gzip" | ".gzip" => Some(Packing::Gzip),
            "+zstd" | ".zstd" => Some(Packing::Zstd),
            _ => None,
        }
    }
}

/// Why a layer was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// An entry that no honest layer has, or that cannot be kept.
    #[error("its entry `{path}` is refused: {reason}")]
    Entry {
        /// The path, as the layer gives it.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// More bytes than the caller allows.
    #[error(
        "unpacked, the image has more than the {limit} bytes that are allowed; raise {knob} if that is right"
    )]
    TooLarge {
        /// The limit.
        limit: u64,
        /// What raises it.
        knob: &'static str,
    },
    /// The unpacked bytes are others than the config names.
    #[error("unpacked, its bytes have the digest {found}; the image's config says {expected}")]
    OtherBytes {
        /// Of the bytes.
        found: Digest,
        /// Of the config (`rootfs.diff_ids`).
        expected: Digest,
    },
    /// A broken archive or a file that cannot be written.
    #[error("it cannot be unpacked")]
    Io(#[from] io::Error),
}

/// What is left of the bytes that all layers may have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    pub limit: u64,
    pub left: u64,
    pub knob: &'static str,
}

/// Where contents go, each file under the next number.
#[derive(Debug)]
pub(crate) struct Contents {
    pub folder: PathBuf,
    pub count: u64,
}

impl Contents {
    pub fn path(&self, number: u64) -> PathBuf {
        self.folder.join(number.to_string())
    }

    /// Copies all of `reader`, which must have `bytes` bytes.
    fn keep(&mut self, reader: &mut impl Read, bytes: u64) -> io::Result<u64> {
        let number = self.count;
        self.count += 1;
        let mut file = File::create_new(self.path(number))?;
        if io::copy(reader, &mut file)? != bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(number)
    }
}

/// Puts the layer in `file` on the tree. Packed bytes are told of as they are read.
pub(crate) fn apply(
    (file, packing): (&Path, Packing),
    diff_id: &Digest,
    budget: &mut Budget,
    (tree, contents): (&mut Tree, &mut Contents),
    progress: &dyn Progress,
) -> Result<(), LayerError> {
    let packed = BufReader::with_capacity(1 << 17, Told { inner: File::open(file)?, progress });
    let unpacked: Box<dyn Read + '_> = match packing {
        Packing::Plain => Box::new(packed),
        Packing::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(packed)),
        Packing::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(packed)?),
    };
    let mut counted = Counted { inner: unpacked, hash: Sha256::new(), left: budget.left, over: false };
    tree.next_layer();
    let read = read_archive(&mut counted, tree, contents);
    if counted.over {
        return Err(LayerError::TooLarge { limit: budget.limit, knob: budget.knob });
    }
    read?;
    budget.left = counted.left;
    let found = Digest::from_raw(counted.hash.finalize().into());
    match found == *diff_id {
        true => Ok(()),
        false => Err(LayerError::OtherBytes { found, expected: *diff_id }),
    }
}

fn read_archive(
    source: &mut Counted<'_>,
    tree: &mut Tree,
    contents: &mut Contents,
) -> Result<(), LayerError> {
    let mut archive = tar::Archive::new(&mut *source);
    let mut extended = Extended::default();
    // Raw: the crate's own reading of extended headers ends an attribute at its first line feed.
    for entry in archive.entries()?.raw(true) {
        let mut entry = entry?;
        if extended.take(&mut entry)? {
            continue;
        }
        let extended = std::mem::take(&mut extended);
        let path = extended.path.unwrap_or_else(|| entry.path_bytes().into_owned());
        let target = extended.target.or_else(|| entry.link_name_bytes().map(|name| name.into_owned()));
        let refused = |reason: String| LayerError::Entry { path: show(&path), reason };
        if extended.sparse || entry.header().entry_type() == EntryType::GNUSparse {
            return Err(refused("sparse files are not read; pack the layer without them".into()));
        }
        if extended.size.is_some_and(|size| size != entry.size()) {
            return Err(refused("it has more than the 8 GiB that a plain tar header can say".into()));
        }
        if white_out(tree, &path).map_err(refused)? {
            continue;
        }
        let meta = meta(entry.header(), extended.uid, extended.gid, extended.xattrs)?;
        put(&mut entry, (&path, target), meta, tree, contents)?;
    }
    if !extended.is_empty() {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    // What follows the archive's end belongs to the bytes that the config names.
    io::copy(source, &mut io::sink())?;
    Ok(())
}

/// True when the entry is a deletion, which is carried out.
fn white_out(tree: &mut Tree, path: &[u8]) -> Result<bool, String> {
    let path = path.strip_suffix(b"/").unwrap_or(path);
    let at = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    let (folder, name) = path.split_at(at);
    match name.strip_prefix(WHITEOUT) {
        None => Ok(false),
        Some(_) if name == OPAQUE => tree.white_out_all_in(folder).map(|()| true),
        // Other names of this form are the book-keeping of file systems (`.wh..wh.aufs`).
        Some(rest) if rest.starts_with(WHITEOUT) => Ok(true),
        Some(rest) => tree.white_out(folder, rest).map(|()| true),
    }
}

fn put<R: Read>(
    entry: &mut tar::Entry<'_, R>,
    (path, target): (&[u8], Option<Vec<u8>>),
    meta: Meta,
    tree: &mut Tree,
    contents: &mut Contents,
) -> Result<(), LayerError> {
    let refused = |reason: String| LayerError::Entry { path: show(path), reason };
    let numbers = |header: &tar::Header| -> Result<(u32, u32), LayerError> {
        let word = |number: io::Result<Option<u32>>| Ok::<_, LayerError>(number?.unwrap_or(0));
        Ok((word(header.device_major())?, word(header.device_minor())?))
    };
    let target = || target.clone().ok_or_else(|| refused("it is a link that names nothing".into()));
    let kind = match entry.header().entry_type() {
        // Old archives mark folders by a slash alone.
        EntryType::Regular | EntryType::Continuous if path.ends_with(b"/") => Kind::empty_folder(),
        EntryType::Regular | EntryType::Continuous => {
            let bytes = entry.size();
            Kind::File(contents.keep(entry, bytes)?)
        }
        EntryType::Directory => Kind::empty_folder(),
        EntryType::Symlink => Kind::Symlink(target()?),
        EntryType::Link => return tree.link(path, &target()?).map_err(refused),
        EntryType::Char => {
            let (major, minor) = numbers(entry.header())?;
            Kind::CharDevice(major, minor)
        }
        EntryType::Block => {
            let (major, minor) = numbers(entry.header())?;
            Kind::BlockDevice(major, minor)
        }
        EntryType::Fifo => Kind::Fifo,
        other => {
            return Err(refused(format!("its type {:?} is none that a root holds", other.as_byte() as char)));
        }
    };
    tree.put(path, meta, kind).map_err(refused)
}

fn meta(
    header: &tar::Header,
    uid: Option<u64>,
    gid: Option<u64>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
) -> io::Result<Meta> {
    let number = |extended: Option<u64>, plain: io::Result<u64>| {
        let number = extended.map_or(plain, Ok)?;
        // The last one means "unchanged" to the system.
        u32::try_from(number).ok().filter(|number| *number != u32::MAX).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, format!("{number} is no user or group"))
        })
    };
    Ok(Meta {
        mode: header.mode()? & 0o7777,
        uid: number(uid, header.uid())?,
        gid: number(gid, header.gid())?,
        xattrs,
    })
}

/// What headers before an entry say about it: pax (POSIX.1-2017, pax, "pax Extended Header") and GNU's long names.
#[derive(Debug, Default)]
struct Extended {
    path: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    sparse: bool,
    any: bool,
}

impl Extended {
    fn is_empty(&self) -> bool {
        !self.any
    }

    /// True when the entry is such a header, which is taken in.
    fn take<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> Result<bool, LayerError> {
        let kind = entry.header().entry_type();
        if kind.is_pax_global_extensions() {
            // Comments of the archive's maker, as every engine reads them.
            return Ok(true);
        }
        if !(kind.is_pax_local_extensions() || kind.is_gnu_longname() || kind.is_gnu_longlink()) {
            return Ok(false);
        }
        self.any = true;
        if entry.size() > EXTENDED_BYTES_MAX {
            let reason = format!("its extended header has more than {EXTENDED_BYTES_MAX} bytes");
            return Err(LayerError::Entry { path: show(&entry.path_bytes()), reason });
        }
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes)?;
        if bytes.len() as u64 != entry.size() {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let text = || bytes.strip_suffix(b"\0").unwrap_or(&bytes).to_vec();
        match kind {
            EntryType::GNULongName => self.path = Some(text()),
            EntryType::GNULongLink => self.target = Some(text()),
            _ => self.records(&bytes).ok_or_else(|| LayerError::Entry {
                path: show(&entry.path_bytes()),
                reason: "its extended header is malformed".into(),
            })?,
        }
        Ok(true)
    }

    /// Records `LENGTH KEY=VALUE\n`, where the length counts all of the record.
    fn records(&mut self, mut bytes: &[u8]) -> Option<()> {
        while !bytes.is_empty() {
            let space = bytes.iter().take(8).position(|byte| *byte == b' ')?;
            let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
            let record = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
            let equals = record.iter().position(|byte| *byte == b'=')?;
            self.record(&record[..equals], &record[equals + 1..])?;
            bytes = &bytes[length..];
        }
        Some(())
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        let number = || std::str::from_utf8(value).ok()?.parse().ok();
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.target = Some(value.to_vec()),
            b"size" => self.size = Some(number()?),
            b"uid" => self.uid = Some(number()?),
            b"gid" => self.gid = Some(number()?),
            _ if key.starts_with(b"GNU.sparse.") => self.sparse = true,
            _ => {
                if let Some(name) = key.strip_prefix(XATTR_KEY) {
                    self.xattrs.insert(name.to_vec(), value.to_vec());
                }
            }
        }
        Some(())
    }
}

/// Hashes what passes, and ends with an error at the byte that is one too many.
struct Counted<'a> {
    inner: Box<dyn Read + 'a>,
    hash: Sha256,
    left: u64,
    over: bool,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.inner.read(buffer)?;
        match self.left.checked_sub(bytes as u64) {
            Some(left) => self.left = left,
            None => {
                self.over = true;
                return Err(io::ErrorKind::FileTooLarge.into());
            }
        }
        self.hash.update(&buffer[..bytes]);
        Ok(bytes)
    }
}

/// Tells of what passes, until the person asks to stop.
struct Told<'a, R> {
    inner: R,
    progress: &'a dyn Progress,
}

impl<R: Read> Read for Told<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.inner.read(buffer)?;
        self.progress.advance(bytes as u64);
        if self.progress.stopped() {
            return Err(io::Error::other("stopped"));
        }
        Ok(bytes)
    }
}
