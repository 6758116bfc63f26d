//! `pipe doctor`: what this machine has, and what is wrong with it.

use std::path::Path;
use std::process::{Command, Stdio};

use clap::Args;
use serde::Serialize;

use crate::args::StoreArgs;
use crate::failure::{Failure, Kind, Outcome};
use crate::report::format::bytes;
use crate::report::style::{BAD, GOOD, WARN, paint};
use crate::{job, open, report};

/// Say what this machine has (cores, SIMD, memory, GPU, libtorch, disk) and what is wrong with it.
#[derive(Args, Debug)]
pub struct DoctorArgs {
    /// One JSON object instead of a list.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreArgs,
}

/// How one finding bears on running recipes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Good,
    Weak,
    Bad,
}

/// One thing looked at.
#[derive(Debug, Serialize)]
struct Finding {
    what: &'static str,
    verdict: Verdict,
    found: String,
    remedy: Option<String>,
}

const LEAST_MEMORY: u64 = 2_000_000_000;
const LEAST_DISK: u64 = 5_000_000_000;

pub fn doctor(args: &DoctorArgs) -> Outcome {
    let here = std::env::current_dir().unwrap_or_default();
    let store = open::store_folder(&args.store, &here);
    let findings = [cores(), simd(), memory(), gpu(), worker(), disk(&store)];
    if args.json {
        report::json(&serde_json::json!({ "findings": findings }));
    } else {
        findings.iter().for_each(|finding| report::print(&line(finding)));
    }
    match findings.iter().any(|finding| finding.verdict == Verdict::Bad) {
        true => Err(Failure::told(Kind::Stage)),
        false => Ok(()),
    }
}

fn line(finding: &Finding) -> String {
    let mark = match finding.verdict {
        Verdict::Good => paint(GOOD, "ok  "),
        Verdict::Weak => paint(WARN, "weak"),
        Verdict::Bad => paint(BAD, "bad "),
    };
    let remedy = finding.remedy.as_ref().map(|remedy| format!("\n                {remedy}")).unwrap_or_default();
    format!("{mark}  {:<8}  {}{remedy}", finding.what, finding.found)
}

fn finding(what: &'static str, found: String) -> Finding {
    Finding { what, verdict: Verdict::Good, found, remedy: None }
}

fn cores() -> Finding {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    finding("cores", cores.to_string())
}

#[cfg(target_arch = "x86_64")]
fn simd() -> Finding {
    let features = [
        ("avx2", std::is_x86_feature_detected!("avx2")),
        ("fma", std::is_x86_feature_detected!("fma")),
        ("avx512f", std::is_x86_feature_detected!("avx512f")),
        ("avx512bf16", std::is_x86_feature_detected!("avx512bf16")),
        ("amx-bf16", read("/proc/cpuinfo").contains("amx_bf16")),
    ];
    let have: Vec<&str> = features.iter().filter(|(_, has)| *has).map(|(name, _)| *name).collect();
    let mut found = finding("SIMD", if have.is_empty() { "none of AVX2 or newer".to_string() } else { have.join(" ") });
    if !features[0].1 {
        found.verdict = Verdict::Weak;
        found.remedy = Some("training works, several times slower than with AVX2".to_string());
    }
    found
}

#[cfg(not(target_arch = "x86_64"))]
fn simd() -> Finding {
    finding("SIMD", format!("{} baseline", std::env::consts::ARCH))
}

fn memory() -> Finding {
    let info = read("/proc/meminfo");
    let kilobytes = |name: &str| -> Option<u64> {
        let line = info.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    let (Some(total), Some(free)) = (kilobytes("MemTotal:"), kilobytes("MemAvailable:")) else {
        return finding("memory", "unknown here".to_string());
    };
    let (total, free) = (total * 1024, free * 1024);
    let mut found = finding("memory", format!("{} free of {}", bytes(free), bytes(total)));
    if free < LEAST_MEMORY {
        found.verdict = Verdict::Weak;
        found.remedy = Some(format!("the quickstart wants {}; close other programs", bytes(LEAST_MEMORY)));
    }
    found
}

fn gpu() -> Finding {
    let query = ["--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"];
    let output = Command::new("nvidia-smi").args(query).stdin(Stdio::null()).stderr(Stdio::null()).output();
    match output {
        Ok(output) if output.status.success() && !output.stdout.is_empty() => {
            let text = String::from_utf8_lossy(&output.stdout).trim().lines().collect::<Vec<_>>().join("; ");
            finding("GPU", text)
        }
        _ => finding("GPU", "none; everything runs on the CPU".to_string()),
    }
}

/// The worker must start: that proves libtorch is found too.
fn worker() -> Finding {
    let path = match job::worker() {
        Ok(path) => path,
        Err(_) => {
            let mut found = finding("libtorch", "the worker pipe-torch is not beside pipe".to_string());
            found.verdict = Verdict::Bad;
            found.remedy = Some("build it with: make quickstart; or name it in PIPE_TORCH".to_string());
            return found;
        }
    };
    // Without a job it ends by itself; the dynamic loader's complaints and crashes end it in other ways.
    let output = Command::new(&path).stdin(Stdio::null()).output();
    match output {
        Ok(output) if output.status.code().is_some_and(|code| code != 127) => {
            finding("libtorch", format!("the worker starts ({})", path.display()))
        }
        Ok(output) => broken(&path, String::from_utf8_lossy(&output.stderr).trim()),
        Err(e) => broken(&path, &e.to_string()),
    }
}

fn broken(path: &Path, why: &str) -> Finding {
    let why = why.lines().next().unwrap_or("it says nothing");
    let remedy = Some("make quickstart fetches libtorch again; LIBTORCH names one you have".to_string());
    Finding {
        what: "libtorch",
        verdict: Verdict::Bad,
        found: format!("{} does not start: {why}", path.display()),
        remedy,
    }
}

fn disk(store: &Path) -> Finding {
    let existing = store.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
    let output = Command::new("df").arg("-Pk").arg(existing).stdin(Stdio::null()).stderr(Stdio::null()).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let free = text.lines().nth(1).and_then(|line| line.split_whitespace().nth(3)?.parse::<u64>().ok());
    let Some(free) = free.map(|kilobytes| kilobytes * 1024) else {
        return finding("disk", format!("unknown for {}", existing.display()));
    };
    let mut found = finding("disk", format!("{} free for {}", bytes(free), store.display()));
    if free < LEAST_DISK {
        found.verdict = Verdict::Weak;
        found.remedy = Some("free some with: pipe cache gc; or set PIPE_CACHE_DIR to a larger disk".to_string());
    }
    found
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}
