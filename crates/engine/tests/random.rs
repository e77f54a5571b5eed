//! Two nodes live through a random life: writes of all kinds, journal modes, page sizes, checkpoints, crashes, snapshots
//! and changes of the primary. After each step both have the same bytes at the same position.

mod common;

use common::{Client, Node, name, replicate, wait_applied};
use engine::{Coherence, Role, StoreOptions};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

struct Life {
    rng: StdRng,
    /// The primary first.
    nodes: Vec<Node>,
    epoch: u64,
    steps: Vec<String>,
}

impl Life {
    fn new(seed: u64, coherence: Coherence) -> Life {
        let open = || {
            let options = StoreOptions {
                segment_bytes: 64 << 10,
                ..StoreOptions::default()
            };
            Node::open_with(tempfile::tempdir().unwrap(), coherence, options)
        };
        let life = Life {
            rng: StdRng::seed_from_u64(seed),
            nodes: vec![open(), open()],
            epoch: 1,
            steps: vec![format!("seed {seed}")],
        };
        life.nodes[0].store.set_role(Role::Primary { epoch: 1 }).unwrap();
        life
    }

    fn one_of<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[self.rng.random_range(0..choices.len())]
    }

    fn statement(&mut self) -> String {
        let x = self.rng.random_range(0..300);
        let len = [10, 300, 3000, 30000][self.rng.random_range(0..4)];
        match self.rng.random_range(0..16) {
            0..=4 => format!("INSERT OR REPLACE INTO t VALUES({x}, randomblob({len}))"),
            5 => format!("UPDATE t SET y=randomblob({len}) WHERE x%7={}", x % 7),
            6 => format!("DELETE FROM t WHERE x%5={}", x % 5),
            7 => format!(
                "BEGIN; INSERT OR REPLACE INTO t SELECT x+1, randomblob({len}) FROM t LIMIT 20; ROLLBACK"
            ),
            8 => format!(
                "BEGIN; INSERT OR REPLACE INTO t SELECT x+300, y FROM t LIMIT {}; DELETE FROM t WHERE x>500; COMMIT",
                x % 30
            ),
            9 => "VACUUM".to_owned(),
            10 => format!(
                "PRAGMA wal_checkpoint({})",
                self.one_of(&["PASSIVE", "FULL", "RESTART", "TRUNCATE"])
            ),
            11 | 12 => format!(
                "PRAGMA journal_mode={}",
                self.one_of(&["DELETE", "TRUNCATE", "PERSIST", "MEMORY", "WAL", "WAL", "WAL"])
            ),
            13 => format!(
                "PRAGMA page_size={}; VACUUM",
                self.one_of(&["512", "1024", "4096", "65536"])
            ),
            14 => format!(
                "PRAGMA synchronous={}; PRAGMA cache_size={}",
                self.one_of(&["OFF", "NORMAL", "FULL"]),
                self.one_of(&["2", "100"])
            ),
            _ => format!(
                "PRAGMA wal_autocheckpoint={}; PRAGMA auto_vacuum={}",
                self.one_of(&["0", "3", "1000"]),
                self.one_of(&["0", "1", "2"])
            ),
        }
    }

    fn write(&mut self, client: &Client) {
        for _ in 0..self.rng.random_range(1..8) {
            let sql = self.statement();
            self.steps.push(sql.clone());
            let outcome = client.try_exec(&sql);
            // A reader's lock in the way is no failure.
            assert!(
                outcome.as_ref().is_ok()
                    || outcome
                        .as_ref()
                        .is_err_and(|e| e.contains("locked") || e.contains("BUSY")),
                "{sql}: {outcome:?}\n{self:#?}"
            );
        }
    }

    /// What happens between two phases of writing.
    fn turn(&mut self) {
        match self.rng.random_range(0..10) {
            0..=4 => self.synchronise("records"),
            5 => {
                self.steps.push("snapshot".to_owned());
                self.nodes[0].db().drain().unwrap();
                let snapshot = self.nodes[0].db().snapshot().unwrap();
                let replica = &self.nodes[1].store;
                replica.receive(&name(), &mut snapshot.ltx(9).unwrap()).unwrap();
                wait_applied(&self.nodes[1]);
                self.compare();
            }
            6 => self.swap(),
            7 => {
                let which = self.rng.random_range(0..2);
                self.synchronise("records before a kill");
                self.restart(which, true);
                self.synchronise("records after a kill");
            }
            8 => {
                let which = self.rng.random_range(0..2);
                self.restart(which, false);
                self.synchronise("records after a stop");
            }
            _ => {}
        }
    }

    fn restart(&mut self, which: usize, kill: bool) {
        self.steps.push(format!("restart {which}, killed: {kill}"));
        let node = self.nodes.remove(which);
        let coherence = node.kernel.coherence;
        let dir = if kill { node.kill() } else { node.stop() };
        let node = Node::open_with(dir, coherence, StoreOptions::default());
        if which == 0 {
            let role = Role::Primary { epoch: self.epoch };
            node.store.set_role(role).unwrap();
        }
        self.nodes.insert(which, node);
    }

    fn swap(&mut self) {
        self.synchronise("records before a swap");
        self.steps.push("swap".to_owned());
        self.nodes[0].store.set_role(Role::Replica).unwrap();
        replicate(&self.nodes[0], &self.nodes[1]);
        self.epoch += 1;
        let role = Role::Primary { epoch: self.epoch };
        self.nodes[1].store.set_role(role).unwrap();
        self.nodes.swap(0, 1);
    }

    fn synchronise(&mut self, how: &str) {
        self.steps.push(how.to_owned());
        replicate(&self.nodes[0], &self.nodes[1]);
        self.compare();
    }

    fn compare(&self) {
        let digest = |node: &Node| {
            let digest = node.try_digest();
            digest.unwrap_or_else(|error| panic!("{error}\n{self:#?}"))
        };
        assert_eq!(digest(&self.nodes[0]), digest(&self.nodes[1]), "{self:#?}");
        let read = |node: &Node, sql: &str| {
            let client = node.mount();
            client
                .try_exec(sql)
                .unwrap_or_else(|error| panic!("{sql}: {error}\n{self:#?}"))
        };
        assert_eq!(read(&self.nodes[0], "PRAGMA integrity_check"), "ok", "{self:#?}");
        assert_eq!(read(&self.nodes[1], "PRAGMA integrity_check"), "ok", "{self:#?}");
        let sql =
            "SELECT count(*) || '/' || coalesce(sum(x), 0) || '/' || coalesce(sum(length(y)), 0) FROM t";
        assert_eq!(read(&self.nodes[0], sql), read(&self.nodes[1], sql), "{self:#?}");
    }
}

