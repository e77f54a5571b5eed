//! What a client notes outside the mount: what it tries, what it was told, what it saw. One line each, in one write, so that a client that
//! is killed leaves whole lines.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use super::clock::now;

/// What the client believed its node to be when it began to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Primary,
    /// Only to see that it is refused.
    Replica,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Note {
    Trying {
        first: i64,
        rows: i64,
        role: Role,
    },
    Acknowledged {
        first: i64,
    },
    Failed {
        first: i64,
        code: i32,
        message: String,
    },
    /// Something else than a write failed.
    Error {
        what: String,
        code: i32,
        message: String,
    },
    /// What was read is wrong.
    Wrong(String),
    /// What was read was right before.
    Stale(String),
    /// A connection went on failing where a new one did not; it was put away.
    Broken {
        connection: u64,
        /// When it was opened.
        since: u64,
    },
    /// Rows were read and are right.
    Read {
        rows: i64,
    },
    /// Nothing to do: paused, or on a replica.
    Idle,
    /// What a connection that was kept sees at the end.
    Seen {
        connection: u64,
        rows: i64,
        digest: u64,
    },
}

pub(super) struct Journal(File);

impl Journal {
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        File::options().create(true).append(true).open(path).map(Self)
    }

    /// A journal that cannot be written makes the whole run worthless.
    pub(super) fn note(&mut self, note: &Note) {
        let line = format!("{} {}\n", now(), text(note));
        self.0
            .write_all(line.as_bytes())
            .expect("the journal can be written");
    }
}

fn text(note: &Note) -> String {
    let line = |message: &String| message.replace('\n', " ");
    match note {
        Note::Trying { first, rows, role } => {
            let role = match role {
                Role::Primary => "primary",
                Role::Replica => "replica",
            };
            format!("trying {first} {rows} {role}")
        }
        Note::Acknowledged { first } => format!("acknowledged {first}"),
        Note::Failed { first, code, message } => format!("failed {first} {code} {}", line(message)),
        Note::Error { what, code, message } => format!("error {what} {code} {}", line(message)),
        Note::Wrong(message) => format!("wrong {}", line(message)),
        Note::Stale(message) => format!("stale {}", line(message)),
        Note::Broken { connection, since } => format!("broken {connection} {since}"),
        Note::Read { rows } => format!("read {rows}"),
        Note::Idle => "idle".to_owned(),
        Note::Seen {
            connection,
            rows,
            digest,
        } => format!("seen {connection} {rows} {digest}"),
    }
}

/// The notes of a journal with their times. The last line of a client that was killed may be no note.
pub(super) fn read(path: &Path) -> io::Result<Vec<(u64, Note)>> {
    let text = std::fs::read_to_string(path)?;
    Ok(text.lines().filter_map(parse).collect())
}

pub(super) fn parse(line: &str) -> Option<(u64, Note)> {
    let (time, rest) = line.split_once(' ')?;
    let (kind, rest) = rest.split_once(' ').unwrap_or((rest, ""));
    let mut words = rest.splitn(3, ' ');
    let note = match kind {
        "trying" => Note::Trying {
            first: words.next()?.parse().ok()?,
            rows: words.next()?.parse().ok()?,
            role: if words.next()? == "replica" {
                Role::Replica
            } else {
                Role::Primary
            },
        },
        "acknowledged" => Note::Acknowledged {
            first: words.next()?.parse().ok()?,
        },
        "failed" => Note::Failed {
            first: words.next()?.parse().ok()?,
            code: words.next()?.parse().ok()?,
            message: words.next().unwrap_or_default().to_owned(),
        },
        "error" => Note::Error {
            what: words.next()?.to_owned(),
            code: words.next()?.parse().ok()?,
            message: words.next().unwrap_or_default().to_owned(),
        },
        "wrong" => Note::Wrong(rest.to_owned()),
        "stale" => Note::Stale(rest.to_owned()),
        "broken" => Note::Broken {
            connection: words.next()?.parse().ok()?,
            since: words.next()?.parse().ok()?,
        },
        "read" => Note::Read {
            rows: words.next()?.parse().ok()?,
        },
        "idle" => Note::Idle,
        "seen" => Note::Seen {
            connection: words.next()?.parse().ok()?,
            rows: words.next()?.parse().ok()?,
            digest: words.next()?.parse().ok()?,
        },
        unknown => {
            tracing::warn!(unknown, "a line of a journal is no note");
            return None;
        }
    };
    Some((time.parse().ok()?, note))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_read_as_they_were_written_and_half_a_line_is_left_out() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal");
        let notes = [
            Note::Trying {
                first: 5,
                rows: 3,
                role: Role::Replica,
            },
            Note::Acknowledged { first: 5 },
            Note::Failed {
                first: 8,
                code: 778,
                message: "disk I/O error".into(),
            },
            Note::Error {
                what: "read".into(),
                code: 5,
                message: String::new(),
            },
            Note::Wrong("row 3: this and that".into()),
            Note::Stale("row 4 is not seen".into()),
            Note::Broken {
                connection: 2,
                since: 3,
            },
            Note::Read { rows: 9 },
            Note::Idle,
            Note::Seen {
                connection: 1,
                rows: 3,
                digest: u64::MAX,
            },
        ];
        let mut journal = Journal::create(&path).unwrap();
        notes.iter().for_each(|note| journal.note(note));
        File::options()
            .append(true)
            .open(&path)
            .unwrap()
            .write_all(b"12 trying 7")
            .unwrap();
        let read: Vec<_> = read(&path).unwrap().into_iter().map(|(_, note)| note).collect();
        assert_eq!(read, notes);
    }
}
