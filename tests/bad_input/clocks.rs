//! A clock that begins at 1970, and one that is in 2100: only TLS certificates have dates that are judged.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use serde_json::json;
use switchback::reason::Reason;
use switchback_tests::certificates::{Certificates, at};
use switchback_tests::lab::registry::Registry;
use switchback_tests::machine::text;

use crate::ground::{Ground, Place};
use crate::table::{Changed, Table};

const DAYS_A_YEAR: u32 = 365;
const Y1970: &str = "1970-01-02 00:00:00";
const Y2100: &str = "2100-01-01 00:00:00";

/// A registry whose certificate is valid in those years, with release 1.3.
struct Dated {
    registry: Registry,
    authority: PathBuf,
    _folder: tempfile::TempDir,
}

impl Dated {
    fn new(ground: &Ground, from: &str, years: u32) -> Dated {
        let folder = tempfile::tempdir().unwrap();
        let certificates =
            Certificates::issued(&folder.path().join("tls"), from, years * DAYS_A_YEAR).unwrap();
        let registry = ground.registry(&folder.path().join("registry"), &certificates.settings());
        Dated { registry, authority: certificates.authority, _folder: folder }
    }

    fn source(&self) -> (String, String) {
        (format!("{}/os:1.3", self.registry.host()), format!("ca_file = {:?}", self.authority))
    }

    /// A place that looks there, at a time of its own.
    fn place(&self, ground: &Arc<Ground>, time: &'static str) -> Place {
        let (image, more) = self.source();
        let mut place = Place::new(ground).looks_at(&image, &more);
        place.under = Some(Box::new(move |command| under(time, command)));
        place
    }
}

fn under(time: &str, command: &Command) -> Command {
    let mut wrapped = at(time, command.get_program().as_ref()).unwrap();
    wrapped.args(command.get_args());
    wrapped
}

#[test]
fn a_wrong_clock_neither_locks_the_machine_out_nor_lets_in_what_is_expired() {
    let (ground, mut table) = (Ground::get(), Table::new("The clock"));
    for (time, year) in [(Y1970, "1970"), (Y2100, "2100")] {
        let said = under(time, Command::new("date").arg("+%Y")).output().unwrap();
        assert_eq!(text(&said.stdout).trim(), year, "the clock is another for the program");
    }
    let good = Dated::new(&ground, "2020-01-01 00:00:00", 70);
    let long_ago = Dated::new(&ground, "1970-01-01 00:00:00", 1);

    let place = good.place(&ground, Y1970);
    table.taken("1970, a certificate that is valid today", &place);
    let (broken, nothing) = (Reason::RegistryBroken, Changed::Nothing);
    let place = long_ago.place(&ground, Y1970);
    table.refused("1970, a certificate that expired in 1971", place, broken, nothing);

    // A trusted key signed a release of 2050, which lies in a slot: so it is later than that, whatever the clock says.
    let until_2030 = Dated::new(&ground, "2020-01-01 00:00:00", 10);
    let place = made_in_2050(&ground, &until_2030);
    table.refused(
        "1970, a release of 2050 lies in a slot, a certificate that expired in 2030",
        place,
        broken,
        nothing,
    );

    let mut place = good.place(&ground, Y2100);
    table.refused("2100, a certificate that is valid today", &place, broken, nothing);
    // It only froze: with the clock put right, the same order is taken.
    place.under = None;
    table.taken("… and the clock put right again", &place);
    table.finish();
}

/// The ground's machine after an update to a release whose manifest says 2050.
fn made_in_2050(ground: &Arc<Ground>, registry: &Dated) -> Place {
    let place = Place::new(ground).offers(|_, draft| {
        draft
            .manifest
            .annotations
            .insert("org.opencontainers.image.created".into(), "2050-01-01T00:00:00Z".into());
        draft.config["name"] = json!("demo-os of 2050");
    });
    let armed = place.command(&["update", "--json"]).output().unwrap();
    assert!(armed.status.success(), "{}", text(&armed.stderr));
    let (image, more) = registry.source();
    let mut place = place.looks_at(&image, &more).seen_anew();
    place.under = Some(Box::new(move |command| under(Y1970, command)));
    place
}
