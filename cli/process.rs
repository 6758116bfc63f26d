//! The process itself: how its memory is handed out.

#![allow(unsafe_code)]

/// Sets the process up; call once, before anything else in `main`.
///
/// glibc gives threads heaps of their own, eight for each core, and what one has freed no other can use. One for each core
/// is as fast, and preparing 55,000 rows takes a third less memory.
pub fn prepare() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        // SAFETY: a plain libc call, before any thread starts.
        unsafe { libc::mallopt(libc::M_ARENA_MAX, i32::try_from(cores).unwrap_or(i32::MAX)) };
    }
}

/// Gives what was freed back to the system: a stage's buffers must not count on top of those of the next one.
pub fn give_memory_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: a plain libc call that any thread may make at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}
