//! A machine that updates by itself: `switchback daemon` with a `[schedule]`, by the real program on a disk image.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use switchback_partitions::slot::Slot;
use switchback_tests::faults::{FaultServer, Reply};
use switchback_tests::machine::Machine;
use switchback_tests::story::{ask, boot_of, configured_machine, publish, status};

/// Long enough for a small update on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A daemon at work; killed, not stopped, when it is dropped.
struct Daemon<'a> {
    machine: &'a Machine,
    child: Child,
}

impl<'a> Daemon<'a> {
    fn start(machine: &'a Machine) -> Daemon<'a> {
        let file = machine.config().with_file_name("daemon.log");
        let log = std::fs::File::options().create(true).append(true).open(file).unwrap();
        let mut command = machine.command(&["-v", "daemon"]);
        let child = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        Daemon { machine, child }
    }

    /// Waits until the machine is as it should be; gives its status.
    fn until(&mut self, what: &str, mut is: impl FnMut(&Value) -> bool) -> Value {
        let began = Instant::now();
        loop {
            let now = status(self.machine);
            if is(&now) {
                return now;
            }
            assert!(self.child.try_wait().unwrap().is_none(), "the daemon ended: {}", self.log());
            assert!(began.elapsed() < PATIENCE, "not {what}: {now}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.machine.config().with_file_name("daemon.log")).unwrap_or_default()
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// A `[schedule]` that looks at once, with these lines.
fn schedule(lines: &str) -> String {
    format!("[schedule]\ncheck = '1h'\njitter = '0s'\ntime_zone = 'UTC'\n{lines}\n")
}

/// A window of an hour that opens `hours` from now.
fn window_in(hours: i64) -> String {
    let start = Timestamp::now() + SignedDuration::from_hours(hours);
    format!("reboot = ['window']\n[[schedule.window]]\nstart = '{}'\nlength = '1h'", start.strftime("%H:%M"))
}

/// Gives the machine another schedule.
fn reschedule(machine: &Machine, before: &str, after: &str) {
    let text = std::fs::read_to_string(machine.config()).unwrap();
    assert!(text.contains(before), "{text}");
    std::fs::write(machine.config(), text.replace(before, after)).unwrap();
}

/// Has the next daemon look at the source at once.
fn forget_the_last_look(machine: &Machine) {
    std::fs::remove_file(machine.state_dir().join("daemon.json")).unwrap();
}

/// The names of what blocks a gate.
fn blocks(status: &Value, gate: &str) -> Vec<String> {
    let blocks = status["schedule"][gate]["blocked_by"].as_array().cloned().unwrap_or_default();
    blocks.iter().map(|block| block["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_release_is_staged_at_once_and_started_in_the_window_alone() {
    let later = schedule(&window_in(6));
    let (scene, mut machine) = configured_machine(&later);
    assert_eq!(status(&machine)["schedule"], Value::Null, "no daemon has run yet");
    let digest = publish(&scene, "1.1", true);
    {
        let mut daemon = Daemon::start(&machine);
        let now = daemon.until("staged and waiting", |now| {
            now["state"] == "staged" && blocks(now, "reboot") == ["window"]
        });
        assert_eq!(now["schedule"]["offer"]["digest"], digest);
        let until: Timestamp =
            now["schedule"]["reboot"]["blocked_by"][0]["until"].as_str().unwrap().parse().unwrap();
        let hours = until.duration_since(Timestamp::now()).as_secs_f64() / 3600.0;
        assert!((4.9..6.1).contains(&hours), "it opens in {hours} h");
        assert_eq!(boot_of(&machine, Slot::B), "empty", "an unplanned restart does not start it");
        assert!(!machine.reboot_requested());
        let text = machine.run(&["status"]).unwrap();
        let text = switchback_tests::machine::text(&text.stdout);
        assert!(text.contains("waits        reboot: no window is open; the next one opens on"), "{text}");
    }
    // The owner lets it restart at any time now.
    reschedule(&machine, &later, &schedule("reboot = 'immediate'"));
    {
        let mut daemon = Daemon::start(&machine);
        daemon.until("armed", |now| now["state"] == "armed");
        assert!(machine.reboot_requested());
    }
    assert_eq!(machine.power_on().unwrap().slot, Slot::B);
    forget_the_last_look(&machine);
    let mut daemon = Daemon::start(&machine);
    let now = daemon.until("at rest", |now| now["schedule"]["offer"]["available"] == false);
    assert_eq!((&now["state"], &now["schedule"]["offer"]["version"]), (&"idle".into(), &"1.1".into()));
}

#[test]
fn killed_at_any_moment_it_goes_on_where_it_was() {
    let (scene, mut machine) =
        configured_machine(&format!("bandwidth = '3 MB/s'\n{}", schedule("reboot = 'immediate'")));
    publish(&scene, "1.1", true);
    // From before the first look to long after the last byte; 8 MiB take some three seconds.
    for tenths in [1, 4, 8, 12, 17, 22, 28, 35] {
        let daemon = Daemon::start(&machine);
        std::thread::sleep(Duration::from_millis(tenths * 100));
        drop(daemon);
        let state = status(&machine)["state"].as_str().unwrap().to_owned();
        println!("killed after {}.{} s: {state}", tenths / 10, tenths % 10);
        if state == "armed" {
            break;
        }
    }
    Daemon::start(&machine).until("armed", |now| now["state"] == "armed");
    assert_eq!(machine.power_on().unwrap().slot, Slot::B);
    assert_eq!(boot_of(&machine, Slot::B), "good");
}

#[test]
fn what_is_quarantined_or_held_is_named_and_not_taken_again() {
    let (scene, mut machine) = configured_machine(&schedule("reboot = 'immediate'"));
    publish(&scene, "1.1", false);
    Daemon::start(&machine).until("armed", |now| now["state"] == "armed");
    assert_eq!(machine.power_on().unwrap().slot, Slot::A, "1.1 is not well");
    forget_the_last_look(&machine);
    {
        let mut daemon = Daemon::start(&machine);
        let now = daemon.until("told", |now| now["schedule"]["offer"]["available"] == false);
        let detail = now["schedule"]["offer"]["detail"].as_str().unwrap();
        assert!(detail.contains("failed"), "{detail}");
        std::thread::sleep(Duration::from_secs(2));
        assert_eq!(status(&machine)["state"], "idle");
        assert!(!machine.reboot_requested());
    }
    publish(&scene, "1.2", true);
    forget_the_last_look(&machine);
    Daemon::start(&machine).until("armed", |now| now["state"] == "armed");
    assert_eq!(machine.power_on().unwrap().slot, Slot::B);
    ask(&machine, &["rollback", "--reboot"], 0);
    assert_eq!(machine.power_on().unwrap().slot, Slot::A);
    forget_the_last_look(&machine);
    let mut daemon = Daemon::start(&machine);
    let now =
        daemon.until("told that an operator left it", |now| now["schedule"]["offer"]["available"] == false);
    assert_eq!(now["schedule"]["offer"]["version"], "1.2");
    assert_eq!(now["state"], "idle");
}

/// A lock server that answers by one word, and counts.
async fn lock_server(status_code: Arc<AtomicU16>) -> FaultServer {
    let answer = move |request: &switchback_tests::faults::Request| {
        if request.path.ends_with("steady-state") {
            return Reply::new(200, "");
        }
        match status_code.load(Ordering::SeqCst) {
            200 => Reply::new(200, ""),
            code => Reply::new(code, r#"{"kind":"failed_lock","value":"semaphore currently full"}"#),
        }
    };
    FaultServer::start(answer).await.unwrap()
}

fn asked(server: &FaultServer, path: &str) -> usize {
    server.requests().iter().filter(|request| request.path.ends_with(path)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lock_is_asked_for_last_explained_when_refused_and_given_back_after_the_confirmation_and_a_return()
 {
    let code = Arc::new(AtomicU16::new(500));
    let server = lock_server(code.clone()).await;
    let lock =
        format!("reboot = ['lock']\n[schedule.lock]\nurl = 'http://{}/'\ngroup = 'web'", server.host());
    let later = schedule(&window_in(6).replace("['window']", "['window', 'lock']"));
    let later = format!("{later}{}\n", lock.split_once('\n').unwrap().1);
    let (scene, mut machine) = configured_machine(&later);
    let name_it = |machine: &Machine| {
        let etc = machine.config().with_file_name("root").join("etc");
        std::fs::create_dir_all(&etc).unwrap();
        std::fs::write(etc.join("machine-id"), "0123456789abcdef0123456789abcdef\n").unwrap();
    };
    name_it(&machine);
    publish(&scene, "1.1", true);
    Daemon::start(&machine)
        .until("waiting", |now| blocks(now, "reboot") == ["window"] && now["state"] == "staged");
    assert_eq!(asked(&server, "pre-reboot"), 0, "the window is closed");

    reschedule(&machine, &later, &schedule(&lock));
    let now = Daemon::start(&machine).until("refused", |now| blocks(now, "reboot") == ["lock"]);
    let why = now["schedule"]["reboot"]["blocked_by"][0]["detail"].as_str().unwrap();
    assert!(why.contains("semaphore currently full"), "{why}");
    assert_eq!(
        (asked(&server, "pre-reboot"), &now["state"]),
        (1, &"staged".into()),
        "asked once, not in a loop"
    );

    code.store(200, Ordering::SeqCst);
    Daemon::start(&machine).until("armed", |now| now["state"] == "armed");
    let (granted, before) = (asked(&server, "pre-reboot"), asked(&server, "steady-state"));
    assert_eq!(granted, 2);
    assert_eq!(machine.power_on().unwrap().slot, Slot::B);
    name_it(&machine);
    let given_back = |more: usize| asked(&server, "steady-state") == before + more;
    Daemon::start(&machine).until("given back", |now| now["state"] == "idle" && given_back(1));

    // A release that is not well: the machine comes back, and so does its turn.
    publish(&scene, "1.2", false);
    let memory = r#"{"last_check":null,"checks":1,"pending":false,"may_hold_lock":false}"#;
    std::fs::write(machine.state_dir().join("daemon.json"), memory).unwrap();
    Daemon::start(&machine).until("armed", |now| now["state"] == "armed");
    assert!(given_back(1));
    assert_eq!(machine.power_on().unwrap().slot, Slot::B, "1.2 was left");
    name_it(&machine);
    Daemon::start(&machine).until("given back", |now| now["state"] == "idle" && given_back(2));
}
