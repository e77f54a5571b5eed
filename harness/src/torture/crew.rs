//! The client processes of a run, as the run sees them.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

use super::client::{Nodes, Orders, PAUSE, REPORT};
use super::clock::now;
use super::field::Place;
use super::journal::{self, Note};
use super::profile::{Behaviour, JournalMode, Profile, cast};
use crate::{Error, Result, binary};

/// A client that notes nothing for so long hangs.
pub(super) const HUNG: Duration = Duration::from_secs(60);
/// How long a client may take to end: its connections close.
const END: Duration = Duration::from_secs(20);
const GLANCE: Duration = Duration::from_millis(10);

pub(super) struct Crew(Vec<Member>);

pub(super) struct Member {
    pub(super) profile: Profile,
    /// Number of its node.
    pub(super) node: usize,
    pub(super) journal: PathBuf,
    child: Child,
    /// How much of the journal was looked at.
    read: u64,
    /// When it last noted anything, and when a commit was last acknowledged.
    last_note: u64,
    last_acknowledged: u64,
    seen: usize,
    hung: bool,
}

/// What is to be waited for.
#[derive(Clone, Copy)]
enum Wanted {
    /// A note later than the time.
    Note(u64),
    /// A commit that was acknowledged later than the time.
    Acknowledged(u64),
    /// What each of its connections sees.
    Report,
}

impl Crew {
    pub(super) fn start(
        places: &[Place],
        directory: &Path,
        seed: u64,
        only: Option<JournalMode>,
    ) -> Result<Self> {
        let nodes = if places.len() == 1 {
            Nodes::One
        } else {
            Nodes::Several
        };
        let mut crew = Vec::new();
        for (node, place) in places.iter().enumerate() {
            for profile in cast(node, places.len(), only) {
                let journal = directory.join(format!("client-{}", profile.number));
                let orders = Orders {
                    mount: place.mount.clone(),
                    journal: journal.clone(),
                    seed: seed ^ u64::from(profile.number),
                    nodes,
                    profile,
                };
                crew.push(Member::start(orders, node)?);
            }
        }
        Ok(Self(crew))
    }

    /// Whether, within the time, a metronome's commit was acknowledged that was noted after `since`.
    pub(super) fn await_metronome(&mut self, since: u64, patience: Duration) -> bool {
        let metronomes = |member: &Member| member.profile.behaviour == Behaviour::Metronome;
        let deadline = Instant::now() + patience;
        loop {
            let mut of_mode = [false; 2];
            for member in self.0.iter_mut().filter(|member| metronomes(member)) {
                member.look();
                let mode = usize::from(member.profile.journal == JournalMode::Wal);
                of_mode[mode] |= member.last_acknowledged > since;
            }
            if of_mode == [true; 2] {
                return true;
            }
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(GLANCE);
        }
    }

    /// Writers of the node that get nothing acknowledged within the time: their database is stuck, for them at least.
    pub(super) fn await_all_writers(&mut self, node: usize, patience: Duration) -> Vec<String> {
        let writers = |member: &Member| member.node == node && member.profile.behaviour.writes();
        self.wait(Wanted::Acknowledged(now()), writers, patience)
    }

    /// Tells all to pause and waits until they do; returns those that do not.
    pub(super) fn pause(&mut self, patience: Duration) -> Vec<String> {
        self.tell(PAUSE);
        // Two notes later than this, because the first may be of what was under way.
        let late = self.wait(Wanted::Note(now()), |_| true, patience);
        let later = self.wait(Wanted::Note(now()), |_| true, patience);
        if late.is_empty() { later } else { late }
    }

    /// Lets all note what their connections see; returns those that do not.
    pub(super) fn report(&mut self, patience: Duration) -> Vec<String> {
        for member in &mut self.0 {
            member.look();
            member.seen = 0;
        }
        self.tell(REPORT);
        self.wait(Wanted::Report, |_| true, patience)
    }

    fn tell(&mut self, word: &str) {
        for member in &mut self.0 {
            if let Some(stdin) = &mut member.child.stdin {
                // One that has ended is found by its silence.
                let _ = writeln!(stdin, "{word}");
            }
        }
    }

    fn wait(&mut self, wanted: Wanted, of: impl Fn(&Member) -> bool, patience: Duration) -> Vec<String> {
        let deadline = Instant::now() + patience;
        loop {
            let mut missing = Vec::new();
            for member in self.0.iter_mut().filter(|member| of(member) && !member.hung) {
                member.look();
                if !member.did(wanted) {
                    missing.push(member.profile.describe());
                }
            }
            if missing.is_empty() || Instant::now() > deadline {
                return missing;
            }
            std::thread::sleep(GLANCE);
        }
    }

