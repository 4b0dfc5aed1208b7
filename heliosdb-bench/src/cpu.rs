//! What processes have used, from /proc.
//!
//! `utime + stime` of a process comes in ticks of a hundredth of a second, but isn't sampled: the kernel scales it to
//! the scheduler's nanosecond count, so the error of a difference is at most a tick a process, however short its slices.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::Serialize;

/// All processes at one moment.
#[derive(Debug, Clone)]
pub(crate) struct ProcessTable(HashMap<u32, Process>);

impl ProcessTable {
    pub(crate) fn read() -> anyhow::Result<Self> {
        let folder = std::fs::read_dir("/proc").context("cannot read /proc")?;
        let pids = folder
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        Ok(Self(
            pids.filter_map(|pid| Some((pid, Process::read(pid)?)))
                .collect(),
        ))
    }

    /// The table once the families of `roots` have come to rest: nobody was born or died between two readings, and
    /// nobody is dead but not yet waited for. A process that is reaped between the reading of its own line and that
    /// of its parent's would be counted twice, and PostgreSQL's backends end a moment after their clients do.
    pub(crate) fn read_at_rest(roots: &[u32]) -> anyhow::Result<Self> {
        let deadline = Instant::now() + REST_TIMEOUT;
        let members = |table: &Self| {
            let family = roots.iter().flat_map(|&root| table.tree(root));
            family
                .map(|process| (process.pid, process.is_dead))
                .collect::<BTreeMap<_, _>>()
        };
        let mut before = Self::read()?;
        loop {
            std::thread::sleep(REST_INTERVAL);
            let now = Self::read()?;
            let is_at_rest =
                members(&before) == members(&now) && !members(&now).values().any(|&dead| dead);
            if is_at_rest || Instant::now() > deadline {
                return Ok(now);
            }
            before = now;
        }
    }

    /// A process and its descendants.
    pub(crate) fn tree(&self, root: u32) -> Vec<Process> {
        let mut family: Vec<Process> = self.0.get(&root).copied().into_iter().collect();
        let mut next = 0;
        while let Some(&parent) = family.get(next) {
            family.extend(
                self.0
                    .values()
                    .filter(|process| process.parent == parent.pid),
            );
            next += 1;
        }
        family
    }

    /// The CPU time, in ticks, that a process and its descendants have used, those that have ended included: theirs
    /// was added to their parent's when it waited for them.
    pub(crate) fn ticks(&self, root: u32) -> u64 {
        self.tree(root)
            .iter()
            .map(|process| process.own_ticks + process.reaped_ticks)
            .sum()
    }
}

/// One process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Process {
    pid: u32,
    parent: u32,
    /// Ticks since boot. With the id it names a process for good: ids are used again, this pair is not.
    started: u64,
    /// Ended, and not yet waited for by its parent.
    is_dead: bool,
    own_ticks: u64,
    /// Of the children that it has waited for.
    reaped_ticks: u64,
}

