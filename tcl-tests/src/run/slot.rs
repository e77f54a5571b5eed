//! One slot: its own native directory, its own mount, its own replica. Runs one file at a time.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use terminal::explain;

use super::{Databases, FileResult, Layout, Plan};
use crate::execution::{FileRun, Outcome, Place};
use crate::mount::{Litefs, MOUNT_LOG, Mount, Spec};
use crate::replica::{Checked, Checker};
use crate::transcript::Transcript;
use crate::work;

pub(super) struct Slot<'a> {
    plan: &'a Plan,
    /// What the names of kept logs have before their ending.
    mark: &'static str,
    home: PathBuf,
    scratch: PathBuf,
    mount: Option<Mount>,
    replica: Option<(Mount, Checker)>,
    /// Mounts are numbered, each with a directory of its own: none begins with the data of one that died.
    mounts: u32,
    files: u32,
    findings: Vec<String>,
}

/// Exactly as long as `m0001/mnt`: the suite has cases whose names depend on the length of the path.
pub(super) const NATIVE: &str = "n0000/dir";

/// Directory of the slot that runs files again, apart from what the first tries left; as long as a slot's number.
const AGAIN: &str = "ag";

/// A data directory that has grown beyond this is exchanged for a fresh one: logs of dropped databases stay.
const DATA_LIMIT: u64 = 4 << 30;
const LOOK_AT_DATA_EVERY: u32 = 16;

/// Directory of the replica, in the directory of the mount that it follows.
const REPLICA: &str = "replica";

