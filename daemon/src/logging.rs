//! The daemon's log: one line per event on standard error, in the form of LiteFS 0.5.
//!
//! `level=INFO msg="…" key=value`, or JSON with the same names. `RUST_LOG` overrides the level per module.

use std::fmt::{self, Write};

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::config::{Log, LogFormat};

/// Has [`crate::fuse`] log each request.
const REQUESTS: &str = "litefs::fuse::requests=trace";

/// Starts logging, with every request of the kernel if `requests`. A second call, as tests make, changes nothing.
pub fn start(log: &Log, requests: bool) {
    let level = if log.debug {
        "debug,h2=info,hyper=info,hyper_util=info,reqwest=info"
    } else {
        "info"
    };
    let mut filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    if requests {
        filter = filter.add_directive(REQUESTS.parse().expect("a valid directive"));
    }
    let lines = Lines {
        json: log.format == LogFormat::Json,
        timestamp: log.timestamp,
    };
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| crate::output::Log)
        .event_format(lines)
        .finish();
    // Fails only where a subscriber is set already, which is then the one that was asked for first.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

struct Lines {
    json: bool,
    timestamp: bool,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let time = self.timestamp.then(now);
        let level = event.metadata().level().to_string();
        if self.json {
            writeln!(writer, "{}", json_line(time, level, fields))
        } else {
            writeln!(writer, "{}", text_line(time, &level, fields))
        }
    }
}

fn now() -> String {
    humantime::format_rfc3339_millis(std::time::SystemTime::now()).to_string()
}

/// What an event carries, in the order it was written.
#[derive(Default)]
struct Fields {
    message: String,
    others: Vec<(&'static str, Value)>,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => self.message = format!("{value:?}"),
            name => self.others.push((name, Value::String(format!("{value:?}")))),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.message = value.to_string(),
            name => self.others.push((name, Value::from(value))),
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.others.push((field.name(), Value::from(value)));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.others.push((field.name(), Value::from(value)));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.others.push((field.name(), Value::from(value)));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.others.push((field.name(), Value::from(value)));
    }
}

fn json_line(time: Option<String>, level: String, fields: Fields) -> String {
    let mut line = Map::new();
    if let Some(time) = time {
        line.insert("time".to_string(), Value::String(time));
    }
    line.insert("level".to_string(), Value::String(level));
    line.insert("msg".to_string(), Value::String(fields.message));
    for (name, value) in fields.others {
        line.insert(name.to_string(), value);
    }
    Value::Object(line).to_string()
}

fn text_line(time: Option<String>, level: &str, fields: Fields) -> String {
    let mut line = String::new();
    if let Some(time) = time {
        let _ = write!(line, "time={time} ");
    }
    let _ = write!(line, "level={level} msg={}", Value::String(fields.message));
    for (name, value) in fields.others {
        let _ = match value.as_str() {
            Some(text) if is_plain(text) => write!(line, " {name}={text}"),
            _ => write!(line, " {name}={value}"),
        };
    }
    line
}

/// Whether a value needs no quotes to be read back.
fn is_plain(text: &str) -> bool {
    !text.is_empty()
        && text
            .chars()
            .all(|c| c.is_ascii_graphic() && !matches!(c, '"' | '=' | '\\'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields() -> Fields {
        Fields {
            message: "it \"works\"".to_string(),
            others: vec![
                ("db", Value::from("a.db")),
                ("n", Value::from(3)),
                ("why", Value::from("no reason")),
            ],
        }
    }

    #[test]
    fn a_text_line_is_quoted_where_needed() {
        let line = text_line(None, "INFO", fields());
        assert_eq!(
            line,
            r#"level=INFO msg="it \"works\"" db=a.db n=3 why="no reason""#
        );
        assert!(text_line(Some("T".to_string()), "WARN", fields()).starts_with("time=T level=WARN msg="));
    }

    #[test]
    fn a_json_line_has_the_same_names() {
        let line: Value = serde_json::from_str(&json_line(None, "INFO".to_string(), fields())).unwrap();
        assert_eq!(line["msg"], "it \"works\"");
        assert_eq!(line["level"], "INFO");
        assert_eq!(line["n"], 3);
        assert!(line.get("time").is_none());
    }
}
