//! Where a torture takes place: a single node, or a cluster.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use litefs_api::{Client, Status};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::fault::{Fault, FaultKind, Generation, Victim};
use crate::control::Victims;
use crate::processes::{self, Companion};
use crate::solo::Solo;
use crate::{Cluster, Condition, Error, Result, Station};

/// After a fault in the worst case: leases end, a node is elected, replicas come back.
const SETTLE: Duration = Duration::from_secs(60);
const GLANCE: Duration = Duration::from_millis(10);
/// How often a fault that needs a primary and a replica is tried.
const TRIES: u32 = 5;

pub(super) enum Field {
    Solo(Box<Solo>),
    Cluster(Box<Cluster>),
}

/// A node as clients and oracles see it.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) name: String,
    pub(super) mount: PathBuf,
    pub(super) data: PathBuf,
}

/// What the binary is.
pub(super) fn generation(binary: &std::path::Path) -> Result<Generation> {
    let output = Command::new(binary)
        .arg("--help")
        .stdin(Stdio::null())
        .output()
        .map_err(Error::file("start", binary))?;
    let help = String::from_utf8_lossy(&output.stdout).into_owned();
    let knows_reload = help.lines().any(|line| line.trim_start().starts_with("reload"));
    Ok(if knows_reload {
        Generation::Launcher
    } else {
        Generation::Single
    })
}

impl Field {
    pub(super) fn places(&self) -> Result<Vec<Place>> {
        match self {
            Self::Solo(solo) => Ok(vec![Place {
                name: "solo".into(),
                mount: solo.mount(),
                data: solo.data(),
            }]),
            Self::Cluster(cluster) => {
                let place = |station| {
                    let directory = cluster.directory();
                    Place {
                        name: Station::to_string(&station),
                        mount: directory.mount(station),
                        data: directory.data(station),
                    }
                };
                Ok(stations(cluster)?.into_iter().map(place).collect())
            }
        }
    }

    /// The number of the node that leads, and its API.
    pub(super) fn primary(&self) -> Result<(usize, String)> {
        match self {
            Self::Solo(solo) => Ok((0, solo.url())),
            Self::Cluster(cluster) => {
                let primary = cluster.primary()?;
                let number = stations(cluster)?
                    .iter()
                    .position(|station| *station == primary.station());
                Ok((number.unwrap_or(0), primary.url()?))
            }
        }
    }

    /// What each node says of itself.
    pub(super) fn statuses(&self) -> Result<Vec<(String, Status)>> {
        match self {
            Self::Solo(solo) => {
                let status = serde_json::from_str(&solo.get("/status")?);
                let status = status.map_err(|error| Error::Invalid(format!("/status: {error}")))?;
                Ok(vec![("solo".into(), status)])
            }
            Self::Cluster(cluster) => {
                let status = cluster.status()?;
                Ok(status
                    .live()
                    .map(|(node, said)| (node.name.to_string(), said.clone()))
                    .collect())
            }
        }
    }

    /// Waits until everything is as it was before the fault.
    pub(super) fn settle(&mut self) -> Result<()> {
        match self {
            Self::Solo(solo) => solo.await_primary(),
            Self::Cluster(cluster) => cluster.wait(&Condition::Settled, SETTLE).map(drop),
        }
    }

    /// Waits until all nodes have what the primary has.
    pub(super) fn catch_up(&mut self) -> Result<()> {
        self.settle()?;
        match self {
            Self::Solo(_) => Ok(()),
            Self::Cluster(cluster) => cluster
                .wait(&Condition::CaughtUp { node: None }, SETTLE)
                .map(drop),
        }
    }

    /// Does it and undoes it; says to whom.
    pub(super) fn suffer(&mut self, fault: Fault) -> Result<String> {
        match self {
            Self::Solo(solo) => suffer_alone(solo, fault).map(|()| "solo".to_owned()),
            Self::Cluster(cluster) => suffer_together(cluster, fault),
        }
    }