impl<'a> Slot<'a> {
    pub(super) fn new(plan: &'a Plan, number: usize) -> Result<Slot<'a>> {
        Slot::at(plan, &format!("{number:02}"), "")
    }

    /// A slot for second tries.
    pub(super) fn again(plan: &'a Plan) -> Result<Slot<'a>> {
        Slot::at(plan, AGAIN, ".again")
    }

    fn at(plan: &'a Plan, name: &str, mark: &'static str) -> Result<Slot<'a>> {
        let home = plan.work.join(name);
        let scratch = home.join("tmp");
        std::fs::create_dir_all(&scratch).with_context(|| format!("create {}", scratch.display()))?;
        plan.bench.account.give(&scratch)?;
        Ok(Slot {
            plan,
            mark,
            home,
            scratch,
            mount: None,
            replica: None,
            mounts: 0,
            files: 0,
            findings: Vec::new(),
        })
    }

    /// Runs the file on the mount, and natively too unless that result is known.
    pub(super) fn run(&mut self, file: &str, known: Option<FileRun>) -> Result<FileResult> {
        let native = match known {
            Some(run) => run,
            None => self.native(file)?,
        };
        let (mount, databases) = if native.outcome == Outcome::TimeOut {
            (nothing(Outcome::NotRun), Databases::default())
        } else {
            self.mounted(file, self.plan.mount_limit(native.seconds))?
        };
        let mut result = FileResult::new(file, native, mount);
        result.databases = databases;
        // The result is worth more than its logs.
        self.findings.extend(
            self.keep_logs(&result)
                .err()
                .map(|error| format!("{file}: {}", explain(&error))),
        );
        self.clear_data();
        Ok(result)
    }

    /// Ends the mount. Returns what went wrong with mounts beside the files.
    pub(super) fn finish(mut self) -> Vec<String> {
        self.stop_mount();
        std::mem::take(&mut self.findings)
    }

    /// Runs the file natively, and keeps the result for runs that take it from the cache.
    pub(super) fn native(&self, file: &str) -> Result<FileRun> {
        let directory = self.below(self.home.join(NATIVE), file);
        let place = self.place(directory, "native");
        let bench = &self.plan.bench;
        bench.prepare(&place.directory).map_err(anyhow::Error::msg)?;
        let mut run = bench.test(&place, file, self.plan.mount_limit(0.0))?;
        run.findings.extend(bench.clean(&place.directory).err());
        self.plan.baseline.store(file, &run)?;
        Ok(run)
    }

    fn mounted(&mut self, file: &str, limit: Duration) -> Result<(FileRun, Databases)> {
        let mut checked = Checked::default();
        let mut run = self.mounted_run(file, limit, &mut checked)?;
        run.findings.append(&mut checked.findings);
        Ok((run, checked.databases))
    }

    fn mounted_run(&mut self, file: &str, limit: Duration, checked: &mut Checked) -> Result<FileRun> {
        if let Err(reason) = self.ready() {
            return Ok(dead(reason));
        }
        let root = self
            .mount
            .as_ref()
            .expect("ready() leaves a mount")
            .directory()
            .to_path_buf();
        let place = self.place(self.below(root, file), "mount");
        if let Err(reason) = self.plan.bench.prepare(&place.directory) {
            self.drop_mounts();
            return Ok(dead(reason));
        }
        let mut run = self.plan.bench.test(&place, file, limit)?;
        let mount = self.mount.as_ref().expect("ready() leaves a mount");
        if let Err(reason) = mount.check() {
            run.outcome = Outcome::MountDied;
            run.findings.push(reason);
            self.drop_mounts();
            return Ok(run);
        }
        // The API is not there for a moment while a daemon is replaced; clients of the mounts, which are tested, do not notice.
        if let Some((replica, checker)) = &self.replica {
            let _hold = (mount.hold(), replica.hold());
            *checked = checker.check(&place.directory, &self.prefix(file));
        }
        match self.plan.layout {
            Layout::Directory => match (self.plan.bench.clean(&place.directory), &self.replica) {
                (Ok(()), Some((replica, checker))) => {
                    let _hold = (mount.hold(), replica.hold());
                    run.findings.extend(checker.check_removed(&self.prefix(file)))
                }
                (Ok(()), None) => {}
                (Err(finding), _) => run.findings.push(finding),
            },
            Layout::Root => run.findings.extend(self.end_mounts()),
        }
        Ok(run)
    }

    /// A mount that answers, started anew where necessary.
    fn ready(&mut self) -> Result<(), String> {
        if let Some(mount) = &self.mount {
            match mount.check() {
                Ok(()) => return Ok(()),
                // Between two files: none of them can be blamed, so the run as a whole is.
                Err(reason) => self.note(vec![format!("between two files: {reason}")]),
            }
            self.drop_mounts();
        }
        self.mounts += 1;
        let home = self.mount_home();
        let mount = Mount::start(&self.plan.spec, &home).map_err(|error| explain(&error))?;
        if self.plan.replica {
            self.replica = Some(
                self.follow(&mount, &home)
                    .map_err(|error| format!("replica: {}", explain(&error)))?,
            );
        }
        self.mount = Some(mount);
        Ok(())
    }

    /// A second node that follows the first.
    fn follow(&self, primary: &Mount, home: &Path) -> Result<(Mount, Checker)> {
        let (Spec::Litefs(litefs), Some(url)) = (&self.plan.spec, primary.api()) else {
            anyhow::bail!("only litefs has replicas");
        };
        let spec = Spec::Litefs(Litefs {
            primary: Some(url.to_string()),
            ..litefs.clone()
        });
        let replica = Mount::start(&spec, &home.join(REPLICA))?;
        let api = replica.api().context("the replica's API")?;
        let checker = Checker::new(url, api, litefs.binary.clone(), home.to_path_buf())?;
        Ok((replica, checker))
    }

    /// What the names of a file's databases begin with on the node.
    fn prefix(&self, file: &str) -> String {
        match self.plan.layout {
            Layout::Directory => format!("{}/", stem(file)),
            Layout::Root => String::new(),
        }
    }

    fn mount_home(&self) -> PathBuf {
        self.home.join(format!("m{:04}", self.mounts))
    }

    fn below(&self, root: PathBuf, file: &str) -> PathBuf {
        match self.plan.layout {
            Layout::Directory => root.join(stem(file)),
            Layout::Root => root,
        }
    }

    /// Ends what is left of a mount that cannot be used any more.
    fn drop_mounts(&mut self) {
        self.replica = None;
        self.mount = None;
    }

    fn place(&self, directory: PathBuf, side: &str) -> Place {
        Place {
            directory,
            scratch: self.scratch.clone(),
            log: self.home.join(format!("{side}.log")),
        }
    }

    /// Keeps what both sides and the nodes printed when the sides differ.
    fn keep_logs(&self, result: &FileResult) -> Result<()> {
        if result.verdict.equal {
            return Ok(());
        }
        let name = format!("{}{}", result.file, self.mark);
        for side in ["native", "mount"] {
            self.keep_log(
                &self.home.join(format!("{side}.log")),
                &format!("{name}.{side}.log"),
            )?;
        }
        self.keep_node_logs(&name)
    }

    /// The nodes' logs are found by their place: a mount that died is not there any more.
    fn keep_node_logs(&self, name: &str) -> Result<()> {
        let node = self.mount_home();
        self.keep_log(&node.join(MOUNT_LOG), &format!("{name}.daemon.log"))?;
        self.keep_log(
            &node.join(REPLICA).join(MOUNT_LOG),
            &format!("{name}.replica.log"),
        )
    }

    fn keep_log(&self, from: &Path, name: &str) -> Result<()> {
        if from.exists() {
            let to = self.plan.logs.join(name);
            std::fs::copy(from, &to).with_context(|| format!("copy to {}", to.display()))?;
        }
        Ok(())
    }

    /// A fault of a mount that no file is blamed for: a finding of the run, with the nodes' logs under the mount's name.
    fn note(&mut self, findings: Vec<String>) {
        if findings.is_empty() {
            return;
        }
        let name = self.mount_home();
        let name = name.strip_prefix(&self.plan.work).unwrap_or(&name);
        let name = name.to_string_lossy().replace('/', "-");
        let kept = self.keep_node_logs(&name);
        self.findings.extend(findings);
        self.findings.extend(kept.err().as_ref().map(explain));
    }

    /// Removes data that no file uses any more, and ends a mount whose data has grown too large.
    fn clear_data(&mut self) {
        self.files += 1;
        let large = self.files.is_multiple_of(LOOK_AT_DATA_EVERY)
            && self.mount.is_some()
            && size(&self.mount_home().join("data")) > DATA_LIMIT;
        if large {
            self.stop_mount();
        } else if self.mount.is_none() {
            self.remove_data();
        }
    }

    fn stop_mount(&mut self) {
        let findings = self.end_mounts();
        self.note(findings);
        self.remove_data();
    }

    /// Ends the replica and the mount. Returns what went wrong.
    fn end_mounts(&mut self) -> Vec<String> {
        let replica = self.replica.take().map(|(mount, _)| mount);
        let ends = [replica, self.mount.take()]
            .into_iter()
            .flatten()
            .map(Mount::stop);
        ends.filter_map(Result::err).collect()
    }

    /// The logs of ended mounts are kept by then; the rest is for a look at it, if that is wanted. Never crosses into
    /// something that is still mounted.
    fn remove_data(&self) {
        if !self.plan.keep {
            work::remove(&self.mount_home());
        }
    }
}

fn stem(file: &str) -> &str {
    file.strip_suffix(".test").unwrap_or(file)
}

/// The result of a file that never ran because there was no mount to run it on.
fn dead(reason: String) -> FileRun {
    FileRun {
        findings: vec![reason],
        ..nothing(Outcome::MountDied)
    }
}

/// The result of a side that ran nothing.
fn nothing(outcome: Outcome) -> FileRun {
    FileRun {
        outcome,
        transcript: Transcript::default(),
        seconds: 0.0,
        cpu_seconds: 0.0,
        findings: Vec::new(),
    }
}

/// Bytes in use below a directory that is not on a mount. What disappears meanwhile counts as nothing.
fn size(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = std::fs::read_dir(directory) else {
        return 0;
    };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => size(&entry.path()),
        // Blocks, not length: the suite makes sparse files of 5 GB.
        Ok(metadata) => metadata.blocks() * 512,
        Err(_) => 0,
    });
    sizes.sum()
}

#[cfg(test)]
mod tests {
    use super::{AGAIN, NATIVE};

    #[test]
    fn both_sides_run_in_paths_of_the_same_length() {
        // pager1-16.1.N: N depends on it.
        assert_eq!(NATIVE.len(), format!("m{:04}/mnt", 1).len());
        assert_eq!(AGAIN.len(), format!("{:02}", 1).len());
    }
}
