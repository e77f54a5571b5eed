//! Commands that disturb the network: `partition`, `heal`, `link`.

use std::time::Duration;

use anyhow::{Result, bail};
use litefs_dev::Station;
use litefs_dev::wire::{Direction, LinkPolicy, Rate, Share};

use super::Which;

/// Cut groups of nodes off from each other
///
/// Groups are separated by a slash: `partition n1,n2 / n3`. The lease server is `lease`; it, and every node in no group, still reaches
/// everybody. A single group is cut off from all others.
#[derive(clap::Args)]
pub(super) struct Partition {
    #[command(flatten)]
    which: Which,
    /// Nodes separated by commas, groups by `/`
    #[arg(required = true, value_name = "GROUPS")]
    groups: Vec<String>,
    /// Lose only what goes from a group to a later one
    #[arg(long)]
    one_way: bool,
}

impl Partition {
    pub(super) fn run(self) -> Result<()> {
        let groups = parse_groups(&self.groups.join(" "))?;
        self.which.open()?.partition(&groups, self.one_way)?;
        let names = groups
            .iter()
            .map(|group| group.iter().map(Station::to_string).collect::<Vec<_>>().join(","));
        println!(
            "partitioned: {}{}",
            names.collect::<Vec<_>>().join(" / "),
            if self.one_way { " (one way)" } else { "" }
        );
        Ok(())
    }
}

fn parse_groups(text: &str) -> Result<Vec<Vec<Station>>> {
    let words = |group: &str| -> Result<Vec<Station>> {
        let words = group.split([',', ' ']).filter(|word| !word.is_empty());
        words.map(|word| Ok(word.parse()?)).collect()
    };
    let groups: Vec<_> = text.split('/').map(words).collect::<Result<_>>()?;
    let mut all: Vec<_> = groups.iter().flatten().collect();
    all.sort();
    if let Some(pair) = all.windows(2).find(|pair| pair[0] == pair[1]) {
        bail!("{} is in two groups", pair[0]);
    }
    if groups.iter().any(Vec::is_empty) {
        bail!("a group is empty: write, for example, partition n1,n2 / n3");
    }
    Ok(groups)
}

/// End partitions and all other faults of the network
#[derive(clap::Args)]
pub(super) struct Heal {
    #[command(flatten)]
    which: Which,
    /// Keep what `link` has set, end partitions only
    #[arg(long)]
    partitions: bool,
}

impl Heal {
    pub(super) fn run(self) -> Result<()> {
        self.which.open()?.heal(!self.partitions)?;
        println!("healed");
        Ok(())
    }
}

/// Set the quality of the link between two nodes; what is not given is set to none
#[derive(clap::Args)]
pub(super) struct Link {
    #[command(flatten)]
    which: Which,
    /// n1, n2, … or lease
    a: Station,
    b: Station,
    /// Time under way, each way
    #[arg(long, default_value = "0s", value_parser = humantime::parse_duration)]
    delay: Duration,
    /// The delay varies by so much either way
    #[arg(long, default_value = "0s", value_parser = humantime::parse_duration)]
    jitter: Duration,
    /// Share of frames that are lost, such as 1%
    #[arg(long, default_value = "0%")]
    loss: Share,
    /// Share of frames that arrive twice
    #[arg(long, default_value = "0%")]
    duplicate: Share,
    /// Share of frames that later ones overtake
    #[arg(long, default_value = "0%")]
    reorder: Share,
    /// Bandwidth each way, such as 10mbit
    #[arg(long)]
    rate: Option<Rate>,
    /// Only from A to B
    #[arg(long)]
    one_way: bool,
}

impl Link {
    pub(super) fn run(self) -> Result<()> {
        let policy = LinkPolicy {
            delay: self.delay,
            jitter: self.jitter,
            loss: self.loss,
            duplicate: self.duplicate,
            reorder: self.reorder,
            rate: self.rate,
        };
        if self.a == self.b {
            bail!("a link has two ends, not {} twice", self.a);
        }
        let direction = Direction::new(self.a, self.b);
        let directions = if self.one_way {
            vec![direction]
        } else {
            vec![direction, direction.reversed()]
        };
        self.which.open()?.link(directions, policy)?;
        println!(
            "{} {} {}: {policy}",
            self.a,
            if self.one_way { "->" } else { "<->" },
            self.b
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_read_with_and_without_blanks() {
        let n = |number| Station::node(number).unwrap();
        let expected = vec![vec![n(1), n(2)], vec![n(3), Station::LEASE]];
        for text in ["n1,n2 / n3,lease", "n1,n2/n3,lease", "1, 2 / 3 lease"] {
            assert_eq!(parse_groups(text).unwrap(), expected, "{text:?}");
        }
        for wrong in ["", "n1 /", "n1,n1 / n2", "n1 / n1", "x / n1"] {
            assert!(parse_groups(wrong).is_err(), "{wrong:?}");
        }
    }
}
