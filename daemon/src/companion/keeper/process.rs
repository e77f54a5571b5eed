//! The keeper's process: holds what a mount is made of while daemons come and go.
//!
//! It has no file of the mount open (closing one might wait for an answer that nobody gives), one thread, and no configuration; what it
//! holds are descriptors: /dev/fuse, the ledger, the mounted tree, inodes that lost their names while they were open, the lock of the data
//! directory, and the connection to the opener.
//!
//! A daemon says hello and is given all of it. One that dies leaves the keeper waiting for the next, at most as long as clients may be kept
//! waiting; then the opener fences, /dev/fuse is closed, which ends the connection, and the keeper ends.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::socket::{SockFlag, accept4};

use super::data_dir::DataDir;
use super::protocol::{FromKeeper, FromOpener, OpenerSocket, ToKeeper, ToOpener, VERSION};
use crate::companion::{process::SUBCOMMAND, wire};
use crate::ledger::Ledger;
use crate::processes::is_dying;

/// How long a daemon waits for its predecessor, which may be dying.
const PREDECESSOR_PATIENCE: Duration = Duration::from_secs(3);
/// Before another attempt to let somebody in when too many files are open.
const SHORT_OF_FILES: Duration = Duration::from_millis(20);

/// Runs until nothing is left to be held: `first` is the connection to the daemon that started the process, `lock` the locked file of its
/// data directory.
pub(in crate::companion) fn run(first: OwnedFd, lock: File) -> io::Result<()> {
    // SAFETY: ignoring a signal installs no handler.
    unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn) }?;
    let dir = DataDir::of_lock(lock)?;
    let mut process = Process {
        listener: dir.listen()?,
        dir,
        ledger: Ledger::create()?,
        device: None,
        tree: None,
        nodes: BTreeMap::new(),
        opener: None,
        tenant: Tenant::Nobody {
            since: Instant::now(),
        },
        guests: vec![Guest {
            socket: first,
            hello: None,
            since: Instant::now(),
        }],
        takeover_timeout: Duration::ZERO,
    };
    process.serve()
}

struct Process {
    dir: DataDir,
    listener: OwnedFd,
    ledger: Ledger,
    /// /dev/fuse, once a daemon has mounted.
    device: Option<OwnedFd>,
    tree: Option<OwnedFd>,
    nodes: BTreeMap<u64, OwnedFd>,
    opener: Option<OpenerSocket>,
    tenant: Tenant,
    /// Daemons that are not let in yet.
    guests: Vec<Guest>,
    takeover_timeout: Duration,
}

/// Who serves the mount.
enum Tenant {
    Nobody {
        since: Instant,
    },
    Serving(Daemon),
    /// Was told to stop, and serves clients that have files open.
    Lingering(Daemon),
}

struct Daemon {
    socket: OwnedFd,
    process: u32,
}

struct Guest {
    socket: OwnedFd,
    hello: Option<Hello>,
    since: Instant,
}

#[derive(Clone, Copy)]
struct Hello {
    process: u32,
    launcher: Option<u32>,
    takeover_timeout: Duration,
}

/// Whether the process goes on.
#[derive(PartialEq)]
enum Then {
    GoOn,
    End,
}

impl Process {
    fn serve(&mut self) -> io::Result<()> {
        loop {
            self.listen()?;
            if self.hear_tenant()? == Then::End || self.wait_for_nobody_longer() == Then::End {
                return Ok(());
            }
            self.let_in();
        }
    }

