//! The reference appliance: an OS whose only services are containers, moved and moved back while clients ask, in a machine that is
//! killed, restarted and looked into.
//!
//! Not here: how it is made (`support/lab/appliance.rs`), how the table is run (`support/lab/table.rs`). Rule: clients are on the host and
//! come in by the machine's network card; what they see is what counts.

#[path = "appliance/disk.rs"]
mod disk;
#[path = "appliance/kills.rs"]
mod kills;
#[path = "appliance/moves.rs"]
mod moves;
#[path = "appliance/releases.rs"]
mod releases;
#[path = "appliance/restarts.rs"]
mod restarts;
#[path = "appliance/shape.rs"]
mod shape;
#[path = "appliance/stage.rs"]
mod stage;
#[path = "appliance/systemd.rs"]
mod systemd;
#[path = "appliance/tour.rs"]
mod tour;

use std::process::ExitCode;

use switchback_tests::lab::table::{self, Table, Wish, row};

const SCENARIOS: &[table::Scenario] = &[
    row("it_is_small_and_has_two_users", true, shape::small_with_two_users),
    row("a_service_moves_under_load", true, moves::good),
    row("a_bad_service_is_left_again_under_load", true, moves::bad),
    row("a_restart_and_a_killed_supervisor_change_nothing", true, restarts::nothing_changes),
    row("an_os_and_its_services_come_and_go_together", true, releases::come_and_go),
    row("a_service_that_fails_takes_its_os_back", true, releases::returns_whole),
    row("the_same_daemon_serves_under_systemd", true, systemd::serves_and_moves),
    row("killed_at_each_step_exactly_one_slot_serves", true, kills::at_each_step),
];

/// One machine at a time: what is measured is not to wait for another.
const WORKERS: usize = 1;

fn main() -> ExitCode {
    let wish = Wish::of_command_line();
    if wish.says("--disk") {
        return disk::make();
    }
    if wish.says("--tour") {
        return table::tell("tour", true, tour::tell);
    }
    Table { group: "appliance", scenarios: SCENARIOS, workers: WORKERS }.run(&wish)
}
