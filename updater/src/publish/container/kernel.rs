//! The kernel, its modules and its initramfs inside a container image.
//!
//! Not here: which of them is used (`cli`), modules by name (`publish::modules`). Rule: boot files travel as boot files, so
//! they leave the root; of two kernels none is chosen silently.

use std::collections::BTreeMap;

use crate::container::tree::{Found, Kind, Tree};

const MODULE_FOLDERS: [&[u8]; 2] = [b"usr/lib/modules", b"lib/modules"];
const BOOT: &[u8] = b"boot";
/// Names of the boot files that lie beside modules, as bootc and Fedora have them.
const KERNEL_NAME: &[u8] = b"vmlinuz";
const INITRD_NAME: &[u8] = b"initramfs.img";

/// One kernel and what belongs to it: numbers of contents, and the path of its folder of modules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Kernel {
    pub kernel: Option<u64>,
    pub initrd: Option<u64>,
    pub modules: Option<Vec<Vec<u8>>>,
    /// The modules were indexed by `depmod`.
    pub indexed: bool,
}

/// Takes all boot files out of the tree and gives them by their kernel's version.
pub(super) fn take(tree: &mut Tree) -> BTreeMap<String, Kernel> {
    let mut kernels = BTreeMap::new();
    for folder in MODULE_FOLDERS {
        let Some(found) = tree.find(folder) else { continue };
        let versions: Vec<_> = tree.entries(found.id).map(|(name, _)| name.clone()).collect();
        for name in versions {
            take_modules(tree, folder, &name, &mut kernels);
        }
    }
    let Some(boot) = tree.find(BOOT) else { return kernels };
    let names: Vec<_> = tree.entries(boot.id).map(|(name, _)| name.clone()).collect();
    for name in names {
        let number = content(tree, &[BOOT, &name].join(&b'/'));
        if let Some(version) = version_after(&name, "vmlinuz-") {
            let entry: &mut Kernel = kernels.entry(version).or_default();
            entry.kernel = entry.kernel.or(number);
        } else if let Some(version) = version_after(&name, "initrd.img-").or(initramfs_version(&name)) {
            let entry: &mut Kernel = kernels.entry(version).or_default();
            entry.initrd = entry.initrd.or(number);
        }
    }
    // Not where a link leads to: that may be any folder of the root.
    if boot.path == [BOOT] {
        empty(tree, &boot);
    }
    kernels
}

fn take_modules(tree: &mut Tree, folder: &[u8], name: &[u8], kernels: &mut BTreeMap<String, Kernel>) {
    let Some(version) = plain(name) else { return };
    let path = [folder, name].join(&b'/');
    let Some(found) = tree.find(&path) else { return };
    let Kind::Folder(_) = tree.node(found.id).kind else { return };
    let inside = |file: &[u8]| [&path[..], file].join(&b'/');
    let (kernel, initrd) = (content(tree, &inside(KERNEL_NAME)), content(tree, &inside(INITRD_NAME)));
    let indexed = content(tree, &inside(b"modules.dep")).is_some();
    tree.remove(found.id, KERNEL_NAME);
    tree.remove(found.id, INITRD_NAME);
    // The second of the two folders is mostly a link to the first.
    let entry = kernels.entry(version).or_default();
    entry.kernel = entry.kernel.or(kernel);
    entry.initrd = entry.initrd.or(initrd);
    if entry.modules.is_none() {
        entry.modules = Some(found.path);
        entry.indexed = indexed;
    }
}

/// The number of a file's contents, through links.
fn content(tree: &Tree, path: &[u8]) -> Option<u64> {
    match tree.node(tree.find(path)?.id).kind {
        Kind::File(number) => Some(number),
        _ => None,
    }
}

fn empty(tree: &mut Tree, folder: &Found) {
    let names: Vec<_> = tree.entries(folder.id).map(|(name, _)| name.clone()).collect();
    for name in names {
        tree.remove(folder.id, &name);
    }
}

fn version_after(name: &[u8], prefix: &str) -> Option<String> {
    plain(name.strip_prefix(prefix.as_bytes())?)
}

/// Fedora's `initramfs-VERSION.img`.
fn initramfs_version(name: &[u8]) -> Option<String> {
    plain(name.strip_prefix(b"initramfs-")?.strip_suffix(b".img")?)
}

/// A version as text, if it is one that a folder of modules may have.
fn plain(name: &[u8]) -> Option<String> {
    let good = |byte: &u8| byte.is_ascii_alphanumeric() || b".-_+~".contains(byte);
    let text = std::str::from_utf8(name).ok()?;
    (!text.is_empty() && !text.starts_with('.') && name.iter().all(good)).then(|| text.to_owned())
}
