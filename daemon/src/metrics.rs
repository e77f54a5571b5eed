//! Names, units and meanings of the metrics, and their text for `GET /metrics`.
//!
//! LiteFS 0.5's names are kept, so that dashboards go on working. Who counts uses the `metrics` macros with the same
//! name; what is a state rather than a count is set when it is asked for (`http::metrics`). `docs/metrics.md` has the
//! same list, and a test holds one against the other.

use std::sync::OnceLock;
use std::time::Duration;

use metrics::Unit;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use metrics_util::MetricKindMask;

/// What kind of number a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// One metric.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    pub labels: &'static [&'static str],
    pub unit: Unit,
    pub help: &'static str,
}

macro_rules! metrics_table {
    ($( $constant:ident = $name:literal, $kind:ident, [$($label:literal),*], $unit:ident, $help:literal; )*) => {
        $(
            #[doc = $help]
            pub const $constant: &str = $name;
        )*

        /// All metrics.
        pub const ALL: &[Metric] = &[
            $( Metric { name: $constant, kind: Kind::$kind, labels: &[$($label),*], unit: Unit::$unit, help: $help }, )*
        ];
    };
}

metrics_table! {
    DB_COUNT = "litefs_db_count", Gauge, [], Count, "Databases this node knows, dropped ones included.";
    IS_PRIMARY = "litefs_is_primary", Gauge, [], Count, "1 on the primary, 0 on a replica.";
    EPOCH = "litefs_epoch", Gauge, [], Count, "Highest term of a primary that this node has seen.";
    SUBSCRIBER_COUNT = "litefs_subscriber_count", Gauge, [], Count, "Receivers of changes: replicas and event streams.";
    LAG_SECONDS = "litefs_lag_seconds", Gauge, [], Seconds, "Age of the oldest transaction that clients of this node cannot see yet, as far as that is known; 0 on the primary and on a replica that has caught up.";
    DB_TXID = "litefs_db_txid", Gauge, ["db"], Count, "Newest transaction of the database that clients can see here.";
    DB_COMMIT_COUNT = "litefs_db_commit_count", Counter, ["db"], Count, "The same as litefs_commit_total, under LiteFS's name.";
    DB_LTX_COUNT = "litefs_db_ltx_count", Gauge, ["db"], Count, "Transactions that the database's log holds.";
    DB_LTX_BYTES = "litefs_db_ltx_bytes", Gauge, ["db"], Bytes, "Size of the database's log.";
    DB_CLOSED = "litefs_db_closed", Gauge, ["db"], Count, "1 while a failure of the disk keeps the database from being written, until the daemon starts again.";
    DB_LAG_SECONDS = "litefs_db_lag_seconds", Gauge, ["db"], Seconds, "Age of the oldest transaction of the database that clients of this node cannot see yet; 0 on the primary and where all is applied.";
    HTTP_STREAM_COUNT = "litefs_http_stream_count", Gauge, [], Count, "Replicas that are connected.";
    HTTP_FRAME_SEND_COUNT = "litefs_http_frame_send_count", Counter, ["db", "type"], Count, "Transactions (type ltx) and snapshots (type ltx:snapshot) sent to replicas.";
    REPLICA_LAG_TXIDS = "litefs_replica_lag_txids", Gauge, ["node"], Count, "Transactions, over all databases, that the replica has not acknowledged yet.";
    REFUSED_WRITES_TOTAL = "litefs_refused_writes_total", Counter, [], Count, "Requests of clients that were refused because this node is a replica and they would write.";
    FUSE_REQUESTS_TOTAL = "litefs_fuse_requests_total", Counter, ["op", "file"], Count, "Requests the kernel sent, by operation and kind of file: database, wal, shm, journal or other.";
    LOG_SYNC_TOTAL = "litefs_log_sync_total", Counter, [], Count, "Syncs of logs to disk.";
    COMMIT_TOTAL = "litefs_commit_total", Counter, ["db"], Count, "Transactions that clients of this node committed.";
    CAPTURE_SECONDS = "litefs_capture_seconds", Histogram, [], Seconds, "Time of one capture that made transactions, from a WAL or from pages of the main file.";
    DISK_ERRORS_TOTAL = "litefs_disk_errors_total", Counter, ["op"], Count, "Failed calls to the disk, by the call's name.";
    DISK_SYNC_SECONDS = "litefs_disk_sync_seconds", Histogram, ["op"], Seconds, "Time of one sync to disk, by the call's name.";
}

/// Counters that are shown under a second, older name.
const ALIASES: &[(&str, &str)] = &[(COMMIT_TOTAL, DB_COMMIT_COUNT)];

/// Bounds of the histograms' buckets, from a capture of a few pages to a sync of a slow disk.
const BUCKETS: &[f64] = &[
    0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1,
    0.5, 1.0, 5.0,
];

/// States are found and set whenever somebody asks. One that was not is of something that is gone: a replica that left, say.
const GONE: Duration = Duration::from_secs(1);