impl std::fmt::Debug for Life {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Life")
            .field("steps", &self.steps)
            .field(
                "primary",
                &self
                    .nodes
                    .first()
                    .map(|node| (node.db().status(), node.edge.history())),
            )
            .field(
                "replica",
                &self
                    .nodes
                    .get(1)
                    .map(|node| node.store.database(&name()).map(|db| db.status())),
            )
            .finish()
    }
}

fn live(seed: u64, coherence: Coherence) {
    let mut life = Life::new(seed, coherence);
    life.nodes[0]
        .mount()
        .exec("CREATE TABLE t(x INTEGER PRIMARY KEY, y)");
    for _ in 0..12 {
        let client = life.nodes[0].mount();
        let reader = life.nodes[1]
            .store
            .database(&name())
            .map(|_| life.nodes[1].mount());
        life.write(&client);
        if life.rng.random_bool(0.5) {
            drop(client);
            drop(reader);
            life.turn();
        } else {
            life.turn();
        }
    }
    life.synchronise("the end");
}

/// Seeds beyond the fixed ones, to look for more.
fn seeds(first: u64) -> std::ops::Range<u64> {
    let count = std::env::var("ENGINE_RANDOM_LIVES").map_or(6, |count| count.parse().unwrap());
    let first = std::env::var("ENGINE_RANDOM_SEED").map_or(first, |seed| seed.parse().unwrap());
    first..first + count
}

#[test]
fn two_nodes_agree_whatever_happens() {
    for seed in seeds(1) {
        live(seed, Coherence::Passthrough);
    }
}

#[test]
fn two_nodes_agree_whatever_happens_where_every_write_is_intercepted() {
    for seed in seeds(1001) {
        live(seed, Coherence::Intercepted);
    }
}
