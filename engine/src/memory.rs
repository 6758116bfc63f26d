//! How much memory this process uses, as Linux counts it.

use std::fs;
use std::path::Path;

/// Resident memory now, and its highest point so far, in bytes; zeros where the system does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resident {
    pub now: u64,
    pub peak: u64,
}

impl Resident {
    /// Of the running process.
    pub fn read() -> Resident {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        Resident { now: kilobytes(&status, "VmRSS:"), peak: kilobytes(&status, "VmHWM:") }
    }
}

/// All memory of the machine, in bytes; 0 where the system does not say.
pub fn installed() -> u64 {
    kilobytes(&fs::read_to_string("/proc/meminfo").unwrap_or_default(), "MemTotal:")
}

/// What this process may use of it: a container, or a job of a cluster, has a limit of its own.
pub fn allowed() -> u64 {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limit = limit(&own, &|path| fs::read_to_string(Path::new("/sys/fs/cgroup").join(path)).ok());
    installed().min(limit.unwrap_or(u64::MAX))
}

/// The tightest limit of the control groups that a process is in; `own` lists them as the kernel does.
fn limit(own: &str, read: &dyn Fn(&Path) -> Option<String>) -> Option<u64> {
    let groups = own.lines().filter_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        match controllers {
            "" => Some((Path::new(path.trim_start_matches('/')).to_path_buf(), "memory.max")),
            "memory" => Some((Path::new("memory").join(path.trim_start_matches('/')), "memory.limit_in_bytes")),
            _ => None,
        }
    });
    // Inside a container its group may be shown as the root, so every folder above counts.
    let files = groups.flat_map(|(group, file)| group.ancestors().map(|folder| folder.join(file)).collect::<Vec<_>>());
    files.filter_map(|file| read(&file)?.trim().parse().ok()).min()
}

fn kilobytes(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).map_or(0, |kb| kb * 1024)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_memory() {
        let resident = Resident::read();
        assert!(resident.now > 0 && resident.peak >= resident.now / 2);
        assert!(installed() > resident.now);
        assert!(allowed() > 0 && allowed() <= installed());
    }

    #[test]
    fn the_tightest_limit_of_a_container_counts() {
        let file = |path: &Path| match path.to_str().unwrap() {
            "memory.max" => Some("max\n".to_string()),
            "jobs/memory.max" => Some("3000\n".to_string()),
            "jobs/mine/memory.max" => Some("5000\n".to_string()),
            "memory/docker/memory.limit_in_bytes" => Some("7000\n".to_string()),
            _ => None,
        };
        assert_eq!(limit("0::/jobs/mine\n", &file), Some(3000));
        assert_eq!(limit("12:cpu:/a\n5:memory:/docker/x\n0::/\n", &file), Some(7000));
        assert_eq!(limit("0::/\n", &file), None);
    }
}
