//! dm-verity hash tree and root hash.
