//! From verified release to verified slot.
