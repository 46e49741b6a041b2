//! The name by which servers know a machine.
//!
//! Rule: the machine id itself never leaves the machine: whoever knows it could tell what others derive from it
//! (machine-id(5)). What is told is derived from it by systemd's rule, so an operator finds it with
//! `systemd-id128 machine-id --app-specific=e9b78b0c6c554e959fa64c8dcf98de57`.

use std::fmt;
use std::io::Read;
use std::path::Path;

use aws_lc_rs::hmac;

/// This program's own id in that derivation; another would give every machine another name.
const APPLICATION: [u8; 16] = 0xe9b7_8b0c_6c55_4e95_9fa6_4c8d_cf98_de57_u128.to_be_bytes();

/// Names a machine to servers: 32 lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeId(String);

impl NodeId {
    /// Of a machine id: 32 hexadecimal digits, as in `/etc/machine-id`. None for anything else, `uninitialized` among it.
    pub fn of(machine_id: &str) -> Option<NodeId> {
        let machine: [u8; 16] = hex::decode(machine_id.trim()).ok()?.try_into().ok()?;
        // sd_id128_get_machine_app_specific(3): HMAC-SHA256 with the machine id as key, cut to 128 bits, marked as a UUID of
        // version 4.
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &machine), &APPLICATION);
        let mut id = [0; 16];
        id.iter_mut().zip(tag.as_ref()).for_each(|(to, from)| *to = *from);
        id[6] = id[6] & 0x0f | 0x40;
        id[8] = id[8] & 0x3f | 0x80;
        (machine != [0; 16]).then(|| NodeId(hex::encode(id)))
    }

    /// Of the system whose root this is.
    ///
    /// # Errors
    /// When `etc/machine-id` cannot be read, or holds no machine id yet.
    pub fn in_root(root: &Path) -> std::io::Result<NodeId> {
        let mut text = String::new();
        std::fs::File::open(root.join("etc/machine-id"))?.take(64).read_to_string(&mut text)?;
        NodeId::of(&text).ok_or_else(|| std::io::Error::other("etc/machine-id holds no machine id"))
    }

    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `systemd-id128` of systemd 252 derives it.
    #[test]
    fn a_node_is_named_as_systemd_derives_it() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        let file = root.path().join("etc/machine-id");
        std::fs::write(&file, "0123456789abcdef0123456789abcdef\n").unwrap();
        assert_eq!(NodeId::in_root(root.path()).unwrap().as_str(), "46524e8a9b1c48398e4b82ab22decf45");
        for odd in ["uninitialized\n", "", "0123", "00000000000000000000000000000000", "é"] {
            std::fs::write(&file, odd).unwrap();
            assert!(NodeId::in_root(root.path()).is_err(), "{odd}");
        }
    }
}
