//! Bytes from a registry or an OCI layout folder.
