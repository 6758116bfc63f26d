//! How much memory this process uses, as Linux counts it.

use std::fs;

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

/// All memory of the machine, in bytes.
pub fn installed() -> u64 {
    kilobytes(&fs::read_to_string("/proc/meminfo").unwrap_or_default(), "MemTotal:")
}

fn kilobytes(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).map_or(0, |kb| kb * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_memory() {
        let resident = Resident::read();
        assert!(resident.now > 0 && resident.peak >= resident.now / 2);
        assert!(installed() > resident.now);
    }
}