    /// After a fault that could not be carried out or undone: from the ground up.
    pub(super) fn recover(&mut self) -> Result<()> {
        match self {
            Self::Solo(solo) => {
                solo.kill_all()?;
                solo.restart().map(drop)
            }
            Self::Cluster(cluster) => {
                cluster.heal(true)?;
                for station in stations(cluster)? {
                    let node = cluster.at(station);
                    let _ = node.resume();
                    node.kill_of(Victims::All)?;
                    node.start()?;
                }
                cluster.wait(&Condition::Settled, SETTLE).map(drop)
            }
        }
    }

    /// Stops all nodes, primary last, and starts them.
    pub(super) fn restart(&mut self) -> Result<()> {
        match self {
            Self::Solo(solo) => {
                solo.stop()?;
                solo.restart().map(drop)
            }
            Self::Cluster(cluster) => restart_all(cluster, How::Stop, Duration::ZERO),
        }
    }
}

fn stations(cluster: &Cluster) -> Result<Vec<Station>> {
    Ok(cluster.directory().spec()?.node_stations().collect())
}

fn suffer_alone(solo: &mut Solo, fault: Fault) -> Result<()> {
    let before = solo.daemon_pid();
    match fault.kind {
        FaultKind::Kill => solo.kill()?,
        FaultKind::KillAll => solo.kill_all()?,
        FaultKind::Stop => solo.stop()?,
        FaultKind::KillDaemon => {
            solo.kill_daemon()?;
            return solo.await_another(before);
        }
        FaultKind::Reload => {
            solo.reload()?;
            return solo.await_another(before);
        }
        FaultKind::KillKeeper => return solo.kill_companions(Companion::Keeper).map(drop),
        FaultKind::KillOpener => return solo.kill_companions(Companion::Opener).map(drop),
        FaultKind::StopDeposed
        | FaultKind::Partition
        | FaultKind::Pause
        | FaultKind::Handoff
        | FaultKind::Promote
        | FaultKind::StopAll
        | FaultKind::KillCluster => return Err(not_for_one(fault.kind)),
    }
    std::thread::sleep(fault.lasts);
    solo.restart().map(drop)
}

fn not_for_one(kind: FaultKind) -> Error {
    Error::refused(format!("{} needs several nodes", kind.name()), "give --nodes 3")
}

fn suffer_together(cluster: &Cluster, fault: Fault) -> Result<String> {
    let (primary, replicas) = parts(cluster)?;
    let replica = |number: usize| replicas[number % replicas.len()];
    let victim = match fault.victim {
        Victim::Primary => primary,
        Victim::Replica(number) => replica(number),
    };
    let node = cluster.at(victim);
    match fault.kind {
        FaultKind::Kill => node.kill()?,
        FaultKind::KillAll => node.kill_of(Victims::All)?,
        FaultKind::Stop => node.stop()?,
        FaultKind::StopDeposed => return stop_deposed(cluster, primary, fault.lasts),
        FaultKind::KillDaemon => return replaced(cluster, victim, || node.kill_of(Victims::Daemon)),
        FaultKind::Reload => return replaced(cluster, victim, || node.reload()),
        FaultKind::KillKeeper => return kill_companions(cluster, victim, Companion::Keeper),
        FaultKind::KillOpener => return kill_companions(cluster, victim, Companion::Opener),
        FaultKind::Pause => {
            node.pause()?;
            std::thread::sleep(fault.lasts);
            node.resume()?;
            return Ok(victim.to_string());
        }
        FaultKind::Partition => {
            cluster.partition(&[vec![victim]], false)?;
            std::thread::sleep(fault.lasts);
            cluster.heal(true)?;
            return Ok(victim.to_string());
        }
        FaultKind::Handoff | FaultKind::Promote => {
            let Victim::Replica(number) = fault.victim else {
                return change_primary(cluster, primary, replica(0), fault.kind);
            };
            return change_primary(cluster, primary, replica(number), fault.kind);
        }
        FaultKind::StopAll => {
            restart_all(cluster, How::Stop, fault.lasts)?;
            return Ok("all".into());
        }
        FaultKind::KillCluster => {
            restart_all(cluster, How::Kill, fault.lasts)?;
            return Ok("all".into());
        }
    }
    std::thread::sleep(fault.lasts);
    node.start()?;
    let role = if victim == primary { "primary" } else { "replica" };
    Ok(format!("{victim} ({role})"))
}