/// How often samples of histograms are put into their buckets: until then each takes memory, whether somebody asks for them or not.
const UPKEEP: Duration = Duration::from_secs(5);

/// The process's metrics.
pub struct Metrics {
    handle: PrometheusHandle,
}

impl Metrics {
    /// Starts counting, once per process; later calls give the same metrics.
    pub fn start() -> &'static Metrics {
        static METRICS: OnceLock<Metrics> = OnceLock::new();
        METRICS.get_or_init(|| {
            let recorder = builder().build_recorder();
            let handle = recorder.handle();
            // Fails where a recorder is set already; the metrics shown here are then empty, which is all that is lost.
            if metrics::set_global_recorder(recorder).is_err() {
                tracing::warn!("metrics are recorded elsewhere");
            }
            describe();
            let upkeep = handle.clone();
            let started = std::thread::Builder::new().name("metrics".into()).spawn(move || {
                loop {
                    std::thread::sleep(UPKEEP);
                    upkeep.run_upkeep();
                }
            });
            if let Err(error) = started {
                tracing::warn!(%error, "samples of histograms are kept until somebody asks for the metrics");
            }
            Metrics { handle }
        })
    }

    /// Prometheus's text form.
    pub fn render(&self) -> String {
        self.handle.run_upkeep();
        with_aliases(&self.handle.render())
    }
}

fn builder() -> PrometheusBuilder {
    let histograms = ALL.iter().filter(|metric| metric.kind == Kind::Histogram);
    let begin = PrometheusBuilder::new().idle_timeout(MetricKindMask::GAUGE, Some(GONE));
    histograms.fold(begin, |builder, metric| {
        let matcher = Matcher::Full(metric.name.to_string());
        builder
            .set_buckets_for_metric(matcher, BUCKETS)
            .expect("there are buckets")
    })
}

fn describe() {
    for metric in ALL {
        match metric.kind {
            Kind::Counter => metrics::describe_counter!(metric.name, metric.unit, metric.help),
            Kind::Gauge => metrics::describe_gauge!(metric.name, metric.unit, metric.help),
            Kind::Histogram => metrics::describe_histogram!(metric.name, metric.unit, metric.help),
        }
    }
}

/// Repeats the series that have a second name.
fn with_aliases(text: &str) -> String {
    let mut out = text.to_string();
    for (name, alias) in ALIASES {
        let mut described = false;
        for line in text.lines() {
            let Some(rest) = line
                .strip_prefix(name)
                .filter(|rest| rest.starts_with(['{', ' ']))
            else {
                continue;
            };
            if !described {
                out.push_str(&format!("# TYPE {alias} counter\n"));
                described = true;
            }
            out.push_str(&format!("{alias}{rest}\n"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The list for people and the list for the program are the same.
    #[test]
    fn the_documentation_lists_every_metric() {
        let document = include_str!("../../docs/metrics.md");
        let rows: Vec<&str> = document
            .lines()
            .filter(|line| line.starts_with("| `litefs_"))
            .collect();
        let expected: Vec<String> = ALL
            .iter()
            .map(|metric| {
                let kind = format!("{:?}", metric.kind).to_lowercase();
                let labels = metric.labels.join(", ");
                format!("| `{}` | {kind} | {labels} | {} |", metric.name, metric.help)
            })
            .collect();
        assert_eq!(
            rows,
            expected,
            "docs/metrics.md should have these rows:\n{}",
            expected.join("\n")
        );
    }

    #[test]
    fn names_are_unique_and_have_the_prefix() {
        let mut names: Vec<&str> = ALL.iter().map(|metric| metric.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
        assert!(names.iter().all(|name| name.starts_with("litefs_")));
    }

    #[test]
    fn a_counter_is_shown_under_its_old_name_too() {
        let text =
            "# TYPE litefs_commit_total counter\nlitefs_commit_total{db=\"a\"} 3\nlitefs_commit_total_x 1\n";
        let shown = with_aliases(text);
        assert!(shown.starts_with(text));
        assert!(
            shown.ends_with("# TYPE litefs_db_commit_count counter\nlitefs_db_commit_count{db=\"a\"} 3\n")
        );
    }

    #[test]
    fn names_are_not_changed_on_the_way_out() {
        let metrics = Metrics::start();
        metrics::gauge!(DB_COUNT).set(2.0);
        metrics::counter!(COMMIT_TOTAL, "db" => "metrics-test.db").increment(1);
        metrics::histogram!(CAPTURE_SECONDS).record(0.000_2);
        let text = metrics.render();
        assert!(
            text.contains("\nlitefs_db_count 2\n") || text.starts_with("litefs_db_count 2\n"),
            "{text}"
        );
        assert!(
            text.contains("litefs_db_commit_count{db=\"metrics-test.db\"} 1"),
            "{text}"
        );
        assert!(
            text.contains("litefs_capture_seconds_bucket{le=\"0.00025\"}"),
            "{text}"
        );
    }
}
