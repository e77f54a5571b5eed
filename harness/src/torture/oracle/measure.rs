//! How long commits took, and how long there were none.

use std::collections::BTreeMap;

use serde::Serialize;

use super::super::clock::MILLISECOND;
use super::super::journal::Note;
use super::Occurrence;

/// Milliseconds.
#[derive(Debug, Default, Serialize)]
pub struct Spread {
    pub count: usize,
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
}

impl Spread {
    fn of(mut nanoseconds: Vec<u64>) -> Self {
        nanoseconds.sort_unstable();
        let count = nanoseconds.len();
        #[allow(clippy::cast_precision_loss)] // milliseconds for people
        let at = |hundredths: usize| {
            let place = (count * hundredths / 100).min(count.saturating_sub(1));
            nanoseconds
                .get(place)
                .map_or(0.0, |&time| time as f64 / MILLISECOND as f64)
        };
        Self {
            count,
            p50: at(50),
            p99: at(99),
            max: at(100),
        }
    }
}

/// When commits of metronomes were acknowledged, by database, and how long each took.
#[derive(Default)]
pub(super) struct Beats {
    acknowledged: BTreeMap<String, Vec<u64>>,
    took: BTreeMap<String, Vec<u64>>,
}

impl Beats {
    pub(super) fn add(&mut self, database: &str, notes: &[(u64, Note)]) {
        let mut begun = None;
        let took = self.took.entry(database.to_owned()).or_default();
        let acknowledged = self.acknowledged.entry(database.to_owned()).or_default();
        for (time, note) in notes {
            match note {
                Note::Trying { .. } => begun = Some(*time),
                Note::Acknowledged { .. } => {
                    acknowledged.push(*time);
                    took.extend(begun.take().map(|begun| time - begun));
                }
                Note::Failed { .. }
                | Note::Error { .. }
                | Note::Wrong(_)
                | Note::Stale(_)
                | Note::Broken { .. }
                | Note::Read { .. }
                | Note::Idle
                | Note::Seen { .. } => {}
            }
        }
    }

    /// How long commits took, by database.
    pub(super) fn took(self) -> BTreeMap<String, Spread> {
        let spread = |(database, took)| (database, Spread::of(took));
        self.took.into_iter().map(spread).collect()
    }

    /// For each fault the longest time between two commits to one database, on whatever node, from its begin to the next fault.
    pub(super) fn gaps(&mut self, faults: &[Occurrence]) -> Vec<u64> {
        let mut gaps = vec![0; faults.len()];
        for times in self.acknowledged.values_mut() {
            times.sort_unstable();
            for pair in times.windows(2) {
                // A gap belongs to every fault that began in it, and to the one before.
                let from = faults
                    .partition_point(|fault| fault.begin <= pair[0])
                    .saturating_sub(1);
                let to = faults.partition_point(|fault| fault.begin <= pair[1]);
                for gap in gaps.iter_mut().take(to).skip(from) {
                    *gap = (*gap).max(pair[1] - pair[0]);
                }
            }
        }
        gaps
    }
}

pub(super) fn pauses(faults: &[Occurrence], gaps: &[u64]) -> BTreeMap<String, Spread> {
    let mut by_kind: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for (fault, gap) in faults.iter().zip(gaps) {
        by_kind.entry(fault.kind.name()).or_default().push(*gap);
    }
    by_kind
        .into_iter()
        .map(|(kind, gaps)| (kind, Spread::of(gaps)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::super::fault::FaultKind;
    use super::*;

    #[test]
    fn the_longest_gap_belongs_to_the_fault_in_it() {
        let fault = |begin| Occurrence {
            kind: FaultKind::Kill,
            begin,
        };
        let faults = [fault(100), fault(1000)];
        let acknowledged = |time| (time, Note::Acknowledged { first: 1 });
        let notes = [
            acknowledged(50),
            acknowledged(300),
            acknowledged(310),
            acknowledged(990),
            acknowledged(1500),
        ];
        let mut beats = Beats::default();
        // On two nodes: the second goes on where the first has stopped.
        beats.add("db", &notes[2..]);
        beats.add("db", &notes[..2]);
        let gaps = beats.gaps(&faults);
        assert_eq!(gaps, [680, 510]);
    }
}