    /// Waits until somebody speaks or a time is over; takes in those who knock, and what they say.
    fn listen(&mut self) -> io::Result<()> {
        let timeout = self.pause().map_or(PollTimeout::NONE, |pause| {
            // Rounded up, so that the time is over afterwards.
            PollTimeout::try_from(pause + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
        });
        let mut fds = vec![PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
        fds.extend(self.tenant.socket().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        fds.extend(
            self.opener
                .iter()
                .map(|opener| PollFd::new(opener.socket.as_fd(), PollFlags::POLLIN)),
        );
        fds.extend(
            self.guests
                .iter()
                .map(|guest| PollFd::new(guest.socket.as_fd(), PollFlags::POLLIN)),
        );
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let knocks = fds[0].any().unwrap_or(false);
        let said: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        drop(fds);
        let first_guest = said.len() - self.guests.len();
        for (index, heard) in said[first_guest..].iter().enumerate().rev() {
            if *heard && !self.guests[index].listen() {
                self.guests.remove(index);
            }
        }
        if knocks {
            match accept4(self.listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
                Ok(socket) => self.guests.push(Guest {
                    // SAFETY: the kernel has just made this descriptor; nobody else knows it.
                    socket: unsafe { OwnedFd::from_raw_fd(socket) },
                    hello: None,
                    since: Instant::now(),
                }),
                // Whoever knocks waits. The mount must not end for it.
                Err(Errno::EMFILE | Errno::ENFILE) => std::thread::sleep(SHORT_OF_FILES),
                Err(error) => return Err(error.into()),
            }
        }
        if self
            .opener
            .as_ref()
            .is_some_and(|opener| is_readable(opener.socket.as_fd()))
        {
            // It says nothing unasked: it is dead.
            self.opener = None;
        }
        Ok(())
    }

    /// How long nothing is to be done if nobody speaks.
    fn pause(&self) -> Option<Duration> {
        let guest = self.guests.iter().filter(|guest| guest.hello.is_some());
        let guests = guest.map(|guest| guest.since + PREDECESSOR_PATIENCE).min();
        let nobody = match &self.tenant {
            Tenant::Nobody { since } => Some(*since + self.takeover_timeout),
            Tenant::Serving(_) | Tenant::Lingering(_) => None,
        };
        let next = guests.into_iter().chain(nobody).min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    /// All that the daemon has said.
    fn hear_tenant(&mut self) -> io::Result<Then> {
        while let Some(socket) = self.tenant.socket().filter(|socket| is_readable(*socket)) {
            let Ok(Some((message, descriptors))) = wire::receive::<ToKeeper>(socket) else {
                self.tenant = Tenant::Nobody {
                    since: Instant::now(),
                };
                self.dir.note(None, None);
                break;
            };
            if self.do_for_tenant(message, descriptors)? == Then::End {
                return Ok(Then::End);
            }
        }
        Ok(Then::GoOn)
    }

    fn do_for_tenant(&mut self, message: ToKeeper, descriptors: Vec<OwnedFd>) -> io::Result<Then> {
        let first = descriptors.into_iter().next();
        match message {
            ToKeeper::Hello { .. } => {}
            ToKeeper::Ledger => {
                if let Some(ledger) = first {
                    self.ledger = Ledger::open(File::from(ledger))?;
                }
            }
            // A message whose descriptor this process had no room for takes away nothing.
            ToKeeper::Connection => self.device = first.or(self.device.take()),
            ToKeeper::Tree => self.tree = first.or(self.tree.take()),
            ToKeeper::DropTree => self.tree = None,
            ToKeeper::Node { id } => {
                if let Some(node) = first {
                    self.nodes.insert(id, node);
                }
            }
            ToKeeper::ForgetNode { id } => drop(self.nodes.remove(&id)),
            ToKeeper::Opener => self.connect_opener(),
            ToKeeper::AdoptOpener { process } => {
                self.opener = first.map(|socket| OpenerSocket { socket, process });
            }
            ToKeeper::Linger => {
                self.tenant = match std::mem::replace(
                    &mut self.tenant,
                    Tenant::Nobody {
                        since: Instant::now(),
                    },
                ) {
                    Tenant::Serving(daemon) | Tenant::Lingering(daemon) => Tenant::Lingering(daemon),
                    nobody @ Tenant::Nobody { .. } => nobody,
                };
                self.ask_to_leave();
            }
            ToKeeper::Goodbye => {
                self.end_opener(&ToOpener::End);
                return Ok(Then::End);
            }
        }
        Ok(Then::GoOn)
    }

    /// Gives the daemon a connection to the opener, which is started if there is none.
    fn connect_opener(&mut self) {
        let connected = self.try_connect_opener();
        let Some(daemon) = self.tenant.socket() else {
            return;
        };
        let sent = match connected {
            Ok((ours, process)) => wire::send(daemon, &FromKeeper::Opener { process }, &[ours.as_fd()]),
            Err(error) => {
                let message = format!("start the opener: {error}");
                wire::send(daemon, &FromKeeper::Failed { message }, &[])
            }
        };
        report("answer the daemon", sent);
    }

    fn try_connect_opener(&mut self) -> io::Result<(OwnedFd, u32)> {
        let (ours, theirs) = wire::pair()?;
        let attach = |opener: &OpenerSocket| {
            wire::send(
                &opener.socket,
                &ToOpener::Attach,
                &[theirs.as_fd(), self.ledger.as_fd()],
            )
        };
        let living = self.opener.take().filter(|opener| !is_dying(opener.process));
        let opener = match living {
            Some(opener) if attach(&opener).is_ok() => opener,
            Some(_) | None => {
                let opener = start_opener(self.dir.path())?;
                attach(&opener)?;
                opener
            }
        };
        let process = opener.process;
        self.opener = Some(opener);
        Ok((ours, process))
    }

    /// Lets the first guest in if the mount is nobody's, or tells guests that it is somebody's.
    fn let_in(&mut self) {
        let Some(index) = self.guests.iter().position(|guest| guest.hello.is_some()) else {
            return;
        };
        match &self.tenant {
            Tenant::Nobody { .. } => {
                let guest = self.guests.remove(index);
                self.welcome(guest);
            }
            Tenant::Lingering(_) => self.ask_to_leave(),
            Tenant::Serving(daemon) => {
                let holder = format!("litefs, process {}", daemon.process);
                self.guests.retain(|guest| {
                    let waits = guest.hello.is_none() || guest.since.elapsed() < PREDECESSOR_PATIENCE;
                    if !waits {
                        let busy = FromKeeper::Busy {
                            holder: holder.clone(),
                        };
                        report("turn a daemon away", wire::send(&guest.socket, &busy, &[]));
                    }
                    waits
                });
            }
        }
    }

    /// A daemon that only lingers makes room for one that wants to serve.
    fn ask_to_leave(&self) {
        let awaited = self.guests.iter().any(|guest| guest.hello.is_some());
        if let (true, Tenant::Lingering(daemon)) = (awaited, &self.tenant) {
            // One that is gone is noticed when it is listened to.
            let _ = wire::send(&daemon.socket, &FromKeeper::Leave, &[]);
        }
    }

    fn welcome(&mut self, guest: Guest) {
        let Some(hello) = guest.hello else { return };
        self.takeover_timeout = hello.takeover_timeout;
        self.dir.note(Some(hello.process), hello.launcher);
        let sent = self.hand_over(&guest.socket);
        report("welcome a daemon", sent);
        self.tenant = Tenant::Serving(Daemon {
            socket: guest.socket,
            process: hello.process,
        });
    }

    fn hand_over(&self, socket: &OwnedFd) -> io::Result<()> {
        let welcome = FromKeeper::Welcome {
            connection: self.device.is_some(),
            tree: self.tree.is_some(),
            nodes: self.nodes.len(),
        };
        let mut descriptors = vec![self.ledger.as_fd(), self.dir.lock()];
        descriptors.extend(self.device.iter().map(AsFd::as_fd));
        descriptors.extend(self.device.iter().zip(&self.tree).map(|(_, tree)| tree.as_fd()));
        wire::send(socket, &welcome, &descriptors)?;
        for (id, node) in &self.nodes {
            wire::send(socket, &FromKeeper::Node { id: *id }, &[node.as_fd()])?;
        }
        Ok(())
    }

    /// Ends the connection when nobody came to serve it in time.
    fn wait_for_nobody_longer(&mut self) -> Then {
        let Tenant::Nobody { since } = &self.tenant else {
            return Then::GoOn;
        };
        let awaited = self.guests.iter().any(|guest| guest.hello.is_some());
        let patience = match &self.device {
            Some(_) => self.takeover_timeout,
            None => Duration::ZERO,
        };
        // The daemon that started this process has yet to speak.
        let begins = self.device.is_none() && !self.guests.is_empty();
        if awaited || begins || since.elapsed() < patience {
            return Then::GoOn;
        }
        if self.device.is_some() {
            complain!(
                "litefs keeper: nobody came to serve the mount within {patience:?}: its clients are cut off"
            );
            self.fence();
            // The last descriptor: the kernel ends the connection, and whoever waits gets an error.
            self.device = None;
        }
        Then::End
    }

    /// Has the opener keep clients from committing, and stay for them.
    fn fence(&mut self) {
        let Some(opener) = self.opener.take().filter(|opener| !is_dying(opener.process)) else {
            return;
        };
        let control = &opener.socket;
        let fenced =
            wire::send(control, &ToOpener::Fence, &[]).and_then(|()| wire::receive::<FromOpener>(control));
        if let Err(error) = fenced {
            complain!("litefs keeper: fence the clients: {error}");
        }
    }

    fn end_opener(&mut self, message: &ToOpener) {
        if let Some(opener) = self.opener.take() {
            report("end the opener", wire::send(&opener.socket, message, &[]));
        }
    }
}

impl Guest {
    /// Hears what it says; `false`: it is gone, or speaks another language.
    fn listen(&mut self) -> bool {
        match wire::receive::<ToKeeper>(&self.socket) {
            Ok(Some((
                ToKeeper::Hello {
                    version: VERSION,
                    process,
                    launcher,
                    takeover_timeout_ms,
                },
                _,
            ))) => {
                self.hello = Some(Hello {
                    process,
                    launcher,
                    takeover_timeout: Duration::from_millis(takeover_timeout_ms),
                });
                true
            }
            Ok(Some((ToKeeper::Hello { version, .. }, _))) => {
                let message = format!(
                    "the running mount is kept by a process that speaks version {VERSION}, not {version}: stop it with all its clients first"
                );
                report(
                    "refuse a daemon",
                    wire::send(&self.socket, &FromKeeper::Failed { message }, &[]),
                );
                false
            }
            Ok(Some(_) | None) | Err(_) => false,
        }
    }
}

impl Tenant {
    fn socket(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Tenant::Nobody { .. } => None,
            Tenant::Serving(daemon) | Tenant::Lingering(daemon) => Some(daemon.socket.as_fd()),
        }
    }
}

fn is_readable(socket: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(socket, PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// Starts the opener.
fn start_opener(data_dir: &Path) -> io::Result<OpenerSocket> {
    let (ours, theirs) = wire::pair()?;
    let child = Command::new("/proc/self/exe")
        .arg0("litefs")
        .args([SUBCOMMAND, "opener"])
        .arg(data_dir)
        .process_group(0)
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .spawn()?;
    // The kernel collects it: this process ignores SIGCHLD.
    Ok(OpenerSocket {
        socket: ours,
        process: child.id(),
    })
}

fn report(action: &str, outcome: io::Result<()>) {
    if let Err(error) = outcome {
        complain!("litefs keeper: {action}: {error}");
    }
}
