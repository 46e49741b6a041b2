//! systemd-boot.
