//! One line per file.

use crate::run::{FileSummary, Summary};
use crate::text::one_line;

const HEAD: &str = "file,status,equal,native_cases,mount_cases,native_errors,mount_errors,native_seconds,\
mount_seconds,native_cpu,mount_cpu,cases_differ,flaky,varying,databases,databases_different,differences,first_failures\n";

pub(super) fn text(summary: &Summary) -> String {
    let mut text = HEAD.to_string();
    for file in &summary.files {
        text.push_str(&line(file));
    }
    text
}

fn line(file: &FileSummary) -> String {
    let (native, mount) = (&file.native, &file.mount);
    format!(
        "{},{},{},{},{},{},{},{:.3},{:.3},{:.3},{:.3},{},{},{},{},{},{},{}\n",
        field(&file.file),
        file.status,
        file.equal,
        native.cases,
        mount.cases,
        native.errors,
        mount.errors,
        native.seconds,
        mount.seconds,
        native.cpu_seconds,
        mount.cpu_seconds,
        file.cases_differ,
        file.flaky.map_or("", |status| status.name()),
        file.varying,
        file.databases.compared,
        file.databases.different,
        field(&file.differences.join("; ")),
        field(&file.failures.join("; ")),
    )
}

/// RFC 4180, with line ends made spaces: one file is one line for every tool.
fn field(text: &str) -> String {
    let flat = one_line(text);
    if flat.contains([',', '"']) {
        format!("\"{}\"", flat.replace('"', "\"\""))
    } else {
        flat
    }
}

#[cfg(test)]
mod tests {
    use super::field;

    #[test]
    fn a_field_with_commas_quotes_and_line_ends_stays_one_field_on_one_line() {
        assert_eq!(field("plain"), "plain");
        assert_eq!(field("a,\"b\"\nc"), "\"a,\"\"b\"\" c\"");
    }
}
