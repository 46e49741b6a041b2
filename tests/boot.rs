//! The boot lab's scenarios: does the machine come back?
//!
//! Not here: the machine and how the table is run (`support/lab`). Rule: what counts is what the machine says after it came back, and
//! what the standard tools find on its disk.

#[path = "boot/book.rs"]
mod book;
#[path = "boot/damaged.rs"]
mod damaged;
#[path = "boot/demo.rs"]
mod demo;
#[path = "boot/good.rs"]
mod good;
#[path = "boot/kills.rs"]
mod kills;
#[path = "boot/power.rs"]
mod power;
#[path = "boot/recipes.rs"]
mod recipes;
#[path = "boot/returns.rs"]
mod returns;
#[path = "boot/systemd.rs"]
mod systemd;
#[path = "boot/witness.rs"]
mod witness;

use std::process::ExitCode;

use switchback_tests::lab::table::{Table, Wish, row};
use switchback_tests::lab::{scene, table};

/// Longest first, so that two at a time end together.
const SCENARIOS: &[table::Scenario] = &[
    row("systemd_failing_unit_comes_back_with_bless_boot", false, systemd::with_bless_boot),
    row("systemd_failing_unit_comes_back_without_bless_boot", false, systemd::without_bless_boot),
    row("systemd_trial_that_nobody_judges_comes_back", false, systemd::deadline_timer),
    row("freeze_ends_by_the_watchdog", false, returns::freezes),
    row("rollback_and_update_again_five_times", false, good::five_cycles),
    row("hang_ends_by_the_deadline", false, returns::hangs),
    row("release_without_updater_comes_back", false, returns::without_updater),
    row("hang_before_the_watchdog_driver_comes_back", false, returns::hangs_early),
    row("wrong_root_hash_comes_back", false, damaged::root_hash_wrong),
    row("second_bad_release_comes_back_too", false, returns::twice),
    row("power_cut_at_every_start_is_no_verdict", false, power::cut_at_every_start),
    row("disk_error_while_writing_is_survived", false, power::disk_fails_while_writing),
    row("kernel_panic_comes_back", true, returns::panics),
    row("kernel_panic_comes_back_under_systemd_boot_257", false, returns::panics_under_the_newer_loader),
    row("failing_health_check_comes_back", true, returns::unhealthy),
    row("the_book_gets_a_newcomer_started", false, book::get_started),
    row("init_that_exits_comes_back", false, returns::exits),
    row("broken_root_comes_back", false, damaged::root_broken),
    row("release_without_network_comes_back", false, returns::offline),
    row("missing_kernel_comes_back", false, damaged::kernel_missing),
    row("kernel_that_does_not_load_comes_back", true, damaged::kernel_garbage),
    row("uki_that_does_not_load_comes_back_under_systemd_boot_257", false, damaged::uki_garbage_on_257),
    row("kernel_that_does_not_load_comes_back_under_systemd_boot_262", false, damaged::kernel_garbage_on_262),
    row("container_recipe_boots", false, recipes::container),
    row("good_update_is_confirmed", true, good::update),
    row("unified_kernel_image_is_confirmed", false, good::unified),
    row("killed_while_checking", false, kills::checking),
    row("killed_while_writing", true, kills::writing),
    row("killed_while_writing_boot_files", false, kills::boot_files),
    row("killed_while_arming", false, kills::arming),
    row("killed_on_trial", false, kills::on_trial),
];

/// Machines at once: one for each core of the smallest host.
const WORKERS: usize = 2;

fn main() -> ExitCode {
    let wish = Wish::of_command_line();
    if wish.says("--demo") {
        return table::tell("demo", true, demo::tell);
    }
    Table { group: "boot", scenarios: SCENARIOS, workers: WORKERS }.run(&wish)
}
