//! Clients that keep their connections, whatever becomes of their daemon, and a judge of what they were promised.
//!
//! Read in this order: [`profile`] (who takes part), [`client`] (what a client process does), [`journal`] (what it notes outside the mount),
//! [`fault`] and [`field`] (what happens to the nodes), [`crew`] (the client processes), [`oracle`] (the judge). [`run`] puts them together.

mod archive;
pub mod client;
mod clock;
mod crew;
pub mod fault;
mod field;
mod final_look;
mod journal;
mod oracle;
pub mod profile;
mod rows;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use serde::Serialize;

use self::clock::now;
use self::crew::Crew;
use self::fault::{Dealer, Fault, FaultKind};
use self::field::Field;
use self::oracle::{Evidence, Occurrence};
pub use self::oracle::{Judgement, Lost, Spread};
use self::profile::{JournalMode, cast};
use crate::solo::{Solo, SoloOptions};
use crate::{Cluster, ClusterOptions, Durability, Error, Keep, Passthrough, Result};

/// How long a daemon that serves may leave its clients waiting.
const SERVICE: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_secs(10);
/// How long clients write before the first fault and after the last one.
const PEACE: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(60);
const TTL: Duration = Duration::from_secs(3);

#[derive(Clone, Debug)]
pub struct TortureOptions {
    pub binary: PathBuf,
    pub seed: u64,
    pub faults: usize,
    /// Of which kinds; all that are possible if empty.
    pub kinds: Vec<FaultKind>,
    /// 1 for a single node with a static lease.
    pub nodes: usize,
    pub passthrough: Passthrough,
    /// Only clients of that journal mode, and the metronomes.
    pub journal: Option<JournalMode>,
    pub durability: Durability,
    /// Judge after each fault and end with the first that hurt an oracle: what came later tells nothing of it.
    pub stop_at_first: bool,
    /// Is made and must be empty; removed by nobody.
    pub directory: PathBuf,
}

/// What a run came to.
#[derive(Debug, Serialize)]
pub struct Summary {
    pub seed: u64,
    pub nodes: usize,
    pub passthrough: Passthrough,
    pub binary: PathBuf,
    pub directory: PathBuf,
    pub seconds: f64,
    pub faults: BTreeMap<String, usize>,
    pub hung_clients: Vec<String>,
    pub stuck: Vec<String>,
    /// What hurts an oracle, in words; empty is what a run must be.
    pub problems: Vec<String>,
    #[serde(flatten)]
    pub judgement: Judgement,
}

impl Summary {
    pub fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }

    /// A line for each kind of fault: what clients met from one to the next.
    pub fn gates(&self) -> Vec<String> {
        let Judgement {
            errors,
            lost_by_fault,
            wrong_by_fault,
            stale,
            broken,
            pauses,
            ..
        } = &self.judgement;
        let of = |counts: &BTreeMap<String, u64>, kind: &str| counts.get(kind).copied().unwrap_or(0);
        let line = |(kind, count): (&String, &usize)| {
            let errors: u64 = errors.get(kind).iter().flat_map(|errors| errors.values()).sum();
            let (lost, wrong) = (of(lost_by_fault, kind), of(wrong_by_fault, kind));
            let (stale, broken) = (of(stale, kind), of(broken, kind));
            let pause = pauses.get(kind).map_or_else(String::new, |pause| {
                format!(
                    "; longest pause p50 {:.0} p99 {:.0} max {:.0} ms",
                    pause.p50, pause.p99, pause.max
                )
            });
            format!(
                "{count} x {kind}: {lost} lost, {wrong} wrong, {errors} errors, {stale} stale, {broken} connections broken{pause}"
            )
        };
        self.faults.iter().map(line).collect()
    }
}

/// What happened so far.
#[derive(Default)]
struct Record {
    faults: Vec<Occurrence>,
    hung: Vec<String>,
    stuck: Vec<String>,
    problems: Vec<String>,
}

