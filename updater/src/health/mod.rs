//! Is this machine well.
