//! `litefs-tui`: a console that shows the nodes of a cluster with their roles, positions and lag.
//!
//! It knows of the nodes only what their HTTP API tells (`litefs_api`). [`view`] draws a [`Screen`]; nothing else knows the
//! terminal.

mod view;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use crossterm::event::{self, Event, KeyCode, KeyEventKind};
use litefs_api::{Client, Status};

use view::{NodeView, Screen};

/// Pause between two looks at the nodes.
const REFRESH: Duration = Duration::from_millis(500);
/// How long a node may take to answer before it is shown as silent.
const ANSWER: Duration = Duration::from_secs(2);

/// Shows the nodes of a LiteFS cluster.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// API URLs of the nodes, as `litefs-dev status` prints them.
    #[arg(default_value = "http://localhost:20202")]
    urls: Vec<String>,
    /// Print the screen once, as text, and exit.
    #[arg(long)]
    once: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    terminal::end_without_reader();
    match run(&Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("litefs-tui: {}", terminal::explain(&error));
            ExitCode::FAILURE
        }
    }
}

async fn run(args: &Args) -> anyhow::Result<()> {
    let clients: Vec<(String, Client)> = args
        .urls
        .iter()
        .map(|url| Ok((url.clone(), Client::new(url)?)))
        .collect::<anyhow::Result<_>>()?;
    if args.once {
        print!("{}", view::text(&look(&clients).await));
        return Ok(());
    }
    let mut terminal = ratatui::try_init()?;
    let outcome = watch(&mut terminal, &clients).await;
    ratatui::restore();
    outcome
}

async fn watch(terminal: &mut ratatui::DefaultTerminal, clients: &[(String, Client)]) -> anyhow::Result<()> {
    loop {
        let screen = look(clients).await;
        terminal.draw(|frame| view::draw(frame, &screen))?;
        if quits(REFRESH)? {
            return Ok(());
        }
    }
}

/// Whether somebody asks to leave within the pause.
fn quits(pause: Duration) -> anyhow::Result<bool> {
    if !event::poll(pause)? {
        return Ok(false);
    }
    Ok(match event::read()? {
        Event::Key(key) if key.kind == KeyEventKind::Press => {
            matches!(key.code, KeyCode::Char('q') | KeyCode::Esc)
        }
        _ => false,
    })
}

/// Asks every node.
async fn look(clients: &[(String, Client)]) -> Screen {
    let mut nodes = Vec::new();
    for (url, client) in clients {
        let answer = tokio::time::timeout(ANSWER, client.status()).await;
        let status: Result<Status, String> = match answer {
            Ok(Ok(status)) => Ok(status),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("no answer".to_owned()),
        };
        nodes.push(NodeView {
            url: url.clone(),
            status,
        });
    }
    Screen { nodes }
}
