//! The contract on a real shell script that plays board script and firmware, and what a script can do wrong.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Instant;

use super::*;
use crate::contract::{self, RecordingEsp, Rig, sample_release};
use crate::esp::MountedEsp;

/// A board whose boot state is a folder of small files. `power-on` is what its boot script does: the primary slot if
/// it is good and has tries, else the other one.
const BOARD: &str = r#"#!/bin/sh
set -eu
cd "$(dirname "$0")/env"
echo "$*" >> ../log
put() { if [ "$(cat "$1" 2>/dev/null || true)" != "$2" ]; then echo "$2" > "$1.new"; mv "$1.new" "$1"; echo w >> ../writes; fi; }
good() { [ "$(cat "state.$1")" = good ]; }
other() { if [ "$1" = rootfs.0 ]; then echo rootfs.1; else echo rootfs.0; fi; }
case "$1" in
  get-primary) cat primary ;;
  set-primary) put primary "$2"; put "state.$2" good; put "tries.$2" 3 ;;
  get-state) cat "state.$2" ;;
  set-state) put "state.$2" "$3"; put "tries.$2" for-ever ;;
  get-current) cat current ;;
  power-on)
    slot="$(cat primary)"
    good "$slot" || slot="$(other "$slot")"
    good "$slot" || exit 7
    tries="$(cat "tries.$slot")"
    if [ "$tries" = 0 ]; then put "state.$slot" bad; slot="$(other "$slot")"; fi
    if [ "$tries" != for-ever ] && [ "$tries" != 0 ]; then put "tries.$slot" $((tries - 1)); fi
    echo "$slot" > current ;;
  *) echo "no such verb: $1" >&2; exit 64 ;;
esac
"#;

struct Board {
    files: Arc<RecordingEsp>,
    folder: tempfile::TempDir,
}

impl Board {
    fn new() -> Board {
        let folder = tempfile::tempdir().unwrap();
        for name in ["env", "esp"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        for (name, text) in [("primary", "rootfs.0"), ("state.rootfs.0", "bad"), ("state.rootfs.1", "bad")] {
            fs::write(folder.path().join("env").join(name), format!("{text}\n")).unwrap();
        }
        let board = Board {
            files: Arc::new(RecordingEsp::new(Arc::new(MountedEsp::new(folder.path().join("esp"))))),
            folder,
        };
        board.script(BOARD);
        board
    }

    fn program(&self) -> PathBuf {
        self.folder.path().join("board.sh")
    }

    fn script(&self, text: &str) {
        fs::write(self.program(), text).unwrap();
        fs::set_permissions(self.program(), fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn custom(&self) -> Custom {
        let names = ["rootfs.0".to_string(), "rootfs.1".to_string()];
        Custom::new(self.program(), names, Duration::from_secs(20), self.files.clone())
    }

    fn lines(&self, file: &str) -> usize {
        fs::read_to_string(self.folder.path().join(file)).map_or(0, |text| text.lines().count())
    }
}

impl Rig for Board {
    fn bootloader(&self) -> Box<dyn Bootloader> {
        Box::new(self.custom())
    }
    fn power_on(&self) -> Option<Slot> {
        self.custom().run(&["power-on"]).ok().map(|_| self.custom().current().unwrap())
    }
    fn writes(&self) -> usize {
        self.files.steps() + self.lines("writes")
    }
    fn scratch(&self) -> &Path {
        self.folder.path()
    }
    fn shows_tries(&self) -> bool {
        false
    }
}

#[test]
fn the_contract_holds_on_a_board_script() {
    contract::check(&mut || Box::new(Board::new()));
}

#[test]
fn a_machine_taken_over_from_elsewhere_reads_as_its_script_says() {
    let board = Board::new();
    board.custom().set_primary(Slot::A).unwrap();
    assert_eq!(
        board.custom().read().unwrap(),
        BootState { slots: [SlotBoot::Good, SlotBoot::Bad], wanted: Slot::A }
    );
}

#[test]
fn an_arm_cut_before_set_primary_reads_as_not_armed() {
    let board = Board::new();
    board.custom().set_primary(Slot::A).unwrap();
    let (custom, files) = (board.custom(), sample_release(board.scratch(), "1.1"));
    custom.forget(Slot::B).unwrap();
    custom.prepare(Slot::B, &files).unwrap();
    let before = custom.read().unwrap();
    board.script(
        &BOARD.replace("set-primary)", "set-primary) echo the flash is worn >&2; exit 5;;\n  never)"),
    );
    let refused = custom.write(&before.arm(Slot::B, 3)).unwrap_err();
    assert!(refused.to_string().contains("the flash is worn"), "{refused}");
    board.script(BOARD);
    assert_eq!(custom.read().unwrap(), before.revert(Slot::B).forget(Slot::B));
    custom.write(&before.arm(Slot::B, 3)).unwrap();
    assert_eq!(board.power_on(), Some(Slot::B));
}

#[test]
fn a_script_that_fails_hangs_or_answers_nonsense_is_an_error_that_says_so() {
    let board = Board::new();
    for (script, expected) in [
        ("#!/bin/sh\necho rootfs.7\n", "answered `rootfs.7`, expected `rootfs.0` or `rootfs.1`"),
        (
            "#!/bin/sh\n[ $1 = get-primary ] && echo rootfs.0 || echo maybe\n",
            "answered `maybe`, expected `good` or `bad`",
        ),
        ("#!/bin/sh\necho no environment found >&2\nexit 3\n", "no environment found"),
    ] {
        board.script(script);
        let error = board.custom().read().unwrap_err().to_string();
        assert!(error.starts_with("while running") && error.contains(expected), "{error}");
    }
    board.script("#!/bin/sh\nsleep 60\n");
    let slow = Custom { timeout: Duration::from_millis(300), ..board.custom() };
    let start = Instant::now();
    assert!(slow.read().unwrap_err().to_string().contains("longer than 0.3 s"));
    assert!(start.elapsed() < Duration::from_secs(20));
    fs::remove_file(board.program()).unwrap();
    assert!(matches!(board.custom().read(), Err(BootError::BoardStart { .. })));
}
