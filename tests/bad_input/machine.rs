//! A machine that is too small, too full or at work already.

use std::fs::File;
use std::io::{Read as _, Write as _};

use switchback::reason::Reason;
use switchback_bootloader::esp::{EspDir as _, FatEsp};
use switchback_partitions::device::disk::Disk as _;
use switchback_tests::small_release::{SmallRelease, build_arguments, noise};
use switchback_tests::small_state::{FILL, SmallState};

use crate::ground::{Ground, Place, ROOT_BYTES, build};
use crate::table::{Changed, Table};

#[test]
fn a_machine_without_room_is_found_out_before_anything_is_written() {
    let (ground, mut table) = (Ground::get(), Table::new("A machine that is too small, full or busy"));
    table.refused("the slot is too small", slot_too_small(&ground), Reason::SlotTooSmall, Changed::Nothing);
    let place = esp_full_of_foreign_files(&ground);
    table.refused(
        "the boot partition is full of foreign files",
        place,
        Reason::EspTooSmall,
        Changed::Nothing,
    );
    let place = state_folder_with(&ground, FILL, "700k");
    table.refused("the state folder is full", place, Reason::StateFull, Changed::Nothing);
    let place = state_folder_with(&ground, "true", "2m");
    table.refused("the state folder has no room for boot files", place, Reason::StateFull, Changed::Nothing);
    let place = state_folder_with(&ground, "mount -o remount,bind,ro .", "2m");
    table.refused("the state folder is read-only", place, Reason::StateUnreadable, Changed::Nothing);

    let place = Place::new(&ground).offers_tag("1.3");
    let mut lock = File::create(place.machine.state_dir().join("lock")).unwrap();
    writeln!(lock, "{}", std::process::id()).unwrap();
    lock.try_lock().unwrap();
    table.refused("a second instance is at work", place, Reason::Busy, Changed::Nothing);
    drop(lock);
    table.finish();
}

fn slot_too_small(ground: &std::sync::Arc<Ground>) -> Place {
    let desk = &ground.scene.desk;
    let large = SmallRelease { version: "1.5", healthy: true, root_bytes: 3 * ROOT_BYTES };
    desk.build_partition("1.5", &desk.root_image(&large).unwrap(), &["--security-version", "2"]).unwrap();
    offer(ground, "1.5")
}

/// Signs a release of the desk and offers it in a new place.
fn offer(ground: &std::sync::Arc<Ground>, version: &str) -> Place {
    let desk = &ground.scene.desk;
    desk.sign(&desk.reference(version), &[]).unwrap();
    Place::new(ground).offers_tag(version)
}

/// The boot files of 1.6 are larger than those in the slots, and there is no room for the difference.
fn esp_full_of_foreign_files(ground: &std::sync::Arc<Ground>) -> Place {
    let desk = &ground.scene.desk;
    std::fs::write(desk.path("large"), noise(9, 9 << 20)).unwrap();
    build(&ground.scene, "1.6", true, &[]);
    let mut arguments = build_arguments("1.6", "root=root-1.6.img").map(str::to_owned);
    let initrd = arguments.iter().position(|word| word == "initrd").unwrap();
    arguments[initrd] = "large".into();
    let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    arguments.extend(["--security-version", "2"]);
    desk.run(&arguments).unwrap();
    let place = offer(ground, "1.6");
    {
        let (disk, layout) = (place.machine.image().unwrap(), place.machine.layout().unwrap());
        let device = disk.partition(&layout.esp).unwrap();
        let esp = FatEsp::new(std::sync::Arc::clone(&device));
        let free = esp.space().unwrap().free_bytes;
        esp.mkdir("foreign").unwrap();
        let mut zeros = std::io::repeat(0).take(free - (2 << 20));
        esp.write_tmp("foreign/recovery.img", &mut zeros).unwrap();
        device.flush().unwrap();
    }
    place.seen_anew()
}

/// A small state folder for the command, see [`SmallState`].
fn state_folder_with(ground: &std::sync::Arc<Ground>, prepare: &str, size: &str) -> Place {
    let mut place = Place::new(ground).offers_tag("1.3");
    let state = SmallState::new(&place.machine.state_dir(), place.folder(), size, prepare).unwrap();
    place.records_after = Some(state.after.clone());
    place.under = Some(Box::new(move |command| state.command(command)));
    place
}
