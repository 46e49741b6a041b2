//! An executable with RAUC's verbs.
