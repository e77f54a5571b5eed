//! The result on the terminal.

use std::fmt::Write;

use crate::run::{FileSummary, Summary};
use crate::verdict::Status;

/// Up to this many files the table lists all of them; beyond, only those that differ.
const ALL: usize = 25;

pub fn table(summary: &Summary) -> String {
    let mut text = String::new();
    let worth_telling = |file: &&FileSummary| {
        summary.files.len() <= ALL
            || !file.equal
            || file.flaky.is_some()
            || file.varying
            || file.exception.is_some()
    };
    let rows: Vec<&FileSummary> = summary.files.iter().filter(worth_telling).collect();
    if !rows.is_empty() {
        let _ = writeln!(
            text,
            "{:<28} {:<12} {:>16} {:>16}  note",
            "file", "status", "native cases", "mount cases"
        );
    }
    for file in rows {
        let _ = writeln!(
            text,
            "{:<28} {:<12} {:>7} {:>7.2}s {:>7} {:>7.2}s  {}",
            file.file,
            file.status,
            file.native.cases,
            file.native.seconds,
            file.mount.cases,
            file.mount.seconds,
            note(file)
        );
    }
    totals(&mut text, summary);
    text
}

fn note(file: &FileSummary) -> String {
    let mut notes = Vec::new();
    if !file.equal {
        notes.push("DIFFERS".to_string());
    }
    if file.alarm {
        notes.push("ALARM: no case ran".to_string());
    }
    if let Some(first) = file.flaky {
        notes.push(format!("flaky: {first} at first"));
    }
    if file.varying {
        notes.push("draws lots: two native runs differ too".to_string());
    }
    if let Some(reason) = &file.exception {
        notes.push(format!("listed: {reason}"));
    }
    notes.join(", ")
}

fn totals(text: &mut String, summary: &Summary) {
    let counts = Status::ALL
        .iter()
        .map(|status| (status, summary.count(*status)))
        .filter(|(_, count)| *count > 0);
    let counts: Vec<_> = counts
        .map(|(status, count)| format!("{count} {status}"))
        .collect();
    let (native_cases, mount_cases) = summary.cases();
    let (native, mount) = summary.seconds();
    let _ = writeln!(
        text,
        "SQLite {} ({}), {} on {}: {} files: {}",
        summary.sqlite,
        summary.options,
        summary.permutation,
        summary.mode,
        summary.files.len(),
        counts.join(", ")
    );
    let _ = writeln!(
        text,
        "cases: {native_cases} native, {mount_cases} mount; seconds: {native:.1} native, {mount:.1} mount (x{:.2}); wall {:.0} s",
        mount / native.max(0.001),
        summary.wall_seconds
    );
    if let Some(walls) = &summary.walls {
        let _ = writeln!(
            text,
            "wall time of the whole run with {} jobs: {:.1} s native, {:.1} s mount (x{:.2})",
            summary.jobs,
            walls.native_seconds,
            walls.mount_seconds,
            walls.ratio()
        );
    }
    if let Some(reloads) = &summary.reloads {
        let _ = writeln!(
            text,
            "reloads: daemons were replaced {} times, each one every {} s; the longest took {:.2} s",
            reloads.count, reloads.every_seconds, reloads.longest_seconds
        );
    }
    if summary.replica {
        let databases = summary.databases();
        let _ = writeln!(
            text,
            "databases: {} compared with the replica ({} with their log replayed), {} differ, {} not replicated, \
             {} files not compared",
            databases.compared,
            databases.replayed,
            databases.different,
            databases.local,
            databases.uncompared
        );
    }
    let _ = writeln!(
        text,
        "{}; native results: {}; layout: {}; {}",
        summary.daemon, summary.native, summary.layout, summary.machine
    );
    for finding in &summary.findings {
        let _ = writeln!(text, "finding: {finding}");
    }
    let different = summary.files.iter().filter(|file| !file.equal).count();
    if summary.objections.is_empty() && different > 0 {
        let all = summary.files.len();
        let _ = writeln!(
            text,
            "the mount differs from native exactly as listed, in {different} of {all} files"
        );
    } else if summary.objections.is_empty() {
        let _ = writeln!(text, "the mount equals native");
    } else {
        let _ = writeln!(text, "{} objections:", summary.objections.len());
        for objection in summary.objections.iter().take(30) {
            let _ = writeln!(text, "  {objection}");
        }
    }
}
