//! The background process of a cluster: owns its namespaces and wires, and starts, signals and reaps its daemons.
//!
//! Invariants: it holds the directory's lock for as long as it lives; nothing it started outlives it (daemons die with it, mounts are
//! detached at the next start at the latest); it knows of LiteFS only how to start it. The command line reaches it by [`crate::control`].

mod forward;
mod mounts;
mod privilege;
mod process;
mod serve;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal};

pub(crate) use mounts::{detach_below, mounted_below};
use process::{Process, Spawner};

use crate::binary;
use crate::control::{LinkState, Request, StationState, SupervisorState, Victims};
use crate::directory::ClusterDirectory;
use crate::error::{Error, Result};
use crate::net::Network;
use crate::processes;
use crate::spec::{ClusterSpec, LeaseKind};
use crate::station::Station;

/// How long a daemon may take to end cleanly when the whole cluster goes down.
const SHUTDOWN: Duration = Duration::from_secs(15);
const LEASE_START: Duration = Duration::from_secs(10);

pub(crate) struct Supervisor {
    directory: ClusterDirectory,
    spec: ClusterSpec,
    user_namespace: bool,
    network: Network,
    ports: BTreeMap<Station, u16>,
    processes: BTreeMap<Station, Arc<Process>>,
    spawner: Spawner,
    /// This very program, which is also the lease server.
    program: PathBuf,
    /// The cluster outlives its owner.
    kept: AtomicBool,
    _lock: File,
}

/// The process that a cluster ends with, unless it is told to outlive it.
#[derive(Clone, Copy, Debug)]
pub struct Owner {
    pub pid: i32,
    /// The cluster's files stay when it ends that way.
    pub leaves_files: bool,
}

/// Runs the cluster below `path` until it is told to shut down, by request or SIGTERM, or until `owner` ends.
/// Must be called before the process has threads.
pub fn run(path: &Path, owner: Option<Owner>) -> Result<()> {
    let directory = ClusterDirectory::at(path)?;
    let Some(lock) = directory.lock()? else {
        let hint = format!("{} status --name {}", binary::typed(), directory.name());
        return Err(Error::refused("this cluster has a supervisor already", hint));
    };
    let user_namespace = privilege::acquire()?;
    // Blocked before the first thread, so that only `serve::on_signal` sees them.
    serve::end_signals()
        .thread_block()
        .map_err(Error::errno("blocking signals"))?;
    end_left_behind(&directory)?;
    detach_below(directory.path())?;

    let (spawner, jobs) = process::spawner();
    let supervisor = Arc::new(Supervisor::build(directory, lock, user_namespace, spawner)?);
    let listener = supervisor.directory.listen()?;
    let main = Arc::clone(&supervisor);
    std::thread::spawn(move || serve::serve(&main, &listener));
    let main = Arc::clone(&supervisor);
    std::thread::spawn(move || serve::on_signal(&main));
    if let Some(owner) = owner {
        std::thread::spawn(move || serve::with_owner(&supervisor, owner));
    }
    jobs.run();
    Ok(())
}

/// Ends what a supervisor that was killed could not: its nodes' companions live in a network that nobody else can reach.
pub(crate) fn end_left_behind(directory: &ClusterDirectory) -> Result<()> {
    for node in directory.spec()?.node_stations() {
        processes::end_left_behind(&directory.data(node));
    }
    Ok(())
}

impl Supervisor {
    fn build(
        directory: ClusterDirectory,
        lock: File,
        user_namespace: bool,
        spawner: Spawner,
    ) -> Result<Self> {
        let mut spec = directory.spec()?;
        let network = Network::build(spec.nodes, spec.seed)?;
        let mut ports = BTreeMap::new();
        for station in spec.stations() {
            let listener = forward::listen(spec.ports.get(&station).copied())?;
            let address = listener
                .local_addr()
                .map_err(Error::system("reading a bound address"))?;
            ports.insert(station, address.port());
            forward::start(listener, station, network.namespace(station)?)?;
        }
        if ports != spec.ports {
            spec.ports.clone_from(&ports);
            directory.save_spec(&spec)?;
        }
        let processes = spec
            .stations()
            .map(|station| (station, Process::new(station.to_string(), directory.name())))
            .collect();
        let program = std::env::current_exe().map_err(Error::system("finding this program"))?;
        Ok(Self {
            directory,
            spec,
            user_namespace,
            network,
            ports,
            processes,
            spawner,
            program,
            kept: AtomicBool::new(false),
            _lock: lock,
        })
    }

