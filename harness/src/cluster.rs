//! A cluster as a value: the library's face, and all the command line is made of.
//!
//! Calls block; do not use it inside an async runtime. A cluster made with [`Keep::No`] is destroyed when the value is dropped, and also
//! when the process that made it ends without dropping anything.

use std::fs::OpenOptions;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use terminal::interrupt;

use crate::binary;
use crate::control::{self, ProcessState, Request, SupervisorState};
use crate::directory::{self, ClusterDirectory};
use crate::error::{Error, Result};
use crate::node::Node;
use crate::options::{self, ClusterOptions, Keep};
use crate::remove::remove_tree;
use crate::spec::ClusterSpec;
use crate::station::Station;
use crate::status::{ClusterStatus, NodeRole};
use crate::supervisor;
use crate::verify::{self, Verification};
use crate::wait::Condition;
use crate::wire::{Direction, LinkPolicy};

/// How long a dying supervisor may hold its lock after it closed its socket.
const DYING: Duration = Duration::from_secs(1);
const SUPERVISOR_START: Duration = Duration::from_secs(30);
/// How long a node may take to end after SIGTERM.
pub(crate) const STOP: Duration = Duration::from_secs(30);
/// How long the other nodes of a new cluster wait for the first one.
const FIRST_PRIMARY: Duration = Duration::from_secs(3);
/// How long a supervisor may live without listening.
const MOMENT: Duration = Duration::from_secs(2);
/// Between two looks at a cluster that is waited for.
const GLANCE: Duration = Duration::from_millis(20);

pub struct Cluster {
    directory: ClusterDirectory,
    runtime: tokio::runtime::Runtime,
    keep: Keep,
    /// It was made by this value, and there was none of its name.
    is_new: bool,
    since: Instant,
}

impl Cluster {
    /// Makes a cluster, or brings a stopped one of that name back with its data, and returns once its supervisor has started all
    /// processes. [`Self::wait_until_ready`] tells when it is of use.
    pub fn up(options: ClusterOptions) -> Result<Self> {
        let root = options.root.clone().map_or_else(directory::root, Ok)?;
        let name = match options.name.as_str() {
            "" => format!("test-{}-{:08x}", std::process::id(), rand::random::<u32>()),
            name => name.to_owned(),
        };
        let directory = ClusterDirectory::of(&root, &name)?;
        if directory.is_running()? {
            let dev = binary::typed();
            let hint = format!("{dev} status --name {name}, or {dev} down --name {name} first");
            return Err(Error::refused(format!("cluster {name} is running already"), hint));
        }
        options::check_fuse_device()?;
        binary::litefs_dev()?;
        let spec = options::spec(&options, &directory)?;
        let since = Instant::now();
        let is_new = !directory.exists();
        std::fs::create_dir_all(directory.path()).map_err(Error::file("creating", directory.path()))?;
        let directory = ClusterDirectory::at(directory.path())?;
        directory.save_spec(&spec)?;
        let mut cluster = Self {
            directory,
            runtime: runtime()?,
            keep: options.keep,
            is_new,
            since,
        };
        let supervised = cluster.start_supervisor();
        if supervised.is_err() && cluster.directory.is_running()? {
            // Ours has ended; somebody else's was faster, and with it the cluster is theirs.
            cluster.keep = Keep::Yes;
            return supervised.map(|()| cluster);
        }
        match supervised.and_then(|()| cluster.start_nodes(spec.node_stations())) {
            Ok(()) => Ok(cluster),
            Err(error) => {
                let left = |left| Error::Invalid(format!("{error}; what was started is not ended: {left}"));
                cluster.undo().map_err(left)?;
                Err(error)
            }
        }
    }

    /// Undoes an [`Self::up`] that is not of use: nothing of the cluster runs any more, and there is none if there was none before.
    pub fn undo(&self) -> Result<()> {
        match self.is_new {
            true => self.destroy(),
            false => self.down(),
        }
    }

    /// The cluster of that name; without a name the only one there is. It is kept when the value is dropped.
    pub fn open(name: Option<&str>) -> Result<Self> {
        Self::open_in(&directory::root()?, name)
    }

    /// As [`Self::open`], below another root.
    pub fn open_in(root: &Path, name: Option<&str>) -> Result<Self> {
        let all = ClusterDirectory::all(root)?;
        let found = match (name, all.as_slice()) {
            (Some(name), _) => {
                let directory = ClusterDirectory::of(root, name)?;
                Some(directory)
                    .filter(ClusterDirectory::exists)
                    .ok_or_else(|| no_such(name, &all))?
            }
            (None, [only]) => only.clone(),
            (None, []) => {
                return Err(Error::refused(
                    format!("no cluster in {}", root.display()),
                    format!("{} up 3", binary::typed()),
                ));
            }
            (None, _) => {
                let hint = format!("choose one with --name: {}", names(&all));
                return Err(Error::refused("there are several clusters", hint));
            }
        };
        let directory = ClusterDirectory::at(found.path())?;
        Ok(Self {
            directory,
            runtime: runtime()?,
            keep: Keep::Yes,
            is_new: false,
            since: Instant::now(),
        })
    }

