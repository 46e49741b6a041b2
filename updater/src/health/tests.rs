//! Health checks against real processes, sockets and files.

use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

const LIMITS: Limits = Limits { deadline: Duration::from_secs(20), soak: Duration::ZERO };

fn checks(text: &str) -> Vec<Check> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("checks.toml"), text).unwrap();
    checks_in(folder.path()).unwrap()
}

fn command(line: &str) -> Vec<Check> {
    checks(&format!("[[check]]\nname = 'it'\nkind = 'command'\ncommand = '''{line}'''\n"))
}

fn context(root: &std::path::Path) -> Context {
    Context { slot: Slot::B, version: "1.2".into(), root: root.to_owned() }
}

async fn run_in(root: &std::path::Path, checks: &[Check]) -> HealthReport {
    run(checks, LIMITS, &context(root), async { panic!("there are checks") }).await
}

async fn run_all(checks: &[Check]) -> HealthReport {
    run_in(std::path::Path::new("/"), checks).await
}

/// A server that answers every request with the given status; its address.
async fn server(status: &'static str) -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 1024]).await;
            let answer =
                format!("HTTP/1.1 {status}\r\nlocation: /\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    address
}

#[tokio::test]
async fn every_failure_is_listed_not_only_the_first() {
    let report = run_all(&checks(
        "[[check]]\nname = 'one'\nkind = 'command'\ncommand = 'echo broken >&2; exit 3'\n\
         [[check]]\nname = 'two'\nkind = 'command'\ncommand = 'true'\n\
         [[check]]\nname = 'three'\nkind = 'file'\npath = '/nowhere/at/all'\n\
         [[check]]\nname = 'four'\nkind = 'command'\ncommand = ['/no/such/program']\n",
    ))
    .await;
    let outcomes: Vec<_> = report.checks.iter().map(|check| (check.name.as_str(), check.outcome)).collect();
    use CheckOutcome::{Failed, Passed};
    assert_eq!(outcomes, [("one", Failed), ("two", Passed), ("three", Failed), ("four", Failed)]);
    let why = report.why().unwrap();
    assert_eq!(why.reason, Reason::HealthFailed);
    assert!(
        why.detail.starts_with("one: exit status 3: broken; three: /nowhere/at/all: No such file"),
        "{why:?}"
    );
    assert!(why.detail.contains("four: /no/such/program could not be started"), "{why:?}");
}

#[tokio::test]
async fn a_command_knows_slot_version_and_root_and_runs_in_the_root() {
    let root = tempfile::tempdir().unwrap();
    let line = "echo $SWITCHBACK_SLOT $SWITCHBACK_VERSION; test \"$PWD\" = \"$SWITCHBACK_ROOT\" && exit 9";
    let report = run_in(&std::fs::canonicalize(root.path()).unwrap(), &command(line)).await;
    assert_eq!(report.checks[0].detail, "exit status 9: b 1.2");
}

#[tokio::test]
async fn a_command_is_killed_at_its_timeout_with_everything_it_started() {
    let folder = tempfile::tempdir().unwrap();
    let line = "(sleep 100 & echo $! > pid; wait) & sleep 100";
    let mut checks = command(line);
    checks[0].timeout = Duration::from_millis(500);
    let start = Instant::now();
    let report = run_in(folder.path(), &checks).await;
    assert!(start.elapsed() < Duration::from_secs(10));
    assert_eq!(report.checks[0].detail, "no answer within 500ms");
    let pid = std::fs::read_to_string(folder.path().join("pid")).unwrap();
    let status = format!("/proc/{}/stat", pid.trim());
    let running = || std::fs::read_to_string(&status).is_ok_and(|text| !text.contains(") Z "));
    for _ in 0..50 {
        if !running() {
            return;
        }
        sleep(Duration::from_millis(20)).await;
    }
    panic!("process {pid} outlived its check");
}

#[tokio::test]
async fn only_the_last_output_of_a_noisy_command_is_kept() {
    let report = run_all(&command("head -c 3000000 /dev/zero | tr '\\0' x; echo the end; exit 1")).await;
    let detail = &report.checks[0].detail;
    assert!(
        detail.ends_with("xxx\nthe end") || detail.ends_with("xxxthe end"),
        "{}",
        &detail[detail.len() - 40..]
    );
    assert!(detail.len() <= command::OUTPUT_BYTES_MAX + 40, "{}", detail.len());
}

#[tokio::test]
async fn the_last_words_of_a_program_are_bounded_and_one_that_fails_has_none() {
    let context = context(std::path::Path::new("/"));
    for (line, words) in [
        ("seq 100000", "99999\n100000"),
        ("echo short", "short"),
        ("echo some; exit 1", ""),
        ("no-such-program-at-all", ""),
    ] {
        let argv = ["sh", "-c", line].map(String::from);
        assert_eq!(command::last_words(&argv, &context, 13).await, words, "{line}");
    }
}

#[tokio::test]
async fn a_command_whose_child_keeps_the_output_open_ends_when_it_ends() {
    let start = Instant::now();
    let report = run_all(&command("sleep 5 & exit 0")).await;
    assert_eq!(report.health(), Health::Healthy);
    assert!(start.elapsed() < Duration::from_secs(4));
}

#[tokio::test]
async fn retries_are_attempts_after_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let line = "echo x >> tries; test $(wc -l < tries) = 3";
    for (retries, outcome, attempts) in [(1, CheckOutcome::Failed, 2), (5, CheckOutcome::Passed, 3)] {
        let mut checks = command(line);
        (checks[0].retries, checks[0].interval) = (retries, Duration::from_millis(5));
        let report = run_in(folder.path(), &checks).await;
        assert_eq!((report.checks[0].outcome, report.checks[0].attempts), (outcome, attempts));
        std::fs::remove_file(folder.path().join("tries")).unwrap();
    }
}

