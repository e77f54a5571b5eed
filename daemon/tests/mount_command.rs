//! `litefs mount` as a process: its start, its end, its exit codes. Needs root and /dev/fuse.

mod command_support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use command_support::{Daemon, PRIMARY, REPLICA, configure, limit_files, litefs};
use nix::sys::signal::Signal;
use rusqlite::Connection;

#[test]
fn a_signal_ends_a_node_cleanly_even_with_open_files_and_twice() {
    let mut daemon = Daemon::start(PRIMARY, "");
    daemon.eventually("the mount can be written", |daemon| {
        daemon.is_mounted() && std::fs::write(daemon.mount().join("file"), "x").is_ok()
    });
    let open = std::fs::File::open(daemon.mount().join("file")).unwrap();
    daemon.signal(Signal::SIGTERM);
    daemon.signal(Signal::SIGINT);
    let (code, stdout, stderr) = daemon.end();
    assert_eq!(code, Some(0), "{stdout}{stderr}");
    assert!(
        stdout.contains("signal received, litefs shutting down"),
        "{stdout}"
    );
    assert!(stdout.contains("litefs shut down complete"), "{stdout}");
    assert!(!daemon.is_mounted());
    drop(open);
}

#[test]
fn fuse_debug_logs_the_requests_of_the_kernel() {
    let mut daemon = Daemon::start(PRIMARY, "");
    daemon.eventually("mounted", |daemon| daemon.is_mounted());
    daemon.signal(Signal::SIGTERM);
    let (_, _, quiet) = daemon.end();
    assert!(!quiet.contains("msg=\"request\""), "{quiet}");
    let mut daemon = Daemon::spawn(configure(PRIMARY, ""), &["-fuse.debug"]);
    daemon.eventually("the mount can be written", |daemon| {
        daemon.is_mounted() && std::fs::write(daemon.mount().join("file"), "x").is_ok()
    });
    daemon.signal(Signal::SIGTERM);
    let (code, stdout, stderr) = daemon.end();
    assert_eq!(code, Some(0), "{stdout}{stderr}");
    assert!(
        stderr.contains("level=TRACE msg=\"request\" op=create file=other"),
        "{stderr}"
    );
}

#[test]
fn a_data_directory_of_litefs_is_not_passed_over() {
    let dir = configure(PRIMARY, "");
    std::fs::create_dir_all(dir.path().join("data/dbs/my.db/ltx")).unwrap();
    let mut daemon = Daemon::spawn(dir, &[]);
    let (code, _, stderr) = daemon.end();
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("the databases of a LiteFS 0.5"), "{stderr}");
    assert!(!daemon.is_mounted());
}

#[test]
fn a_signal_ends_a_node_that_waits_for_its_primary() {
    let mut daemon = Daemon::start(REPLICA, "");
    daemon.eventually("the node is mounted and waits", |daemon| daemon.is_mounted());
    daemon.signal(Signal::SIGTERM);
    let (code, stdout, stderr) = daemon.end();
    assert_eq!(code, Some(0), "{stdout}{stderr}");
    assert!(!stdout.contains("waiting for signal or subprocess"), "{stdout}");
    assert!(!daemon.is_mounted());
}

#[test]
fn a_signal_at_any_moment_of_the_start_ends_it() {
    for delay in [0, 5, 15, 30, 50, 80, 120] {
        let mut daemon = Daemon::start(PRIMARY, "");
        // The moment is what varies here; there is no condition to wait for.
        std::thread::sleep(Duration::from_millis(delay));
        daemon.signal(Signal::SIGTERM);
        daemon.eventually("the daemon ends", |daemon| {
            daemon.child.try_wait().unwrap().is_some()
        });
        let status = daemon.child.wait().unwrap();
        let before_it_listened = std::os::unix::process::ExitStatusExt::signal(&status) == Some(15);
        assert!(
            status.success() || before_it_listened,
            "after {delay} ms: {status}"
        );
        daemon.eventually("nothing stays mounted", |daemon| !daemon.is_mounted());
    }
}

#[test]
fn a_taken_port_is_an_error_with_a_hint() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let http = format!("http: {{addr: '{}'}}", taken.local_addr().unwrap());
    let (code, _, stderr) = Daemon::start(PRIMARY, &http).end();
    assert_eq!(code, Some(1));
    assert!(stderr.contains("ERROR: cannot listen on 127.0.0.1:"), "{stderr}");
    assert!(stderr.contains("hint: set `http.addr`"), "{stderr}");
}

#[test]
fn a_failed_start_stays_alive_where_that_is_wanted() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let more = format!(
        "http: {{addr: '{}'}}\nexit-on-error: false",
        taken.local_addr().unwrap()
    );
    let mut daemon = Daemon::start(PRIMARY, &more);
    let mut seen = Vec::new();
    let stderr = daemon.child.stderr.as_mut().unwrap();
    while !String::from_utf8_lossy(&seen).contains("staying alive") {
        let mut byte = [0];
        assert_eq!(
            stderr.read(&mut byte).unwrap(),
            1,
            "{}",
            String::from_utf8_lossy(&seen)
        );
        seen.push(byte[0]);
    }
    assert!(daemon.child.try_wait().unwrap().is_none());
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.end().0, Some(1));
}