    /// When [`Self::up`] had found (or built) all it needs and began to start things.
    pub fn since(&self) -> Instant {
        self.since
    }

    pub fn name(&self) -> String {
        self.directory.name()
    }

    pub fn directory(&self) -> &ClusterDirectory {
        &self.directory
    }

    /// Node number `number`, counted from 1.
    pub fn node(&self, number: usize) -> Result<Node<'_>> {
        Station::node(number).map(|station| self.at(station))
    }

    /// The node (or lease server) `station`.
    pub fn at(&self, station: Station) -> Node<'_> {
        Node {
            cluster: self,
            station,
        }
    }

    /// The node that says it is primary.
    pub fn primary(&self) -> Result<Node<'_>> {
        let status = self.status()?;
        let primary = status.primaries().next().map(|node| node.name);
        primary
            .map(|station| self.at(station))
            .ok_or_else(|| Error::Invalid(format!("no primary: {}", status.summary())))
    }

    /// The nodes that say they are replicas.
    pub fn replicas(&self) -> Result<Vec<Node<'_>>> {
        let replica =
            |node: &crate::status::NodeStatus| (node.role == NodeRole::Replica).then(|| self.at(node.name));
        Ok(self.status()?.nodes.iter().filter_map(replica).collect())
    }

    /// Whether a supervisor that broke a conversation off is dying: its socket closes before its lock is free.
    fn ends_soon(&self) -> Result<bool> {
        let deadline = Instant::now() + DYING;
        while self.directory.is_running()? {
            if Instant::now() >= deadline {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(true)
    }

    pub fn status(&self) -> Result<ClusterStatus> {
        let spec = self.directory.spec()?;
        if !self.directory.is_running()? {
            return Ok(ClusterStatus::stopped(&self.directory, &spec));
        }
        let supervisor = match self.call(&Request::State) {
            Ok(supervisor) => supervisor,
            Err(Error::Supervisor(message)) => return Err(Error::Supervisor(message)),
            Err(_) if self.ends_soon()? => return self.status(),
            Err(error) => return Err(error),
        };
        Ok(self
            .runtime
            .block_on(ClusterStatus::collect(&self.directory, &spec, supervisor)))
    }

    /// Waits until the condition holds; returns how long that took. Ends early when somebody interrupts the program, if it watches for
    /// that ([`terminal::interrupt::watch`]).
    pub fn wait(&self, condition: &Condition, timeout: Duration) -> Result<Duration> {
        let start = Instant::now();
        loop {
            let status = self.status()?;
            if let Some(node) = condition.node()
                && !status.nodes.iter().any(|known| known.name == node)
            {
                let known: Vec<_> = status.nodes.iter().map(|node| node.name.to_string()).collect();
                return Err(Error::Node {
                    node: node.to_string(),
                    message: format!("there is no such node; the cluster has {}", known.join(", ")),
                });
            }
            let waited = start.elapsed();
            if condition.holds(&status) {
                return Ok(waited);
            }
            if !status.running {
                return Err(self.not_running());
            }
            if interrupt::requested() {
                return Err(Error::Interrupted);
            }
            if waited >= timeout {
                let (what, seen) = (condition.to_string(), status.summary());
                return Err(Error::Timeout { what, waited, seen });
            }
            std::thread::sleep(GLANCE);
        }
    }

    /// Waits until the cluster is of use, from when on it may be kept; gives up as soon as a node has ended.
    pub fn wait_until_ready(&self, timeout: Duration) -> Result<Duration> {
        let start = Instant::now();
        loop {
            match self.wait(&Condition::Settled, GLANCE) {
                Ok(_) => {
                    if self.keep == Keep::Yes {
                        self.call(&Request::Keep)?;
                    }
                    return Ok(start.elapsed());
                }
                Err(Error::Timeout { what, seen, .. }) => {
                    self.check_processes()?;
                    let waited = start.elapsed();
                    if waited >= timeout {
                        return Err(Error::Timeout { what, waited, seen });
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// An error with the end of its log if a process that was started has ended.
    fn check_processes(&self) -> Result<()> {
        for state in self.call(&Request::State)?.stations {
            if let ProcessState::Stopped { exit: Some(exit) } = state.process {
                let log = std::fs::read(self.directory.log(state.station)).unwrap_or_default();
                let message = format!("ended ({exit}):\n{}", last_lines(&log, 5));
                return Err(Error::Node {
                    node: state.station.to_string(),
                    message,
                });
            }
        }
        Ok(())
    }

    /// The end of every log, for whoever must explain a failed test.
    fn print_logs(&self) {
        for station in self.directory.spec().iter().flat_map(ClusterSpec::stations) {
            let log = std::fs::read(self.directory.log(station)).unwrap_or_default();
            eprintln!("---- log of {station}\n{}", last_lines(&log, 40));
        }
    }

    /// Compares all live nodes as soon as they are at the same positions, after `patience` even if they are not.
    pub fn verify(&self, patience: Duration) -> Result<Verification> {
        let start = Instant::now();
        loop {
            let status = self.status()?;
            let before = verify::positions(&status);
            let last = start.elapsed() >= patience;
            if verify::agree(&before) || last {
                let result = verify::verify(self, &self.runtime, &status)?;
                if last || verify::positions(&self.status()?) == before {
                    return Ok(result);
                }
            }
            std::thread::sleep(GLANCE);
        }
    }

    /// Stations of different groups no longer reach each other; stations in no group reach everybody. A single group is cut off from
    /// all others. `one_way`: only frames from a group to a later one are lost.
    pub fn partition(&self, groups: &[Vec<Station>], one_way: bool) -> Result<()> {
        let spec = self.directory.spec()?;
        let mut groups = groups.to_vec();
        if let [only] = groups.as_slice() {
            let rest = spec
                .stations()
                .filter(|station| !only.contains(station))
                .collect();
            groups.push(rest);
        }
        let mut directions = Vec::new();
        for (index, from) in groups.iter().enumerate() {
            for to in &groups[index + 1..] {
                let pairs = from
                    .iter()
                    .flat_map(|&from| to.iter().map(move |&to| Direction::new(from, to)));
                directions.extend(pairs.filter(|pair| pair.from != pair.to));
            }
        }
        if !one_way {
            let back: Vec<_> = directions.iter().map(|direction| direction.reversed()).collect();
            directions.extend(back);
        }
        self.call(&Request::Cut(directions)).map(drop)
    }

    /// Ends all partitions and, with `policies`, all other faults of links.
    pub fn heal(&self, policies: bool) -> Result<()> {
        self.call(&Request::Heal(policies)).map(drop)
    }

    pub fn link(&self, directions: Vec<Direction>, policy: LinkPolicy) -> Result<()> {
        self.call(&Request::Link(directions, policy)).map(drop)
    }

    /// Stops everything, replicas first so that no election takes place meanwhile; the data stays.
    pub fn down(&self) -> Result<()> {
        if !self.directory.is_running()? {
            supervisor::end_left_behind(&self.directory)?;
            return supervisor::detach_below(self.directory.path());
        }
        let status = self.status()?;
        let (primaries, others): (Vec<_>, Vec<_>) = status
            .nodes
            .iter()
            .filter(|node| node.process.pid().is_some())
            .partition(|node| node.role == NodeRole::Primary);
        for group in [others, primaries] {
            std::thread::scope(|scope| {
                for node in group {
                    // What does not stop in time is killed by the shutdown.
                    scope.spawn(|| {
                        let stream = self.directory.connect()?;
                        control::call(&self.directory, stream, &Request::Stop(node.name, STOP))
                    });
                }
            });
        }
        self.call(&Request::Shutdown)?;
        let deadline = Instant::now() + SUPERVISOR_START;
        while self.directory.is_running()? {
            if Instant::now() > deadline {
                let hint = format!("see {}", self.directory.supervisor_log().display());
                return Err(Error::refused("the supervisor does not end", hint));
            }
            std::thread::sleep(GLANCE);
        }
        Ok(())
    }

    /// Stops everything and removes all of it.
    pub fn destroy(&self) -> Result<()> {
        self.down()?;
        let path = self.directory.path();
        // Removing through a mount would delete what is mounted.
        if let Some(mount) = supervisor::mounted_below(path)?.first() {
            let (mount, dev, name) = (mount.display(), binary::typed(), self.name());
            let hint = format!(
                "end the processes that use it (fuser -vm {mount} lists them), then {dev} destroy --name {name}"
            );
            return Err(Error::refused(format!("{mount} is still mounted"), hint));
        }
        remove_tree(path).map_err(Error::file("removing", path))
    }

    /// A supervisor that lives but does not listen is starting or ending; that is soon over.
    pub(crate) fn call(&self, request: &Request) -> Result<SupervisorState> {
        let deadline = Instant::now() + MOMENT;
        loop {
            if !self.directory.is_running()? {
                return Err(self.not_running());
            }
            match self.directory.connect() {
                Ok(stream) => return control::call(&self.directory, stream, request),
                Err(error) if Instant::now() > deadline => return Err(self.not_listening(&error)),
                Err(_) => std::thread::sleep(GLANCE),
            }
        }
    }

    fn not_listening(&self, error: &Error) -> Error {
        let pid = self
            .directory
            .supervisor_pid()
            .map_or("?".to_owned(), |pid| pid.to_string());
        let (dev, name) = (binary::typed(), self.name());
        let hint = format!(
            "kill -9 {pid}, then {dev} up --name {name} or {dev} destroy --name {name}: both clean up after it"
        );
        Error::refused(
            format!("the supervisor (pid {pid}) does not answer: {error}"),
            hint,
        )
    }

    fn not_running(&self) -> Error {
        let name = self.name();
        Error::refused(
            format!("cluster {name} is not running"),
            format!("{} up --name {name}", binary::typed()),
        )
    }

    /// In a new cluster n1 is first, and so becomes the primary, as everybody expects.
    fn start_nodes(&self, mut nodes: impl Iterator<Item = Station>) -> Result<()> {
        if let Some(first) = nodes.next() {
            self.at(first).start()?;
            let primary = Condition::Role {
                node: Some(first),
                role: NodeRole::Primary,
            };
            let start = Instant::now();
            while self.is_new && start.elapsed() < FIRST_PRIMARY {
                match self.wait(&primary, GLANCE) {
                    Ok(_) => break,
                    Err(Error::Interrupted) => return Err(Error::Interrupted),
                    Err(_) if self.check_processes().is_err() => break,
                    Err(_) => {}
                }
            }
        }
        nodes.try_for_each(|node| self.at(node).start())
    }

    fn start_supervisor(&self) -> Result<()> {
        let log = self.directory.supervisor_log();
        let output = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .map_err(Error::file("opening", &log))?;
        let start_of_log = output.metadata().map_err(Error::file("reading", &log))?.len();
        let errors = output.try_clone().map_err(Error::file("opening", &log))?;
        let mut command = Command::new(binary::litefs_dev()?);
        command
            .arg0("litefs-dev")
            .arg("supervise")
            .arg(self.directory.path())
            .arg("--owner")
            .arg(std::process::id().to_string());
        if self.keep == Keep::Yes {
            command.arg("--leave-files");
        }
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        // SAFETY: `setsid` is a plain system call.
        unsafe { command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(Into::into)) };
        let mut child = command
            .spawn()
            .map_err(Error::system("starting the supervisor"))?;
        let deadline = Instant::now() + SUPERVISOR_START;
        while !self.answers(&child) {
            self.check_alive(&mut child, start_of_log)?;
            let error = match (interrupt::requested(), Instant::now() > deadline) {
                (true, _) => Some(Error::Interrupted),
                (false, true) => Some(silent(&log)),
                (false, false) => None,
            };
            if let Some(error) = error {
                // It has started no node yet, and nobody else ends it if it does not listen.
                let _ = child.kill().and_then(|()| child.wait());
                return Err(error);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        // Reaps the supervisor if it ends before we do.
        std::thread::spawn(move || child.wait());
        Ok(())
    }

    /// The supervisor answers once the lease server does.
    fn answers(&self, supervisor: &Child) -> bool {
        let connected = self.directory.connect();
        connected
            .and_then(|stream| control::call(&self.directory, stream, &Request::State))
            .is_ok_and(|state| state.pid.cast_unsigned() == supervisor.id())
    }

    fn check_alive(&self, child: &mut Child, start_of_log: u64) -> Result<()> {
        let Ok(Some(status)) = child.try_wait() else {
            return Ok(());
        };
        let log = std::fs::read(self.directory.supervisor_log()).unwrap_or_default();
        let start = usize::try_from(start_of_log).unwrap_or(0).min(log.len());
        let said = String::from_utf8_lossy(&log[start..]).trim().to_owned();
        Err(control::said(&format!(
            "the supervisor failed ({status}):\n{said}"
        )))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.keep == Keep::Yes || !self.directory.exists() {
            return;
        }
        if std::thread::panicking() {
            self.print_logs();
        }
        if let Err(error) = self.destroy() {
            eprintln!("litefs-dev: destroying cluster {}: {error}", self.name());
        }
    }
}

fn silent(log: &Path) -> Error {
    let said = std::fs::read(log).unwrap_or_default();
    Error::Supervisor(format!(
        "the supervisor does not answer:\n{}",
        last_lines(&said, 5)
    ))
}

fn last_lines(log: &[u8], count: usize) -> String {
    let log = String::from_utf8_lossy(log);
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(Error::system("starting the async runtime"))
}

fn names(all: &[ClusterDirectory]) -> String {
    all.iter()
        .map(ClusterDirectory::name)
        .collect::<Vec<_>>()
        .join(", ")
}

fn no_such(name: &str, all: &[ClusterDirectory]) -> Error {
    let hint = match all {
        [] => format!("there are none: {} up 3", binary::typed()),
        all => format!("there are: {}", names(all)),
    };
    Error::refused(format!("no cluster {name}"), hint)
}