/// Runs to the end, or until it is `interrupted`; `tell` is given a line for each fault.
pub fn run(
    options: &TortureOptions,
    interrupted: &AtomicBool,
    tell: &mut dyn FnMut(&str),
) -> Result<Summary> {
    let start = Instant::now();
    let kinds = possible_kinds(options)?;
    std::fs::create_dir_all(&options.directory).map_err(Error::file("creating", &options.directory))?;
    let mut field = build(options)?;
    create_databases(&field, options)?;
    let mut crew = Crew::start(
        &field.places()?,
        &options.directory,
        options.seed,
        options.journal,
    )?;
    let mut record = Record::default();
    if !crew.await_metronome(now(), SERVICE) {
        return Err(Error::Invalid(format!(
            "no client commits before the first fault; see {}",
            options.directory.display()
        )));
    }
    std::thread::sleep(PEACE);
    let mut dealer = Dealer::new(options.seed, kinds);
    for number in 1..=options.faults {
        if interrupted.load(Ordering::SeqCst) {
            tell("interrupted: judging what has happened so far");
            break;
        }
        let fault = dealer.next();
        let at = start.elapsed().as_secs_f64();
        strike(&mut field, &mut crew, fault, &mut record, &mut |text| {
            tell(&format!("{at:9.3} fault {number}/{}: {text}", options.faults));
        });
        if options.stop_at_first && did_harm(&mut field, &crew, &record, options, tell) {
            break;
        }
    }
    let journals = wind_up(&mut field, crew, &mut record);
    let look = final_look::take(&mut field, &options.directory, &mut record.problems)?;
    let evidence = Evidence {
        journals: &journals,
        faults: &record.faults,
        held: &look.held,
        archived: &look.archived,
        until: u64::MAX,
        nodes: options.nodes,
    };
    let judgement = oracle::judge(&evidence)?;
    Ok(summary(options, record, judgement, start.elapsed()))
}

fn possible_kinds(options: &TortureOptions) -> Result<Vec<FaultKind>> {
    let generation = field::generation(&options.binary)?;
    let possible = |kind: &FaultKind| kind.is_possible(options.nodes, generation);
    if options.kinds.is_empty() {
        return Ok(FaultKind::ALL.into_iter().filter(possible).collect());
    }
    match options.kinds.iter().find(|kind| !possible(kind)) {
        None => Ok(options.kinds.clone()),
        Some(kind) => Err(Error::refused(
            format!(
                "{} is not possible with {} of {}",
                kind.name(),
                options.nodes,
                options.binary.display()
            ),
            "kill-daemon, kill-keeper and reload need a litefs that knows `litefs reload`; faults between nodes need --nodes 3",
        )),
    }
}

fn build(options: &TortureOptions) -> Result<Field> {
    if options.nodes == 1 {
        let solo = SoloOptions {
            binary: options.binary.clone(),
            dir: options.directory.clone(),
            passthrough: match options.passthrough {
                Passthrough::Auto => "auto",
                Passthrough::On => "on",
                Passthrough::Off => "off",
            },
            durability: match options.durability {
                Durability::Follow => "follow",
                Durability::Commit => "commit",
                Durability::Replicated => "replicated",
            },
        };
        return Ok(Field::Solo(Box::new(Solo::start(solo)?)));
    }
    let cluster = Cluster::up(ClusterOptions {
        name: "torture".into(),
        nodes: options.nodes,
        // The directory is kept for whoever must find out what happened.
        keep: Keep::Yes,
        litefs: crate::binary::Wanted {
            binary: Some(options.binary.clone()),
            release: false,
        },
        passthrough: options.passthrough,
        durability: options.durability,
        ttl: TTL,
        lock_delay: Duration::from_millis(200),
        seed: options.seed,
        root: Some(options.directory.clone()),
        ..ClusterOptions::default()
    })?;
    cluster.wait_until_ready(PATIENCE)?;
    if cluster.status()?.user_namespace {
        let hint = "run as root: clients outside the cluster's namespaces do not see its mounts";
        return Err(Error::refused("a torture of a cluster needs root", hint));
    }
    Ok(Field::Cluster(Box::new(cluster)))
}

/// The databases, with the table that all write to. In WAL mode where writers want it, because that is a property of the file.
fn create_databases(field: &Field, options: &TortureOptions) -> Result<()> {
    let (primary, _) = field.primary()?;
    let mount = field.places()?.swap_remove(primary).mount;
    for node in 0..options.nodes {
        for profile in cast(node, options.nodes, options.journal) {
            let mode = match profile.journal {
                JournalMode::Wal => "WAL",
                _ => "DELETE",
            };
            let path = mount.join(&profile.database);
            let created = Connection::open(&path).and_then(|connection| {
                connection.execute_batch(&format!("PRAGMA journal_mode={mode}; {}", rows::SCHEMA))
            });
            created.map_err(|error| Error::Invalid(format!("creating {}: {error}", path.display())))?;
        }
    }
    Ok(())
}

fn strike(field: &mut Field, crew: &mut Crew, fault: Fault, record: &mut Record, tell: &mut dyn FnMut(&str)) {
    let begin = now();
    record.faults.push(Occurrence {
        kind: fault.kind,
        begin,
    });
    let suffered = field.suffer(fault).and_then(|whom| field.settle().map(|()| whom));
    let lasted = Duration::from_nanos(now() - begin).as_secs_f64();
    match suffered {
        Ok(whom) => tell(&format!("{} {whom}, over after {lasted:.3} s", fault.kind.name())),
        Err(error) => {
            tell(&format!(
                "{} FAILED after {lasted:.3} s: {error}",
                fault.kind.name()
            ));
            record.problems.push(format!("{}: {error}", fault.kind.name()));
            if let Err(error) = field.recover() {
                record
                    .problems
                    .push(format!("the nodes do not come back: {error}"));
            }
        }
    }
    // Who has waited in vain once is not surprised again.
    let patience = if record.stuck.is_empty() { SERVICE } else { AGAIN };
    if !crew.await_metronome(now(), patience) {
        let what = format!(
            "after {} no metronome commits for {patience:?}",
            fault.kind.name()
        );
        tell(&what);
        record.stuck.push(what);
    }
    for hung in crew.hung() {
        tell(&hung);
        record.hung.push(hung);
    }
    std::thread::sleep(fault.rest);
}