#[test]
fn configuration_errors_name_key_line_and_remedy() {
    for (more, expected) in [
        (
            "proxy: {target: 'localhost:80', addr: ':81', db: x}",
            "`proxy.target` is set to \"localhost:80\"",
        ),
        ("exec: serve", "`exec` is set to \"serve\""),
        ("no-such-key: 1", "no-such-key"),
    ] {
        let (code, _, stderr) = Daemon::start(PRIMARY, more).end();
        assert_eq!(code, Some(2), "{stderr}");
        assert!(stderr.contains(expected) && stderr.contains("hint: "), "{stderr}");
    }
    let (code, _, stderr) = Daemon::start("{}", "").end();
    assert_eq!(code, Some(2));
    assert!(stderr.contains("lease type must be set"), "{stderr}");
}

#[test]
fn a_data_directory_that_cannot_be_written_is_an_error_with_a_hint() {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    let dir = configure(PRIMARY, "");
    let data = dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    mount(
        None::<&str>,
        &data,
        Some("tmpfs"),
        MsFlags::MS_RDONLY,
        None::<&str>,
    )
    .unwrap();
    let mut daemon = Daemon::spawn(dir, &[]);
    let (code, _, stderr) = daemon.end();
    umount2(&data, MntFlags::MNT_DETACH).unwrap();
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("Read-only file system"), "{stderr}");
    assert!(stderr.contains(&data.display().to_string()), "{stderr}");
    assert!(stderr.contains("hint: set `data.dir`"), "{stderr}");
    assert!(!daemon.is_mounted());
}

/// A series of `GET /metrics`, 0 if it is not there.
fn series(address: SocketAddr, name: &str) -> u64 {
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: one\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.map_or(0, |value| value.parse().unwrap())
}

#[test]
fn metrics_count_the_commits_captures_and_requests_of_clients() {
    // Free a moment ago; nobody else is given it so soon.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut daemon = Daemon::start(PRIMARY, &format!("http: {{addr: '{address}'}}"));
    daemon.eventually("the node is primary", |daemon| {
        daemon.is_mounted() && series(address, "litefs_is_primary") == 1
    });
    let db = Connection::open(daemon.mount().join("a.db")).unwrap();
    for (journal, request) in [
        ("delete", "op=\"unlink\",file=\"journal\""),
        ("wal", "op=\"fsync\",file=\"wal\""),
    ] {
        db.execute_batch(&format!(
            "PRAGMA journal_mode={journal}; PRAGMA synchronous=FULL; CREATE TABLE IF NOT EXISTS t(x)"
        ))
        .unwrap();
        let shown = || {
            [
                "litefs_commit_total{db=\"a.db\"}",
                "litefs_capture_seconds_count",
                &format!("litefs_fuse_requests_total{{{request}}}"),
            ]
            .map(|name| series(address, name))
        };
        let before = shown();
        for row in 0..3 {
            db.execute("INSERT INTO t VALUES (?)", [row]).unwrap();
        }
        // Looks that find nothing are no captures.
        std::fs::read(daemon.mount().join("a.db-pos")).unwrap();
        let after = shown();
        let [commits, captures, requests] = [0, 1, 2].map(|at| after[at] - before[at]);
        assert_eq!(commits, 3, "{journal}");
        // One capture of a WAL may find several commits.
        assert!((1..=3).contains(&captures), "{journal}: {captures}");
        assert!(requests >= 3, "{journal}: {requests} {request}");
    }
}

#[test]
fn a_client_with_very_many_open_files_does_not_keep_others_commits_from_being_captured() {
    let dir = configure(PRIMARY, "");
    let mut command = litefs(dir.path());
    limit_files(&mut command, 512, Some(512));
    let mut daemon = Daemon {
        child: command.spawn().unwrap(),
        dir,
    };
    daemon.eventually("mounted", |daemon| daemon.is_mounted());
    std::fs::write(daemon.mount().join("file"), "x").unwrap();
    let db = Connection::open(daemon.mount().join("a.db")).unwrap();
    daemon.eventually("the node is primary", |_| {
        db.execute_batch("CREATE TABLE t(x)").is_ok()
    });
    let file = daemon.mount().join("a.db-pos");
    let position = || std::fs::read_to_string(&file).unwrap();
    let before = position();
    let mut hoard = Vec::new();
    let refused = loop {
        match std::fs::File::open(daemon.mount().join("file")) {
            Ok(file) => hoard.push(file),
            Err(error) => break error,
        }
        assert!(hoard.len() < 512);
    };
    assert_eq!(refused.raw_os_error(), Some(libc::ENFILE));
    // For the journal: the handle and the inode. The kernel tells of a closed handle a moment later.
    hoard.truncate(hoard.len() - 2);
    daemon.eventually("a client that has the files it needs commits", |_| {
        db.execute("INSERT INTO t VALUES (1)", []).is_ok()
    });
    assert_ne!(position(), before, "the commit is captured");
}

#[test]
fn commands_without_their_path_are_used_wrongly() {
    let code = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_litefs"))
            .args(args)
            .output()
            .unwrap();
        output.status.code()
    };
    assert_eq!(code(&["import", "-name", "a.db"]), Some(2));
    assert_eq!(code(&["export", "-name", "a.db"]), Some(2));
    assert_eq!(code(&["import", "-name", "a.db", "one", "two"]), Some(1));
}