#[tokio::test]
async fn a_check_that_fails_while_soaking_has_failed() {
    let folder = tempfile::tempdir().unwrap();
    let mut checks = command("echo x >> tries; test $(wc -l < tries) -lt 3");
    checks[0].retries = 5;
    checks[0].interval = Duration::from_millis(20);
    checks[0].soak = Duration::from_secs(10);
    let report = run_in(folder.path(), &checks).await;
    assert_eq!(report.checks[0].outcome, CheckOutcome::Failed);
    assert!(report.checks[0].detail.contains("while soaking"), "{:?}", report.checks[0]);
}

#[tokio::test]
async fn after_the_common_soak_every_check_runs_once_more() {
    let folder = tempfile::tempdir().unwrap();
    let checks = command("mkdir once");
    let soak = Limits { soak: Duration::from_millis(50), ..LIMITS };
    let report = run(&checks, soak, &context(folder.path()), async { Ok(()) }).await;
    assert!(report.checks[0].detail.contains("File exists"), "{:?}", report.checks[0]);
}

#[tokio::test]
async fn the_deadline_ends_all_checks_and_tells_the_last_failure() {
    let mut checks = command("echo not yet; exit 1");
    checks.extend(command("sleep 100"));
    (checks[0].retries, checks[0].interval) = (10_000, Duration::from_millis(5));
    checks[1].timeout = Duration::from_secs(100);
    let limits = Limits { deadline: Duration::from_millis(700), soak: Duration::ZERO };
    let start = Instant::now();
    let report = run(&checks, limits, &context(std::path::Path::new("/")), async { Ok(()) }).await;
    assert!(start.elapsed() < Duration::from_secs(10));
    assert!(report.checks.iter().all(|check| check.outcome == CheckOutcome::DeadlineMissed), "{report:?}");
    assert!(report.checks[0].detail.ends_with("last: exit status 1: not yet"), "{report:?}");
    assert_eq!(report.why().unwrap().reason, Reason::DeadlineMissed);
}

#[tokio::test]
async fn http_wants_the_expected_status_and_follows_no_redirect() {
    for (answer, expected, passes) in [
        ("200 OK", 200, true),
        ("204 No Content", 204, true),
        ("503 Service Unavailable", 200, false),
        ("302 Found", 200, false),
        ("302 Found", 302, true),
    ] {
        let address = server(answer).await;
        let report = run_all(&checks(&format!(
            "[[check]]\nname = 'web'\nkind = 'http'\nurl = 'http://{address}/'\nstatus = {expected}\n"
        )))
        .await;
        assert_eq!(report.health() == Health::Healthy, passes, "{answer}: {report:?}");
        if !passes {
            let said = format!("http://{address}/ answers {}, expected {expected}", &answer[..3]);
            assert_eq!(report.checks[0].detail, said);
        }
    }
}

