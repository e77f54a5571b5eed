//! `litefs run`: run a command, on the primary or on a candidate only.
//!
//! The command replaces this process, so that signals, standard input and the exit code are its own.

use std::os::unix::process::CommandExt;
use std::process::ExitCode;
use std::time::Duration;

use super::Node;
use super::error::{CommandError, FAILURE, Result, USAGE};

/// How long a promotion that was accepted may take.
const PROMOTION_LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(50);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    node: Node,
    /// Make this node primary first, and wait until it is.
    #[arg(long)]
    pub(super) promote: bool,
    /// Do nothing, successfully, on a node that is not a candidate.
    #[arg(long)]
    pub(super) if_candidate: bool,
    /// Hold the HALT lock of this database while the command runs.
    #[arg(long, value_name = "PATH")]
    with_halt_lock_on: Option<String>,
    /// Tell what is being done.
    #[arg(short)]
    verbose: bool,
    /// The command to run.
    #[arg(last = true, value_name = "CMD")]
    pub(super) command: Vec<String>,
}

pub(super) fn run(args: Args) -> Result<ExitCode> {
    let Some((program, rest)) = args.command.split_first() else {
        let error = CommandError::new("no command to run").hint("litefs run [flags] -- CMD [ARG...]");
        return Err(error.code(USAGE));
    };
    refuse_halt(&args)?;
    if args.promote || args.if_candidate {
        let proceed = super::client_runtime()?.block_on(prepare(&args))?;
        if !proceed {
            complain!("node is not a candidate, skipping execution");
            return Ok(ExitCode::SUCCESS);
        }
    }
    let error = std::process::Command::new(program).args(rest).exec();
    Err(CommandError::new(format!("cannot run {program}: {error}"))
        .hint("check the command's name and PATH")
        .code(FAILURE))
}

fn refuse_halt(args: &Args) -> Result<()> {
    match &args.with_halt_lock_on {
        None => Ok(()),
        Some(_) if args.promote => Err(CommandError::new(
            "cannot use -promote together with -with-halt-lock-on",
        )
        .hint("a primary needs no HALT lock: drop -with-halt-lock-on")),
        Some(_) => Err(
            CommandError::new("-with-halt-lock-on is not available in this version")
                .hint("use -promote, or run the command on the primary"),
        ),
    }
}

/// Brings the node into the state the command wants; false if the command is to be skipped.
async fn prepare(args: &Args) -> Result<bool> {
    let client = args.node.client()?;
    let info = client.info().await?;
    if args.if_candidate && !info.candidate {
        return Ok(false);
    }
    if args.promote && !info.is_primary {
        if args.verbose {
            complain!("asking {} to become primary", args.node.url);
        }
        client.promote(false).await?;
        wait_for_primary(&client).await?;
        if args.verbose {
            complain!("{} is primary", args.node.url);
        }
    }
    Ok(true)
}

/// LiteFS answers a promotion when it is under way, and writes fail until it is through.
async fn wait_for_primary(client: &litefs_api::Client) -> Result<()> {
    let wait = async {
        while !client.info().await?.is_primary {
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    };
    match tokio::time::timeout(PROMOTION_LIMIT, wait).await {
        Ok(result) => result,
        Err(_) => Err(
            CommandError::new("the node accepted to become primary and did not")
                .hint("the logs of both nodes say why; GET /info tells who is primary"),
        ),
    }
}
