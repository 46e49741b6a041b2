//! The loop observe, step, persist, act.