/// The primary and the others of a settled cluster.
fn parts(cluster: &Cluster) -> Result<(Station, Vec<Station>)> {
    for _ in 0..TRIES {
        cluster.wait(&Condition::Settled, SETTLE)?;
        if let (Ok(primary), Ok(replicas)) = (cluster.primary(), cluster.replicas())
            && !replicas.is_empty()
        {
            return Ok((
                primary.station(),
                replicas.iter().map(|node| node.station()).collect(),
            ));
        }
    }
    Err(Error::Invalid("no primary with replicas".into()))
}

fn daemon_pid(cluster: &Cluster, station: Station) -> Result<Option<i32>> {
    let status = cluster.status()?;
    let launcher = status.node(station).and_then(|node| node.process.pid());
    Ok(launcher.map(|pid| processes::daemons_of(pid).first().copied().unwrap_or(pid)))
}

fn replaced(cluster: &Cluster, station: Station, replace: impl FnOnce() -> Result<()>) -> Result<String> {
    let before = daemon_pid(cluster, station)?;
    replace()?;
    let start = Instant::now();
    while daemon_pid(cluster, station)? == before {
        if start.elapsed() > SETTLE {
            return Err(Error::Timeout {
                what: format!("another daemon serves {station}"),
                waited: SETTLE,
                seen: format!("it is process {before:?}"),
            });
        }
        std::thread::sleep(GLANCE);
    }
    Ok(station.to_string())
}

fn kill_companions(cluster: &Cluster, station: Station, kind: Companion) -> Result<String> {
    let found = processes::companions(&cluster.at(station).data(), kind);
    for &pid in &found {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    Ok(format!("{station}, {} killed", found.len()))
}

fn change_primary(cluster: &Cluster, from: Station, to: Station, kind: FaultKind) -> Result<String> {
    let id = cluster
        .status()?
        .node(to)
        .and_then(|node| Some(node.node.as_ref()?.node_id))
        .ok_or_else(|| Error::Invalid(format!("{to} does not answer")))?;
    let runtime = super::runtime()?;
    let url = match kind {
        FaultKind::Promote => cluster.at(to).url()?,
        _ => cluster.at(from).url()?,
    };
    let client = Client::new(&url).map_err(|error| Error::Invalid(error.to_string()))?;
    let done = match kind {
        FaultKind::Promote => runtime.block_on(client.promote(false)),
        _ => runtime.block_on(client.handoff(id)),
    };
    // A refusal is an answer: another node may just have taken the lease.
    let outcome = done.map_or_else(|error| format!(" ({error})"), |()| String::new());
    Ok(format!("{from} -> {to}{outcome}"))
}

/// A primary that nobody follows any more is stopped before it hears of its successor.
fn stop_deposed(cluster: &Cluster, deposed: Station, down: Duration) -> Result<String> {
    cluster.partition(&[vec![deposed]], false)?;
    let start = Instant::now();
    while !cluster.status()?.primaries().any(|node| node.name != deposed) {
        if start.elapsed() > SETTLE {
            return Err(Error::Timeout {
                what: format!("another node than {deposed} leads"),
                waited: SETTLE,
                seen: cluster.status()?.summary(),
            });
        }
        std::thread::sleep(GLANCE);
    }
    cluster.at(deposed).stop()?;
    cluster.heal(true)?;
    std::thread::sleep(down);
    cluster.at(deposed).start()?;
    Ok(deposed.to_string())
}

#[derive(Clone, Copy)]
enum How {
    Stop,
    Kill,
}

fn restart_all(cluster: &Cluster, how: How, down: Duration) -> Result<()> {
    let primary = cluster.primary().ok().map(|node| node.station());
    let mut all = stations(cluster)?;
    all.sort_by_key(|station| Some(*station) == primary);
    for &station in &all {
        match how {
            How::Stop => cluster.at(station).stop()?,
            How::Kill => cluster.at(station).kill()?,
        }
    }
    std::thread::sleep(down);
    for &station in all.iter().rev() {
        cluster.at(station).start()?;
    }
    cluster.wait(&Condition::Settled, SETTLE).map(drop)
}