#[tokio::test]
async fn tcp_and_http_tell_when_nobody_listens() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let both = format!(
        "[[check]]\nname = 't'\nkind = 'tcp'\naddress = '{address}'\n\
         [[check]]\nname = 'h'\nkind = 'http'\nurl = 'http://{address}'\ntimeout = '300ms'\n"
    );
    let report = run_all(&checks(&both)).await;
    assert_eq!(report.checks[0].outcome, CheckOutcome::Passed);
    assert_eq!(report.checks[1].detail, "no answer within 300ms", "it listens and never answers");
    drop(listener);
    let report = run_all(&checks(&both)).await;
    for check in &report.checks {
        assert!(check.detail.contains("refused"), "{check:?}");
    }
}

#[tokio::test]
async fn a_file_is_looked_up_beneath_the_root() {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("etc")).unwrap();
    std::fs::write(root.path().join("etc/ready"), "state=green\n").unwrap();
    let report = run_in(
        root.path(),
        &checks(
            "[[check]]\nname = 'a'\nkind = 'file'\npath = '/etc/ready'\n\
             [[check]]\nname = 'b'\nkind = 'file'\npath = '/etc/ready'\ncontains = 'green'\n\
             [[check]]\nname = 'c'\nkind = 'file'\npath = '/etc/ready'\ncontains = 'red'\n",
        ),
    )
    .await;
    let passed: Vec<_> = report.checks.iter().map(|check| check.outcome == CheckOutcome::Passed).collect();
    assert_eq!(passed, [true, true, false]);
    assert!(report.checks[2].detail.ends_with("etc/ready does not contain `red`"));
}

#[tokio::test]
async fn a_unit_is_asked_of_systemctl() {
    let folder = tempfile::tempdir().unwrap();
    let tool = folder.path().join("systemctl");
    std::fs::write(
        &tool,
        "#!/bin/sh\n[ \"$*\" = 'is-active -- web.service' ] && exit 0\necho inactive; exit 3\n",
    )
    .unwrap();
    std::fs::set_permissions(&tool, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    for (unit, expected) in [("web.service", Ok(())), ("db.service", Err("exit status 3: inactive"))] {
        let argv = [tool.to_str().unwrap(), "is-active", "--", unit].map(String::from);
        let context = context(folder.path());
        let result = command::run(&argv, None, &Default::default(), &context).await;
        assert_eq!(result, expected.map_err(String::from));
    }
}

#[tokio::test]
async fn without_checks_the_built_in_one_decides() {
    for (answer, healthy) in [(Ok(()), true), (Err("the state folder is read-only".to_owned()), false)] {
        let report = run(&[], LIMITS, &context(std::path::Path::new("/")), async { answer }).await;
        assert_eq!((report.checks[0].name.as_str(), report.health() == Health::Healthy), (BUILT_IN, healthy));
    }
    assert_ne!(HealthReport::default().health(), Health::Healthy, "nothing shown is no pass");
}

#[test]
fn configured_checks_replace_those_of_the_image_by_name() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join(HEALTH_DIR);
    std::fs::create_dir_all(&folder).unwrap();
    let check =
        |name: &str, port: u16| format!("[[check]]\nname = '{name}'\nkind = 'tcp'\naddress = 'h:{port}'\n");
    std::fs::write(folder.join("10.toml"), check("web", 1) + &check("db", 1)).unwrap();
    let mut config = Config::default();
    config.machine.root = root.path().to_owned();
    config.health.checks = checks(&check("web", 2));
    let names: Vec<_> =
        checks_of(&config).unwrap().into_iter().map(|check| (check.name, check.probe)).collect();
    let tcp = |port: u16| crate::config::Probe::Tcp { address: format!("h:{port}") };
    assert_eq!(names, [("db".to_owned(), tcp(1)), ("web".to_owned(), tcp(2))]);
    std::fs::write(folder.join("20.toml"), "[[check]]\nname = 'x'\nkind = 'ping'\n").unwrap();
    let error = checks_of(&config).unwrap_err().to_string();
    assert!(error.contains("20.toml, line 3") && error.contains("unknown variant `ping`"), "{error}");
}
