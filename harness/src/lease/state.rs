//! What the lease server knows: sessions, keys and who holds them. Pure: no sockets, no clock of its own.
//!
//! The rules are Consul's (sessions, acquire, release, check-and-set, lock delay, modify indexes), with two differences that make
//! a development cluster quick and exact: a time-to-live may be shorter than 10 s, and a session ends at its time-to-live, not
//! somewhere between one and two.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Behavior {
    /// Keys held by an ended session stay, unheld.
    Release,
    /// Keys held by an ended session are deleted.
    Delete,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Session {
    pub(crate) name: String,
    pub(crate) node: String,
    pub(crate) behavior: Behavior,
    pub(crate) ttl: Option<Duration>,
    pub(crate) lock_delay: Duration,
    pub(crate) create_index: u64,
    #[serde(skip)]
    expires: Option<Instant>,
}

impl Session {
    pub(crate) fn new(
        name: String,
        node: String,
        behavior: Behavior,
        ttl: Option<Duration>,
        lock_delay: Duration,
    ) -> Self {
        Self {
            name,
            node,
            behavior,
            ttl,
            lock_delay,
            create_index: 0,
            expires: None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) value: Vec<u8>,
    pub(crate) flags: u64,
    pub(crate) session: Option<String>,
    pub(crate) lock_index: u64,
    pub(crate) create_index: u64,
    pub(crate) modify_index: u64,
}

/// The condition of a write to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    Always,
    /// Take or keep the lock.
    Acquire(String),
    Release(String),
    /// The key was last modified at this index; 0: it does not exist.
    Unchanged(u64),
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid session {0:?}")]
pub(crate) struct UnknownSession(pub(crate) String);

/// Kept over restarts of the server, as Consul does.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct LeaseState {
    index: u64,
    /// The index of the latest deletion: what a query for a key that does not exist reports.
    deleted: u64,
    entries: BTreeMap<String, Entry>,
    sessions: BTreeMap<String, Session>,
    #[serde(skip)]
    lock_delays: BTreeMap<String, Instant>,
}

impl Default for LeaseState {
    fn default() -> Self {
        Self {
            index: 1,
            deleted: 1,
            entries: BTreeMap::new(),
            sessions: BTreeMap::new(),
            lock_delays: BTreeMap::new(),
        }
    }
}

impl LeaseState {
    /// After a restart every session has its whole time-to-live again: nobody could renew meanwhile.
    pub(crate) fn restart_timers(&mut self, now: Instant) {
        for session in self.sessions.values_mut() {
            session.expires = session.ttl.map(|ttl| now + ttl);
        }
    }

    /// Ends the sessions whose time is over. Returns whether there were any.
    pub(crate) fn expire(&mut self, now: Instant) -> bool {
        self.lock_delays.retain(|_, until| *until > now);
        let over = |session: &Session| session.expires.is_some_and(|expires| expires <= now);
        let ended: Vec<_> = self
            .sessions
            .iter()
            .filter(|(_, session)| over(session))
            .map(|(id, _)| id.clone())
            .collect();
        for id in &ended {
            tracing::info!(session = id, "session expired");
            self.destroy_session(id, now);
        }
        !ended.is_empty()
    }