    /// Writes the nodes' configurations and starts the lease server. The nodes are started by request.
    fn prepare(&self) -> Result<()> {
        let root = nix::unistd::geteuid().is_root() && !self.user_namespace;
        for node in self.spec.node_stations() {
            for directory in [self.directory.data(node), self.directory.mount(node)] {
                std::fs::create_dir_all(&directory).map_err(Error::file("creating", &directory))?;
            }
            let config = self.directory.config(node);
            let content = self.spec.litefs_yml(&self.directory, node, root);
            std::fs::write(&config, content).map_err(Error::file("writing", &config))?;
        }
        crate::lease::end_sessions(&self.directory.lease_state())?;
        self.start(Station::LEASE)?;
        self.wait_for_lease()
    }

    fn wait_for_lease(&self) -> Result<()> {
        let answers = || std::net::TcpStream::connect(Station::LEASE.local_service()).is_ok();
        let deadline = Instant::now() + LEASE_START;
        let wait = || {
            while !answers() {
                if Instant::now() > deadline || self.processes[&Station::LEASE].state().pid().is_none() {
                    return false;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            true
        };
        if self.network.namespace(Station::LEASE)?.run(wait)? {
            return Ok(());
        }
        let hint = format!("see {}", self.directory.log(Station::LEASE).display());
        Err(Error::refused("the lease server does not answer", hint))
    }

    fn process(&self, station: Station) -> Result<&Arc<Process>> {
        let unknown = || Error::Invalid(format!("this cluster has no {station}"));
        self.processes.get(&station).ok_or_else(unknown)
    }

    fn start(&self, station: Station) -> Result<()> {
        let process = self.process(station)?;
        if let Some(pid) = process.state().pid() {
            return Err(Error::Invalid(format!("{station} runs already (pid {pid})")));
        }
        self.detach_dead_mount(station)?;
        let command = self.command(station)?;
        process.start(&self.spawner, command)
    }

    fn command(&self, station: Station) -> Result<Command> {
        let mut command = match (station.is_node(), self.spec.lease) {
            (true, _) => {
                let mut command = Command::new(&self.spec.binary);
                command
                    .arg("mount")
                    .arg("-config")
                    .arg(self.directory.config(station))
                    .env("HOSTNAME", station.to_string());
                command
            }
            (false, LeaseKind::Embedded) => {
                let mut command = Command::new(&self.program);
                command
                    .args(["lease-server", "--listen", "0.0.0.0:8500", "--state"])
                    .arg(self.directory.lease_state());
                command
            }
            (false, LeaseKind::Consul) => {
                let mut command = Command::new(self.spec.consul.as_deref().unwrap_or(Path::new("consul")));
                let bind = format!("-bind={}", station.ip());
                command.args(["agent", "-dev", &bind, "-client=0.0.0.0"]);
                command
            }
        };
        let directory = self.directory.station(station);
        std::fs::create_dir_all(&directory).map_err(Error::file("creating", &directory))?;
        let log = self.open_log(station)?;
        let errors = log
            .try_clone()
            .map_err(Error::system("duplicating a log's descriptor"))?;
        command
            .current_dir(directory)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .process_group(0);
        let namespace = self.network.namespace(station)?.try_clone()?;
        let enter = move || {
            setns(&namespace, CloneFlags::CLONE_NEWNET)?;
            set_pdeathsig(Signal::SIGKILL)?;
            SigSet::empty().thread_set_mask()?;
            Ok(())
        };
        // SAFETY: between fork and exec only the three system calls above are made; nothing is allocated.
        unsafe { command.pre_exec(enter) };
        Ok(command)
    }

    fn open_log(&self, station: Station) -> Result<File> {
        let path = self.directory.log(station);
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(Error::file("opening", &path))
    }

    fn handle(&self, request: Request) -> Result<()> {
        match request {
            Request::State => Ok(()),
            Request::Start(station) => self.start(station),
            Request::Stop(station, patience) => self.stop(station, patience),
            Request::Kill(station, Victims::Node) => self.kill(station),
            Request::Kill(station, Victims::Daemon) => self.kill_daemon(station),
            Request::Kill(station, Victims::All) => self.kill_all(station),
            Request::Reload(station) => self.process(station)?.reload(),
            Request::Pause(station) => self.process(station)?.pause(),
            Request::Resume(station) => self.process(station)?.resume(),
            Request::Link(directions, policy) => self.network.link(&directions, policy),
            Request::Cut(directions) => self.network.cut(&directions),
            Request::Heal(policies) => self.network.heal(policies),
            Request::Keep => {
                self.kept.store(true, Ordering::SeqCst);
                Ok(())
            }
            Request::Shutdown => {
                self.shut_down();
                Ok(())
            }
        }
    }

    fn stop(&self, station: Station, patience: Duration) -> Result<()> {
        let process = self.process(station)?;
        process.terminate()?;
        if !process.wait_stopped(patience) {
            let hint = format!(
                "look into {}, or: {} kill --name {} {station}",
                self.directory.log(station).display(),
                binary::typed(),
                self.directory.name()
            );
            return Err(Error::refused(
                format!("{station} still runs {patience:?} after SIGTERM"),
                hint,
            ));
        }
        self.detach_dead_mount(station)
    }

    /// A daemon that was killed leaves its mount behind; where a keeper holds that, the next daemon takes it over instead. The mount
    /// itself is not asked: one that a keeper holds does not answer before there is a daemon.
    fn detach_dead_mount(&self, station: Station) -> Result<()> {
        if station.is_node() && processes::holder(&self.directory.data(station)).is_keeper() {
            return Ok(());
        }
        detach_below(&self.directory.station(station))
    }

    fn kill(&self, station: Station) -> Result<()> {
        let process = self.process(station)?;
        process.kill()?;
        if process.wait_stopped(SHUTDOWN) {
            return Ok(());
        }
        Err(Error::Invalid(format!(
            "{station} was killed but does not end: a call of its own waits in the kernel"
        )))
    }

    /// Kills the daemon below the process that was started.
    fn kill_daemon(&self, station: Station) -> Result<()> {
        let launcher = self.process(station)?.running_pid()?;
        let daemons = processes::daemons_of(launcher);
        if daemons.is_empty() {
            let (dev, name) = (binary::typed(), self.directory.name());
            let hint = format!("this litefs is its own daemon: {dev} kill --name {name} {station}");
            let message = format!("{station} (pid {launcher}) has no daemon below it");
            return Err(Error::refused(message, hint));
        }
        must_have_ended(station, &processes::end(&daemons))
    }

    /// Kills the node and its companions at once, as the end of a container does.
    fn kill_all(&self, station: Station) -> Result<()> {
        let process = self.process(station)?;
        let data = self.directory.data(station);
        let mut victims = processes::left_behind(&data);
        if let Some(launcher) = process.state().pid() {
            victims.extend(processes::descendants(launcher));
            process.kill()?;
        }
        let left = processes::end(&victims);
        processes::end_left_behind(&data);
        if !process.wait_stopped(SHUTDOWN) {
            return Err(Error::Invalid(format!("{station} was killed but does not end")));
        }
        must_have_ended(station, &left)
    }

    /// Ends everything, politely first. Never fails: what cannot be ended is in the log.
    fn shut_down(&self) {
        let (nodes, lease): (Vec<_>, Vec<_>) =
            self.processes.iter().partition(|(station, _)| station.is_node());
        for group in [nodes, lease] {
            let deadline = Instant::now() + SHUTDOWN;
            let running: Vec<_> = group
                .into_iter()
                .filter(|(_, process)| process.terminate().is_ok())
                .collect();
            for (station, process) in running {
                if !process.wait_stopped(deadline.saturating_duration_since(Instant::now())) {
                    tracing::warn!(%station, "did not end within {SHUTDOWN:?} after SIGTERM; killing it");
                    let _ = process.kill();
                    process.wait_stopped(Duration::from_secs(1));
                }
            }
        }
        for station in self.network.stations() {
            if let Ok(namespace) = self.network.namespace(station) {
                namespace.kill_processes();
            }
        }
        for node in self.spec.node_stations() {
            processes::end_left_behind(&self.directory.data(node));
        }
        if let Err(error) = detach_below(self.directory.path()) {
            tracing::error!(%error, "a mount is left over");
        }
    }

    fn state(&self) -> Result<SupervisorState> {
        let station = |(&station, process): (&Station, &Arc<Process>)| -> Result<StationState> {
            Ok(StationState {
                station,
                process: process.state(),
                namespace_fd: self.network.namespace(station)?.raw_fd(),
                port: self.ports[&station],
            })
        };
        let controls = self.network.controls();
        let links = controls
            .settings()
            .into_iter()
            .map(|(direction, setting)| LinkState {
                direction,
                setting,
                traffic: controls.traffic(direction),
            });
        Ok(SupervisorState {
            pid: std::process::id().cast_signed(),
            user_namespace: self.user_namespace,
            stations: self.processes.iter().map(station).collect::<Result<_>>()?,
            links: links.collect(),
        })
    }
}

fn must_have_ended(station: Station, left: &[i32]) -> Result<()> {
    match left {
        [] => Ok(()),
        left => Err(Error::Invalid(format!(
            "processes {left:?} of {station} were killed but do not end: calls of theirs wait in the kernel"
        ))),
    }
}