/// Whether a look while the clients go on finds that something is lost or wrong.
fn did_harm(
    field: &mut Field,
    crew: &Crew,
    record: &Record,
    options: &TortureOptions,
    tell: &mut dyn FnMut(&str),
) -> bool {
    let until = now();
    let judged = |field: &Field| {
        let look = final_look::glance(field, &options.directory)?;
        oracle::judge(&Evidence {
            journals: &crew.journals(),
            faults: &record.faults,
            held: &look.held,
            archived: &look.archived,
            until,
            nodes: options.nodes,
        })
    };
    let judgement = judged(field).and_then(|judgement| {
        if judgement.lost == 0 {
            return Ok(judgement);
        }
        // A node may be about to archive what it has and the others have not.
        field.catch_up()?;
        judged(field)
    });
    match judgement {
        Ok(judgement) => {
            let Judgement { lost, wrong, .. } = judgement;
            if lost + wrong > 0 {
                tell(&format!(
                    "after it {lost} transactions are lost, and {wrong} times something wrong was read"
                ));
            }
            lost + wrong > 0
        }
        // The next fault may be better to look after.
        Err(error) => {
            tell(&format!("not judged: {error}"));
            false
        }
    }
}

/// After the last fault: all go on, all pause, all tell what they see, all end.
fn wind_up(
    field: &mut Field,
    mut crew: Crew,
    record: &mut Record,
) -> Vec<(profile::Profile, usize, PathBuf)> {
    std::thread::sleep(PEACE);
    match field.primary() {
        Ok((node, _)) => {
            let stuck = crew.await_all_writers(node, PATIENCE);
            record.stuck.extend(
                stuck
                    .into_iter()
                    .map(|who| format!("{who} commits nothing after the faults")),
            );
        }
        Err(error) => record.problems.push(format!("after the faults: {error}")),
    }
    record.hung.extend(
        crew.pause(PATIENCE)
            .into_iter()
            .map(|who| format!("{who} does not pause")),
    );
    if let Err(error) = field.catch_up() {
        record.problems.push(format!("after the faults: {error}"));
    }
    record.hung.extend(
        crew.report(PATIENCE)
            .into_iter()
            .map(|who| format!("{who} does not report")),
    );
    record.hung.extend(crew.hung());
    let (hung, journals) = crew.end();
    record.hung.extend(hung);
    journals
}

fn summary(options: &TortureOptions, record: Record, judgement: Judgement, took: Duration) -> Summary {
    let mut problems = record.problems;
    let mut count = |number: u64, what: &str| {
        if number > 0 {
            problems.push(format!("{number} {what}"));
        }
    };
    count(judgement.lost, "acknowledged transactions are lost");
    count(judgement.wrong, "times something wrong was read");
    count(record.hung.len() as u64, "clients hung");
    count(record.stuck.len() as u64, "databases or clients were stuck");
    count(judgement.inexcusable, "errors where none may be seen");
    count(judgement.inexcusably_broken, "connections had to be replaced");
    count(judgement.inexcusably_stale, "times old content was read");
    let mut faults = BTreeMap::new();
    for fault in &record.faults {
        *faults.entry(fault.kind.name()).or_default() += 1;
    }
    Summary {
        seed: options.seed,
        nodes: options.nodes,
        passthrough: options.passthrough,
        binary: options.binary.clone(),
        directory: options.directory.clone(),
        seconds: took.as_secs_f64(),
        faults,
        hung_clients: record.hung,
        stuck: record.stuck,
        problems,
        judgement,
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(Error::system("starting the async runtime"))
}

/// Ends what a run that keeps its directory left running.
pub fn clean_up(directory: &Path) -> Result<()> {
    if !directory.exists() {
        return Ok(());
    }
    let root = directory
        .canonicalize()
        .map_err(Error::file("resolving", directory))?;
    match Cluster::open_in(&root, Some("torture")) {
        Ok(cluster) => cluster.down(),
        Err(_) => Ok(()),
    }
}

/// Removes what a run stored.
pub fn remove(directory: &Path) -> Result<()> {
    crate::remove::remove_tree(directory).map_err(Error::file("removing", directory))
}