    /// When [`Self::expire`] has something to do next.
    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        self.sessions.values().filter_map(|session| session.expires).min()
    }

    pub(crate) fn create_session(&mut self, id: String, mut session: Session, now: Instant) {
        session.create_index = self.advance();
        session.expires = session.ttl.map(|ttl| now + ttl);
        self.sessions.insert(id, session);
    }

    pub(crate) fn renew_session(&mut self, id: &str, now: Instant) -> Option<&Session> {
        let session = self.sessions.get_mut(id)?;
        session.expires = session.ttl.map(|ttl| now + ttl);
        Some(session)
    }

    pub(crate) fn sessions(&self) -> impl Iterator<Item = (&String, &Session)> {
        self.sessions.iter()
    }

    /// Ends a session; its keys are released or deleted and cannot be acquired during its lock delay.
    pub(crate) fn destroy_session(&mut self, id: &str, now: Instant) {
        let Some(session) = self.sessions.remove(id) else {
            return;
        };
        let index = self.advance();
        let held = |entry: &Entry| entry.session.as_deref() == Some(id);
        let keys: Vec<_> = self
            .entries
            .iter()
            .filter(|(_, entry)| held(entry))
            .map(|(key, _)| key.clone())
            .collect();
        for key in keys {
            if !session.lock_delay.is_zero() {
                self.lock_delays.insert(key.clone(), now + session.lock_delay);
            }
            match session.behavior {
                Behavior::Delete => self.remove(&key),
                Behavior::Release => {
                    if let Some(entry) = self.entries.get_mut(&key) {
                        entry.session = None;
                        entry.modify_index = index;
                    }
                }
            }
        }
    }

    pub(crate) fn destroy_all_sessions(&mut self, now: Instant) {
        let ids: Vec<_> = self.sessions.keys().cloned().collect();
        ids.iter().for_each(|id| self.destroy_session(id, now));
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.get(key)
    }

    pub(crate) fn with_prefix<'a>(
        &'a self,
        prefix: &'a str,
    ) -> impl Iterator<Item = (&'a String, &'a Entry)> {
        self.entries
            .range(prefix.to_owned()..)
            .take_while(move |(key, _)| key.starts_with(prefix))
    }

    /// The index a query for `key` reports, and beyond which a blocking query waits.
    pub(crate) fn index_of(&self, key: &str, recurse: bool) -> u64 {
        let modified = if recurse {
            self.with_prefix(key)
                .map(|(_, entry)| entry.modify_index)
                .max()
                .map(|index| index.max(self.deleted))
        } else {
            self.get(key).map(|entry| entry.modify_index)
        };
        modified.unwrap_or(self.deleted)
    }

    /// Writes `value` if the condition holds; false: it does not.
    pub(crate) fn put(
        &mut self,
        key: &str,
        value: Vec<u8>,
        flags: u64,
        condition: &Condition,
        now: Instant,
    ) -> Result<bool, UnknownSession> {
        let existing = self.entries.get(key);
        let holder = existing.and_then(|entry| entry.session.clone());
        let mut lock_index = existing.map_or(0, |entry| entry.lock_index);
        let session = match condition {
            Condition::Always => holder,
            Condition::Unchanged(index) if existing.map_or(0, |entry| entry.modify_index) == *index => holder,
            Condition::Unchanged(_) => return Ok(false),
            Condition::Release(id) if holder.as_ref() == Some(id) => None,
            Condition::Release(_) => return Ok(false),
            Condition::Acquire(id) => {
                if !self.sessions.contains_key(id) {
                    return Err(UnknownSession(id.clone()));
                }
                let delayed = self.lock_delays.get(key).is_some_and(|until| *until > now);
                if holder.as_ref() != Some(id) {
                    if holder.is_some() || delayed {
                        return Ok(false);
                    }
                    lock_index += 1;
                }
                Some(id.clone())
            }
        };
        let create_index = existing.map(|entry| entry.create_index);
        let modify_index = self.advance();
        let create_index = create_index.unwrap_or(modify_index);
        let entry = Entry {
            value,
            flags,
            session,
            lock_index,
            create_index,
            modify_index,
        };
        self.entries.insert(key.to_owned(), entry);
        Ok(true)
    }

    /// Deletes a key, all keys below it, or the key if unchanged.
    pub(crate) fn delete(&mut self, key: &str, recurse: bool, unchanged: Option<u64>) -> bool {
        let current = self.get(key).map(|entry| entry.modify_index);
        if unchanged.is_some() && current.is_some() && unchanged != current {
            return false;
        }
        let keys: Vec<_> = if recurse {
            self.with_prefix(key).map(|(key, _)| key.clone()).collect()
        } else {
            current.map(|_| key.to_owned()).into_iter().collect()
        };
        if !keys.is_empty() {
            self.advance();
        }
        for key in keys {
            self.remove(&key);
        }
        true
    }

    fn remove(&mut self, key: &str) {
        self.entries.remove(key);
        self.deleted = self.index;
    }

    fn advance(&mut self) -> u64 {
        self.index += 1;
        self.index
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(2);
    const DELAY: Duration = Duration::from_secs(1);

    fn with_session(behavior: Behavior) -> (LeaseState, Instant) {
        let (mut state, now) = (LeaseState::default(), Instant::now());
        let session =
            |lock_delay| Session::new("litefs".into(), "n1".into(), behavior, Some(TTL), lock_delay);
        state.create_session("a".into(), session(DELAY), now);
        state.create_session("b".into(), session(Duration::ZERO), now);
        (state, now)
    }

    fn acquire(state: &mut LeaseState, id: &str, now: Instant) -> bool {
        state
            .put("k", b"v".to_vec(), 0, &Condition::Acquire(id.into()), now)
            .unwrap()
    }

    #[test]
    fn one_holder_at_a_time_who_may_write_again() {
        let (mut state, now) = with_session(Behavior::Delete);
        assert!(acquire(&mut state, "a", now));
        assert!(!acquire(&mut state, "b", now));
        assert!(acquire(&mut state, "a", now));
        assert_eq!(state.get("k").unwrap().lock_index, 1);
        let release = |id: &str| Condition::Release(id.into());
        assert!(!state.put("k", vec![], 0, &release("b"), now).unwrap());
        assert!(state.put("k", vec![], 0, &release("a"), now).unwrap());
        assert!(acquire(&mut state, "b", now), "no lock delay after a release");
        assert_eq!(
            state.put("k", vec![], 0, &Condition::Acquire("x".into()), now),
            Err(UnknownSession("x".into()))
        );
    }

    #[test]
    fn expiry_is_exact_and_the_lock_delay_follows_it() {
        for behavior in [Behavior::Delete, Behavior::Release] {
            let (mut state, now) = with_session(behavior);
            acquire(&mut state, "a", now);
            state.renew_session("b", now + TTL / 2).unwrap();
            assert!(!state.expire(now + TTL - Duration::from_millis(1)));
            assert!(state.expire(now + TTL));
            assert_eq!(state.get("k").is_none(), behavior == Behavior::Delete);
            assert!(!acquire(&mut state, "b", now + TTL));
            assert!(acquire(&mut state, "b", now + TTL + DELAY));
            assert!(state.renew_session("a", now + TTL).is_none());
        }
    }

    #[test]
    fn every_change_is_seen_by_the_index() {
        let (mut state, now) = with_session(Behavior::Delete);
        let mut last = state.index_of("k", false);
        let mut advanced = |state: &LeaseState| {
            let index = state.index_of("k", false);
            std::mem::replace(&mut last, index) < index
        };
        acquire(&mut state, "a", now);
        assert!(advanced(&state));
        state.expire(now + TTL);
        assert!(advanced(&state));
        state.put("k", vec![], 0, &Condition::Always, now).unwrap();
        assert!(advanced(&state));
        state.delete("k", false, None);
        assert!(advanced(&state));
    }

    #[test]
    fn check_and_set_creates_once_and_replaces_what_was_read() {
        let (mut state, now) = with_session(Behavior::Delete);
        let mut set = |index| {
            state
                .put("k", vec![], 0, &Condition::Unchanged(index), now)
                .unwrap()
        };
        assert!(set(0));
        assert!(!set(0));
        let index = state.get("k").unwrap().modify_index;
        assert!(!state.delete("k", false, Some(index + 1)));
        assert!(state.delete("k", false, Some(index)));
    }
}