    /// Clients that have noted nothing for a long time; each is told of once, and killed.
    pub(super) fn hung(&mut self) -> Vec<String> {
        let limit = now().saturating_sub(u64::try_from(HUNG.as_nanos()).unwrap_or(u64::MAX));
        let mut found = Vec::new();
        for member in self.0.iter_mut().filter(|member| !member.hung) {
            member.look();
            let ended = member.child.try_wait().ok().flatten();
            if member.last_note < limit || ended.is_some() {
                member.hung = true;
                let _ = member.child.kill();
                let how = ended.map_or("notes nothing for a minute".to_owned(), |end| {
                    format!("ended: {end}")
                });
                found.push(format!("{} {how}", member.profile.describe()));
            }
        }
        found
    }

    /// What each has noted so far.
    pub(super) fn journals(&self) -> Vec<(Profile, usize, PathBuf)> {
        self.0
            .iter()
            .map(|member| (member.profile.clone(), member.node, member.journal.clone()))
            .collect()
    }

    /// Ends all; returns those that do not end by themselves, and whether SIGKILL ended them.
    pub(super) fn end(mut self) -> (Vec<String>, Vec<(Profile, usize, PathBuf)>) {
        let mut problems = Vec::new();
        for member in &mut self.0 {
            drop(member.child.stdin.take());
        }
        let deadline = Instant::now() + END;
        for member in &mut self.0 {
            if member.ends_until(deadline) || member.hung {
                continue;
            }
            let _ = member.child.kill();
            let killed = match member.ends_until(Instant::now() + Duration::from_secs(5)) {
                true => "SIGKILL ended it",
                false => "nor does SIGKILL end it",
            };
            problems.push(format!("{} does not end; {killed}", member.profile.describe()));
        }
        let journals = self.0.drain(..).map(|mut member| {
            let _ = member.child.try_wait();
            (member.profile.clone(), member.node, member.journal.clone())
        });
        (problems, journals.collect())
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        for member in &mut self.0 {
            let _ = member.child.kill();
        }
    }
}

impl Member {
    fn start(orders: Orders, node: usize) -> Result<Self> {
        let text = serde_json::to_string(&orders).map_err(|error| Error::Invalid(error.to_string()))?;
        let errors = orders.journal.with_extension("errors");
        let errors = File::create(&errors).map_err(Error::file("creating", &errors))?;
        let mut command = Command::new(binary::litefs_dev()?);
        command
            .arg("torture-client")
            .arg(text)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(errors)
            // Ctrl-C is for the run, which ends its clients when it has judged them.
            .process_group(0);
        let leave = || set_pdeathsig(Signal::SIGKILL).map_err(Into::into);
        // SAFETY: between fork and exec one system call is made; nothing is allocated.
        unsafe { command.pre_exec(leave) };
        let child = command.spawn().map_err(Error::system("starting a client"))?;
        let Orders { profile, journal, .. } = orders;
        Ok(Self {
            profile,
            node,
            journal,
            child,
            read: 0,
            last_note: now(),
            last_acknowledged: 0,
            seen: 0,
            hung: false,
        })
    }

    /// Reads what the journal has grown by, as far as lines are whole.
    fn look(&mut self) {
        let mut text = Vec::new();
        let Ok(mut file) = File::open(&self.journal) else {
            return;
        };
        if file.seek(SeekFrom::Start(self.read)).is_err() || file.read_to_end(&mut text).is_err() {
            return;
        }
        let whole = text
            .iter()
            .rposition(|&byte| byte == b'\n')
            .map_or(0, |end| end + 1);
        self.read += whole as u64;
        for line in String::from_utf8_lossy(&text[..whole]).lines() {
            let Some((time, note)) = journal::parse(line) else {
                continue;
            };
            self.last_note = time;
            match note {
                Note::Acknowledged { .. } => self.last_acknowledged = time,
                Note::Seen { .. } => self.seen += 1,
                Note::Error { what, .. } if what == "report" => self.seen += 1,
                Note::Error { .. }
                | Note::Trying { .. }
                | Note::Failed { .. }
                | Note::Wrong(_)
                | Note::Stale(_)
                | Note::Broken { .. }
                | Note::Read { .. }
                | Note::Idle => {}
            }
        }
    }

    fn did(&self, wanted: Wanted) -> bool {
        match wanted {
            Wanted::Note(since) => self.last_note > since,
            Wanted::Acknowledged(since) => self.last_acknowledged > since,
            Wanted::Report => self.seen >= self.expected_reports(),
        }
    }

    fn expected_reports(&self) -> usize {
        match self.profile.behaviour {
            Behaviour::Reconnect => 0,
            Behaviour::Metronome
            | Behaviour::Commit
            | Behaviour::Linger
            | Behaviour::Spill
            | Behaviour::Read
            | Behaviour::Maintain => 1,
        }
    }

    fn ends_until(&mut self, deadline: Instant) -> bool {
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(GLANCE);
        }
        true
    }
}