impl Process {
    fn read(pid: u32) -> Option<Self> {
        Self::parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// Reads a line of /proc/PID/stat. The second field is the program's name in parentheses, which may hold spaces
    /// and parentheses of its own, so the others are counted from the last closing one.
    fn parse(line: &str) -> Option<Self> {
        let (pid, rest) = line.split_once(' ')?;
        let fields: Vec<&str> = rest.rsplit_once(')')?.1.split_whitespace().collect();
        let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
        Some(Self {
            pid: pid.parse().ok()?,
            parent: fields.get(1)?.parse().ok()?,
            started: number(19)?,
            is_dead: matches!(*fields.first()?, "Z" | "X"),
            own_ticks: number(11)? + number(12)?,
            reaped_ticks: number(13)? + number(14)?,
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether this very process still runs.
    pub(crate) fn is_running(&self) -> bool {
        Self::read(self.pid).is_some_and(|now| now.started == self.started && !now.is_dead)
    }
}

/// The memory of a family of processes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Memory {
    /// Resident, added up: what several processes share counts once for each.
    pub(crate) rss_kib: u64,
    /// Resident, with what is shared divided among those that share it.
    pub(crate) pss_kib: u64,
}

impl Memory {
    pub(crate) fn of(family: &[Process]) -> anyhow::Result<Self> {
        let mut sum = Self::default();
        for process in family {
            let path = format!("/proc/{}/smaps_rollup", process.pid);
            let text =
                std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
            sum.rss_kib += kib(&text, "Rss:").with_context(|| format!("no Rss in {path}"))?;
            sum.pss_kib += kib(&text, "Pss:").with_context(|| format!("no Pss in {path}"))?;
        }
        Ok(sum)
    }
}

fn kib(smaps: &str, name: &str) -> Option<u64> {
    let line = smaps.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// The CPU time, in ticks, that the whole machine has been busy for.
pub(crate) fn machine_busy_ticks() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("cpu "))
        .context("no line `cpu` in /proc/stat")?;
    // user nice system idle iowait irq softirq steal; the guests' that follow are in user and nice already.
    let fields = line
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<Vec<u64>, _>>()?;
    let busy = [0, 1, 2, 5, 6]
        .iter()
        .filter_map(|&index| fields.get(index));
    Ok(busy.sum())
}

/// The time of some ticks.
pub(crate) fn seconds(ticks: u64) -> f64 {
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}

const REST_INTERVAL: Duration = Duration::from_millis(20);
const REST_TIMEOUT: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    const LINE: &str =
        "4242 (a (b) c) S 17 4242 4242 0 -1 4194560 1 2 3 4 100 20 3000 400 20 0 1 0 98765 1 2";

    #[test]
    fn a_name_with_parentheses_and_spaces_shifts_no_field() {
        let process = Process::parse(LINE).expect("a process");
        assert_eq!(
            (process.pid, process.parent, process.started),
            (4242, 17, 98765)
        );
        assert_eq!((process.own_ticks, process.reaped_ticks), (120, 3400));
        assert!(!process.is_dead);
    }

    #[test]
    fn a_tree_has_the_grandchildren_and_not_the_neighbours() {
        let process = |pid, parent, own_ticks, reaped_ticks| {
            (
                pid,
                Process {
                    pid,
                    parent,
                    started: 0,
                    is_dead: false,
                    own_ticks,
                    reaped_ticks,
                },
            )
        };
        let table = ProcessTable(
            [
                process(1, 0, 5, 5),
                process(2, 1, 10, 1),
                process(3, 2, 20, 2),
                process(4, 9, 99, 99),
            ]
            .into(),
        );
        assert_eq!(table.ticks(1), 43);
        assert_eq!(table.ticks(2), 33);
        assert_eq!(table.ticks(5), 0);
    }

    #[test]
    fn what_an_ended_child_used_still_counts() {
        // The shell's child works for a good while and ends; the shell itself does next to nothing.
        let mut shell = Command::new("sh")
            .args([
                "-c",
                "sh -c 'i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done'; echo; exec sleep 1000",
            ])
            .stdout(Stdio::piped())
            .spawn()
            .expect("a shell");
        let mut output = shell.stdout.take().expect("piped");
        std::io::Read::read_exact(&mut output, &mut [0]).expect("the child has ended");
        let table = ProcessTable::read_at_rest(&[shell.id()]);
        shell.kill().expect("not waited for");
        shell.wait().expect("ends");
        let table = table.expect("/proc");
        let [process] = table.tree(shell.id())[..] else {
            panic!("one process")
        };
        assert!(process.own_ticks < 5, "{process:?}");
        assert!(table.ticks(process.pid) >= 5, "{process:?}");
    }

    #[test]
    fn memory_is_that_of_the_process() {
        let myself = [Process::read(std::process::id()).expect("ourselves")];
        let before = Memory::of(&myself).expect("readable");
        let block = std::hint::black_box(vec![1_u8; 64 << 20]);
        let after = Memory::of(&myself).expect("readable");
        drop(block);
        let grown = after.rss_kib.saturating_sub(before.rss_kib);
        assert!((60 << 10..80 << 10).contains(&grown), "{grown} KiB");
        assert!(after.pss_kib <= after.rss_kib);
    }
}
