//! The end of a test program without a harness, as cargo's own prints it.
//!
//! Not here: what was run. Rule: every failure is told in full once more, behind everything else.

use std::process::ExitCode;
use std::time::Duration;

/// Prints the failures and the counts of `outcomes`: name, and why it failed if it did. `filtered` were not asked for.
pub fn summary(outcomes: &[(String, Option<&str>)], filtered: usize, took: Duration) -> ExitCode {
    let failed: Vec<(&String, &str)> =
        outcomes.iter().filter_map(|(name, failure)| Some((name, (*failure)?))).collect();
    if !failed.is_empty() {
        println!("\nfailures:");
        for (name, failure) in &failed {
            println!("\n---- {name} ----\n{failure}");
        }
    }
    println!(
        "\ntest result: {}. {} passed; {} failed; 0 ignored; 0 measured; {filtered} filtered out; finished in {:.2}s\n",
        if failed.is_empty() { "ok" } else { "FAILED" },
        outcomes.len() - failed.len(),
        failed.len(),
        took.as_secs_f64(),
    );
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
