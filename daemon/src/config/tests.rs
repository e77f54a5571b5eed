use std::time::Duration;

use super::*;

fn parsed(text: &str) -> Config {
    parse(Path::new("litefs.yml"), text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn error(text: &str) -> String {
    match parse(Path::new("litefs.yml"), text) {
        Ok(config) => panic!("accepted {text}: {config:?}"),
        Err(error) => error.to_string(),
    }
}

fn invalid(text: &str) -> String {
    validate(&parsed(text)).expect_err(text).to_string()
}

fn unsupported(text: &str) -> String {
    let error = check_supported(&parsed(text)).expect_err(text);
    assert!(!error.hint().is_empty());
    error.to_string()
}

/// The defaults of LiteFS 0.5, key by key.
#[test]
fn defaults_are_those_of_litefs() {
    let config = parsed("lease: {type: static}");
    assert!(config.exit_on_error && !config.skip_sync && !config.strict_verify);
    assert!(config.exec.commands.is_empty());
    assert_eq!(config.data.dir, Path::new("/var/lib/litefs"));
    assert!(config.data.compress);
    assert_eq!(config.data.retention.positive(), Some(Duration::from_secs(600)));
    assert_eq!(
        config.data.retention_monitor_interval.positive(),
        Some(Duration::from_secs(60))
    );
    assert_eq!(config.data.durability, Durability::Follow);
    assert_eq!(config.fuse.dir, Path::new("/litefs"));
    assert!(!config.fuse.allow_other && !config.fuse.debug);
    assert_eq!(config.fuse.passthrough, Passthrough::Auto);
    assert_eq!(config.http.addr, ":20202");
    assert_eq!(config.http.snapshot_timeout.positive(), None);
    assert_eq!(config.proxy.max_lag.positive(), Some(Duration::from_secs(10)));
    assert_eq!(
        config.proxy.primary_redirect_timeout.positive(),
        Some(Duration::from_secs(5))
    );
    assert_eq!(
        config.proxy.read_header_timeout.positive(),
        Some(Duration::from_secs(10))
    );
    assert_eq!(
        config.proxy.idle_timeout.positive(),
        Some(Duration::from_secs(30))
    );
    assert!(config.lease.candidate && !config.lease.promote);
    assert_eq!(
        config.lease.reconnect_delay.positive(),
        Some(Duration::from_secs(1))
    );
    assert_eq!(
        config.lease.demote_delay.positive(),
        Some(Duration::from_secs(10))
    );
    assert_eq!(config.lease.consul.ttl.positive(), Some(Duration::from_secs(10)));
    assert_eq!(
        config.lease.consul.lock_delay.positive(),
        Some(Duration::from_secs(1))
    );
    assert_eq!(config.backup.url, "https://litefs.fly.io");
    assert_eq!(config.log.format, LogFormat::Text);
    assert!(!config.log.timestamp && !config.log.debug);
    assert!(config.tracing.enabled && config.tracing.compress);
    assert_eq!((config.tracing.max_size, config.tracing.max_count), (64, 8));
}

#[test]
fn every_key_of_the_reference_is_read() {
    let config = parsed(
        r#"
exit-on-error: false
skip-sync: true
strict-verify: true
exec:
  - cmd: "migrate"
    if-candidate: true
  - cmd: "serve"
data: {dir: /data, compress: false, retention: 1h, retention-monitor-interval: 0s, durability: commit}
fuse: {dir: /mnt, allow-other: yes, debug: on, passthrough: off}
http: {addr: ":8080", snapshot-timeout: 5m}
proxy:
  addr: ":8081"
  target: "localhost:8082"
  db: "x.db"
  max-lag: 1s
  debug: true
  passthrough: ["/build/*"]
  always-forward: ["/api/*"]
  primary-redirect-timeout: 1s
  read-timeout: 1s
  read-header-timeout: 1s
  write-timeout: 1s
  idle-timeout: 1s
lease:
  type: consul
  hostname: h
  advertise-url: "http://h:20202"
  candidate: false
  promote: true
  reconnect-delay: 2s
  demote-delay: 3s
  databases: ["a.db"]
  consul: {url: "http://localhost:8500", key: "litefs/primary", ttl: 15s, lock-delay: 2s}
backup: {type: file, path: /backup, url: "https://x", cluster: c, auth-token: t}
log: {format: json, timestamp: true, debug: true}
tracing: {enabled: false, path: /t, max-size: 1, max-count: 2, compress: false}
"#,
    );
    assert_eq!(config.exec.commands.len(), 2);
    assert!(config.exec.commands[0].if_candidate && !config.exec.commands[1].if_candidate);
    assert_eq!(config.data.retention_monitor_interval.positive(), None);
    assert_eq!(config.data.durability, Durability::Commit);
    assert!(config.fuse.allow_other && config.fuse.debug);
    assert_eq!(config.fuse.passthrough, Passthrough::Off);
    assert_eq!(config.lease.consul.key, "litefs/primary");
    assert_eq!(config.log.format, LogFormat::Json);
    validate(&config).unwrap();
}

#[test]
fn exec_may_be_a_text_and_not_a_list_of_texts() {
    assert_eq!(parsed("exec: \"serve -x\"").exec.commands[0].cmd, "serve -x");
    assert!(
        error("exec: [\"serve\"]").contains("- cmd:"),
        "{}",
        error("exec: [\"serve\"]")
    );
    assert!(error("exec: 5").contains("a command"));
    assert!(error("exec: [{cmd: x, if-candidat: true}]").contains("if-candidat"));
}

#[test]
fn null_means_default() {
    let config = parsed("data:\n  dir: ~\n  retention:\nfuse:\nexec:\nlease:\n  candidate:\n  hostname: ~\n");
    assert_eq!(config, Config::default());
}

#[test]
fn an_unknown_key_is_an_error_with_line_and_snippet() {
    let message = error("lease:\n  type: static\n  candidat: true\n");
    assert!(message.contains("candidat"), "{message}");
    assert!(message.contains('3'), "{message}");
    assert!(message.contains("candidat: true"), "{message}");
}

#[test]
fn durations_need_a_unit() {
    let message = error("data:\n  retention: 10\n");
    assert!(message.contains("such as `10s`"), "{message}");
    assert!(error("data: {retention: 0}").contains("such as `10s`"));
    assert!(error("data: {retention: 10x}").contains("unknown unit `x`"));
}

#[test]
fn duplicate_keys_are_an_error() {
    assert!(error("data: {dir: a}\ndata: {dir: b}\n").contains("data"));
}

#[test]
fn an_empty_file_is_an_error() {
    assert!(error("").contains("is empty"));
    assert!(error("# nothing\n").contains("is empty"));
}

#[test]
fn validation_names_what_is_missing() {
    assert!(invalid("data: {dir: /a}").contains("lease type must be set"));
    assert!(invalid("lease: {type: etcd}").contains("got: 'etcd'"));
    assert!(invalid("fuse: {dir: ''}\nlease: {type: static}").contains("fuse directory required"));
    assert!(
        invalid("fuse: {dir: /a}\ndata: {dir: /a}\nlease: {type: static}").contains("cannot be the same")
    );
    for (fuse, data, key) in [
        ("/a", "/a/data", "below the fuse directory"),
        ("/a/", "/a/b/data", "below the fuse directory"),
        ("/a/files/mnt", "/a", "among what the data directory holds"),
    ] {
        let text = format!("fuse: {{dir: {fuse}}}\ndata: {{dir: {data}}}\nlease: {{type: static}}");
        assert!(invalid(&text).contains(key), "{text}");
    }
    let beside = "fuse: {dir: /a/mnt}\ndata: {dir: /a}\nlease: {type: static}";
    validate(&parsed(beside)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(dir.path(), dir.path().join("link")).unwrap();
    let path = dir.path().display();
    let text =
        format!("fuse: {{dir: {path}/mnt}}\ndata: {{dir: {path}/link/mnt/data}}\nlease: {{type: static}}");
    assert!(invalid(&text).contains("below the fuse directory"));
    assert!(invalid("lease: {type: consul}").contains("consul URL required"));
    assert!(invalid("lease: {type: consul, consul: {url: 'http://x'}}").contains("consul key required"));
    for url in ["consul:8500", "tcp://:t0ken@consul", "https://:t0ken@"] {
        let refused = invalid(&format!(
            "lease: {{type: consul, consul: {{url: '{url}', key: k}}}}"
        ));
        assert!(
            refused.contains("invalid consul URL") && !refused.contains("t0ken"),
            "{refused}"
        );
    }
    assert!(invalid("lease: {type: static, advertise-url: 'ftp://x'}").contains("invalid URL scheme"));
    assert!(invalid("lease: {type: static, databases: [a]}").contains("replication filter on candidate"));
    assert!(invalid("lease: {type: static}\nproxy: {target: 'x:1'}").contains("proxy bind address required"));
    assert!(invalid("lease: {type: static}\nbackup: {type: s4}").contains("invalid backup type"));
}

#[test]
fn keys_of_features_that_are_missing_are_refused_by_name() {
    assert!(unsupported("exec: serve").contains("`exec`"));
    assert!(unsupported("proxy: {target: 'x:1'}").contains("`proxy.target`"));
    assert!(unsupported("backup: {type: file, path: /b}").contains("`backup.type`"));
    assert!(unsupported("lease: {databases: [a]}").contains("`lease.databases`"));
    assert!(unsupported("tracing: {path: /t}").contains("`tracing.path`"));
    assert!(unsupported("strict-verify: true").contains("`strict-verify`"));
    assert!(unsupported("data: {durability: replicated}").contains("`data.durability`"));
    check_supported(&parsed(
        "tracing: {path: /t, enabled: false}\nproxy: {addr: ':1'}",
    ))
    .unwrap();
}

#[test]
fn the_first_file_of_the_search_path_wins_and_a_named_one_is_read_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (dir.path().join("1.yml"), dir.path().join("2.yml"));
    std::fs::write(&second, "lease: {type: static}").unwrap();
    let searched = vec![first.clone(), second.clone()];
    assert_eq!(find(None, searched.clone()).unwrap(), second);
    assert_eq!(find(Some(&first), searched).unwrap(), first);
    assert!(matches!(read(&first, true), Err(ConfigError::Read { .. })));
    assert!(matches!(
        find(None, vec![first]),
        Err(ConfigError::NotFound { .. })
    ));
}

#[test]
fn hostname_is_always_known_to_the_expansion() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("litefs.yml");
    std::fs::write(
        &path,
        "lease: {type: static, hostname: \"${HOSTNAME}\", candidate: ${HOSTNAME == 'not-me'}}",
    )
    .unwrap();
    let config = read(&path, true).unwrap();
    assert!(!config.lease.hostname.is_empty());
    assert!(!config.lease.candidate);
    let raw = read(&path, false)
        .expect_err("an unexpanded brace is not a boolean")
        .to_string();
    assert!(raw.contains("candidate") || raw.contains("bool"), "{raw}");
}
