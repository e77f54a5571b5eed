//! What the console shows, as a function of what the nodes said.

use litefs_api::{Role, Status};
use ratatui::Frame;
use ratatui::backend::TestBackend;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::Line;
use ratatui::widgets::{Block, Cell, Row, Table};

/// Size of the screen that is printed as text.
const TEXT_SIZE: (u16, u16) = (132, 30);

/// Everything on the screen.
#[derive(Debug, Clone)]
pub(crate) struct Screen {
    pub(crate) nodes: Vec<NodeView>,
}

/// A node, or why it did not answer.
#[derive(Debug, Clone)]
pub(crate) struct NodeView {
    pub(crate) url: String,
    pub(crate) status: Result<Status, String>,
}

/// Draws the screen.
pub(crate) fn draw(frame: &mut Frame<'_>, screen: &Screen) {
    let height = screen.nodes.len() as u16 + 3;
    let [nodes, databases, help] = Layout::vertical([
        Constraint::Length(height),
        Constraint::Min(3),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(node_table(screen), nodes);
    frame.render_widget(database_table(screen), databases);
    frame.render_widget(Line::from(" q quits").dim(), help);
}

/// The screen as text, without colours.
pub(crate) fn text(screen: &Screen) -> String {
    let Ok(mut terminal) = ratatui::Terminal::new(TestBackend::new(TEXT_SIZE.0, TEXT_SIZE.1));
    let Ok(_) = terminal.draw(|frame| draw(frame, screen));
    let buffer = terminal.backend().buffer();
    let lines = buffer.content.chunks(usize::from(TEXT_SIZE.0));
    let lines = lines.map(|cells| cells.iter().map(|cell| cell.symbol()).collect::<String>());
    lines.map(|line| format!("{}\n", line.trim_end())).collect()
}

fn node_table(screen: &Screen) -> Table<'static> {
    let rows = screen.nodes.iter().map(|node| match &node.status {
        Ok(status) => {
            let (role, style) = match status.role {
                Role::Primary => ("primary", Style::new().fg(Color::Green)),
                Role::Replica => ("replica", Style::new()),
            };
            let lag = status
                .lag_seconds
                .map_or_else(|| "-".to_owned(), |lag| format!("{lag:.3} s"));
            Row::new([
                Cell::from(status.hostname.clone()),
                Cell::from(role).style(style),
                Cell::from(status.epoch.to_string()),
                Cell::from(status.fuse_mode.clone()),
                Cell::from(lag),
                Cell::from(node.url.clone()),
            ])
        }
        Err(error) => {
            let down = Style::new().fg(Color::Red);
            // Many errors name the node themselves.
            let told = match error.contains(&node.url) {
                true => error.clone(),
                false => format!("{}: {error}", node.url),
            };
            let cells = ["?", "silent", "", "", "", &told];
            Row::new(cells.map(|text| Cell::from(text.to_owned()))).style(down)
        }
    });
    let widths = [12, 9, 7, 13, 10]
        .map(Constraint::Length)
        .into_iter()
        .chain([Constraint::Min(20)]);
    let header = Row::new(["NODE", "ROLE", "EPOCH", "MODE", "LAG", "API"]).bold();
    Table::new(rows, widths)
        .header(header)
        .block(Block::bordered().title(" nodes "))
}

fn database_table(screen: &Screen) -> Table<'static> {
    let mut rows = Vec::new();
    for status in screen.nodes.iter().filter_map(|node| node.status.as_ref().ok()) {
        for database in &status.databases {
            let state = match &database.quarantine {
                Some(reason) => format!("not replicated: {reason}"),
                None if database.received != database.txid => format!("applying up to {}", database.received),
                None => String::new(),
            };
            rows.push(Row::new([
                database.name.clone(),
                status.hostname.clone(),
                format!("{}/{}", database.txid, database.checksum),
                database.mode.clone(),
                database.pages.to_string(),
                state,
            ]));
        }
    }
    let widths = [20, 10, 34, 9, 8]
        .map(Constraint::Length)
        .into_iter()
        .chain([Constraint::Min(10)]);
    let header = Row::new(["DATABASE", "NODE", "POSITION", "JOURNAL", "PAGES", ""]).bold();
    Table::new(rows, widths)
        .header(header)
        .block(Block::bordered().title(" databases "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> Status {
        serde_json::from_value(serde_json::json!({
            "nodeId": "00000000000000AB", "hostname": "n1", "version": "0.1.0", "role": "primary", "candidate": true,
            "ready": true, "epoch": 3, "fuseMode": "passthrough", "lagSeconds": 0.0,
            "databases": [{
                "name": "app.db", "txid": "0000000000000005", "checksum": "d835d5fdc5389f38",
                "received": "0000000000000007", "pageSize": 4096, "pages": 2, "mode": "wal",
                "log": {"firstTxid": "0000000000000001", "lastTxid": "0000000000000007", "bytes": 10}
            }]
        }))
        .unwrap()
    }

    #[test]
    fn roles_positions_and_silent_nodes_are_shown() {
        let nodes = vec![
            NodeView {
                url: "http://a:1".to_owned(),
                status: Ok(status()),
            },
            NodeView {
                url: "http://b:1".to_owned(),
                status: Err("connection refused".to_owned()),
            },
        ];
        let text = text(&Screen { nodes });
        for part in [
            "n1",
            "primary",
            "passthrough",
            "app.db",
            "0000000000000005/d835d5fdc5389f38",
            "silent",
        ] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
        assert!(text.contains("applying up to 0000000000000007"), "{text}");
        assert!(text.contains("connection refused"), "{text}");
    }
}
