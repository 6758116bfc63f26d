//! The process and its machine: allocator, threads, CUDA if present, memory high-water mark.

#![allow(unsafe_code)]

use std::sync::atomic::{AtomicUsize, Ordering};

/// Sets the process up; call once, before anything else in `main`.
///
/// glibc returns big blocks to the kernel at once and faults every page again at the next allocation; keeping them
/// halves training time. The price is that resident memory stays at its high-water mark.
pub fn prepare_process() {
    // SAFETY: plain libc calls with constant arguments, before any thread starts.
    unsafe {
        #[cfg(all(target_os = "linux", target_env = "gnu"))]
        {
            libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 30);
            libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
            // Heaps of other threads are small maps that come and go; all share the one that keeps its pages.
            libc::mallopt(libc::M_ARENA_MAX, 1);
        }
        #[cfg(target_os = "linux")]
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        // The parent shares the terminal's process group and decides what an interrupt means.
        libc::signal(libc::SIGINT, libc::SIG_IGN);
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
    }
}

unsafe extern "C" {
    fn pipe_reuse_memory();
    fn pipe_release_memory();
}

/// Lets tensors reuse each other's memory; call before the first tensor. See csrc/allocator.cpp for why.
pub fn reuse_memory() {
    // SAFETY: registers an allocator that is never destroyed.
    unsafe { pipe_reuse_memory() }
}

/// Gives memory that no tensor holds back to the kernel: after loading, after an evaluation.
pub fn release_memory() {
    // SAFETY: touches free blocks only, under the allocator's lock; malloc_trim is safe at any time.
    unsafe {
        pipe_release_memory();
        #[cfg(all(target_os = "linux", target_env = "gnu"))]
        libc::malloc_trim(0);
    }
}

/// Gives back code that only a first step needed; does nothing from the second call on.
pub fn release_code_of_the_first_step() {
    static DONE: std::sync::Once = std::sync::Once::new();
    DONE.call_once(pipe_files::release_code);
}

/// Loads libtorch's CUDA half when it lies beside the CPU half, so one binary serves both kinds of machine.
pub fn load_cuda() {
    // SAFETY: a constant, terminated name; failure just leaves the CPU.
    unsafe {
        libc::dlopen(c"libtorch_cuda.so".as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL);
    }
}

static THREADS: AtomicUsize = AtomicUsize::new(0);

/// Threads for libtorch and rayon; 0 means all cores.
pub fn set_threads(threads: usize) {
    let threads = if threads == 0 { cores() } else { threads };
    THREADS.store(threads, Ordering::Relaxed);
    tch::set_num_threads(threads as i32);
    // Fails only when a pool exists already, which then serves as well.
    let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
}

/// What [`set_threads`] was told, or the cores there are.
pub fn threads() -> usize {
    match THREADS.load(Ordering::Relaxed) {
        0 => cores(),
        told => told,
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// This process's high-water mark of resident memory, in bytes; 0 where the system does not tell.
pub fn peak_rss() -> u64 {
    status_bytes("VmHWM:")
}

/// This process's resident memory now, in bytes; 0 where the system does not tell.
pub fn rss() -> u64 {
    status_bytes("VmRSS:")
}

fn status_bytes(field: &str) -> u64 {
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else {
        return 0;
    };
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let kib = line.and_then(|rest| rest.split_whitespace().next()).and_then(|n| n.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
