//! After each boot: observe, health-check, confirm or return.
