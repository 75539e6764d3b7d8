//! The table, and the machine on which it was made.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::time::Instant;

/// How large everything is.
#[derive(Clone, Copy)]
pub struct Scale {
    /// Only to show that it runs.
    pub short: bool,
}

impl Scale {
    pub const fn of(self, full: usize, short: usize) -> usize {
        if self.short { short } else { full }
    }
}

/// Where a figure is to get to, and so how it is compared.
#[derive(Clone, Copy)]
pub enum Goal {
    /// At most so many times the bare limit.
    Times(f64),
    /// At least this share of it, in percent.
    Share(f64),
    /// At most so much more, in the figure's unit.
    More(f64),
    /// At most so many times, or so much more.
    TimesOrMore(f64, f64),
    /// Below this.
    Below(f64),
    /// Shown beside another figure.
    Shown,
}

impl Goal {
    fn text(self, unit: &str) -> String {
        match self {
            Self::Times(n) => format!("at most {n} ×"),
            Self::Share(n) => format!("at least {n} %"),
            Self::More(n) => format!("at most {n} {unit} more"),
            Self::TimesOrMore(n, m) => format!("at most {n} ×, or {m} {unit} more"),
            Self::Below(n) => format!("below {n} {unit}"),
            Self::Shown => String::new(),
        }
    }

    fn relation(self, unit: &str, ours: f64, bare: Option<f64>) -> String {
        let Some(bare) = bare else { return String::new() };
        match self {
            Self::Share(_) => format!("{:.0} %", 100.0 * ours / bare),
            Self::More(_) => format!("{:+.1} {unit}", ours - bare),
            Self::TimesOrMore(..) => format!("{:.2} ×, {:+.0} {unit}", ours / bare, ours - bare),
            Self::Times(_) | Self::Below(_) | Self::Shown => format!("{:.2} ×", ours / bare),
        }
    }
}

/// Prints rows as they come.
#[derive(Default)]
pub struct Table {
    begun: bool,
}

impl Table {
    /// One figure.
    pub fn row(&mut self, figure: &str, unit: &str, ours: f64, bare: Option<f64>, goal: Goal) {
        if !std::mem::replace(&mut self.begun, true) {
            println!("{:<64} {:>11} {:>11} {:>18}  goal", "figure", "ostler", "bare limit", "ratio");
        }
        let number = |n: f64| if n.abs() >= 1000.0 { format!("{n:.0}") } else { format!("{n:.1}") };
        let named = format!("{figure}, {unit}");
        let bare_text = bare.map(number).unwrap_or_default();
        println!(
            "{named:<64} {:>11} {bare_text:>11} {:>18}  {}",
            number(ours),
            goal.relation(unit, ours, bare),
            goal.text(unit)
        );
        let _ = std::io::stdout().flush();
    }

    /// What is to be known beside a figure.
    pub fn note(&mut self, text: &str) {
        println!("  {text}");
        let _ = std::io::stdout().flush();
    }
}

/// The pair with the median ratio.
pub fn median(mut pairs: Vec<(f64, f64)>) -> (f64, f64) {
    pairs.sort_by(|a, b| (a.0 / a.1).total_cmp(&(b.0 / b.1)));
    pairs[pairs.len() / 2]
}

/// The value below which `share` of all are.
pub fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = (values.len() as f64 * share) as usize;
    values[at.min(values.len() - 1)]
}

/// Says on what the figures were made.
pub fn machine() {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu.lines().find_map(|l| l.strip_prefix("model name")).unwrap_or("\t: unknown");
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = read("/proc/meminfo");
    let gib = memory
        .lines()
        .find_map(|l| l.strip_prefix("MemTotal:"))
        .and_then(|l| l.trim().trim_end_matches(" kB").parse::<f64>().ok())
        .map_or(0.0, |kib| kib / (1 << 20) as f64);
    let dir = std::env::temp_dir();
    let mut text = String::new();
    let _ = write!(
        text,
        "ostler {}{}, {}\n{cores} cores of {}, {gib:.0} GiB, Linux {}, files below {} ({}), write and fdatasync of 4 KiB: {:.0} µs",
        env!("CARGO_PKG_VERSION"),
        commit(),
        date(),
        model.trim_start_matches(['\t', ' ', ':']),
        read("/proc/sys/kernel/osrelease").trim(),
        dir.display(),
        file_system(&dir),
        sync_cost(&dir),
    );
    println!("{text}\n");
}

fn commit() -> String {
    let asked = std::process::Command::new("git")
        .args(["describe", "--always", "--dirty"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stderr(std::process::Stdio::null())
        .output();
    match asked {
        Ok(out) if out.status.success() => format!(" ({})", String::from_utf8_lossy(&out.stdout).trim()),
        _ => String::new(),
    }
}

fn date() -> String {
    jiff::Zoned::now().strftime("%Y-%m-%d %H:%M %Z").to_string()
}

/// The kind of the file system that holds a directory: the longest mount point that it is below.
fn file_system(dir: &Path) -> String {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    mounts
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            let (point, kind) = (words.nth(1)?, words.next()?);
            dir.starts_with(point).then(|| (point.len(), kind.to_owned()))
        })
        .max()
        .map_or_else(|| "unknown".to_owned(), |(_, kind)| kind)
}

/// The median of a write that waits for the disk, in microseconds: what every durable commit contains.
fn sync_cost(dir: &Path) -> f64 {
    let mut file = tempfile::tempfile_in(dir).expect("a file");
    let mut times: Vec<f64> = (0..101)
        .map(|_| {
            let began = Instant::now();
            file.write_all(&[7; 4096]).and_then(|()| file.sync_data()).expect("written");
            began.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    quantile(&mut times, 0.5)
}
