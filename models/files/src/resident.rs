//! Pages of this program's own code that only its start needed.
//!
//! A worker touches a hundred megabytes of libtorch while it registers operators and never again; until the kernel is short
//! of memory they count as the process's.

#![allow(unsafe_code)]

/// Lets go of the pages of code and constants of this program and its libraries; whichever is needed again comes back from
/// the page cache. Only segments that are neither writable nor changed by the loader are touched.
pub fn release_code() {
    #[cfg(target_os = "linux")]
    if let Ok(maps) = std::fs::read_to_string("/proc/self/smaps") {
        let mut unchanged = unchanged_code(&maps);
        // SAFETY: the list outlives the call, which is the only one to use it.
        unsafe { libc::dl_iterate_phdr(Some(release_object), (&raw mut unchanged).cast()) };
    }
}

/// Releases what of one loaded object is in the list at `unchanged`. Other threads map and unmap memory meanwhile, so an
/// address of the list may be somebody's data by now; that of an object cannot, for none is unloaded while they are gone through.
#[cfg(target_os = "linux")]
unsafe extern "C" fn release_object(
    object: *mut libc::dl_phdr_info,
    _: libc::size_t,
    unchanged: *mut libc::c_void,
) -> libc::c_int {
    // SAFETY: the loader gives one of its objects with all of its headers; the list is what `release_code` passed.
    let (base, headers, unchanged) = unsafe {
        let object = &*object;
        let headers = std::slice::from_raw_parts(object.dlpi_phdr, object.dlpi_phnum.into());
        (object.dlpi_addr as usize, headers, &*unchanged.cast::<Vec<(usize, usize)>>())
    };
    let segments = headers.iter().filter(|header| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0);
    for segment in segments {
        let start = base + segment.p_vaddr as usize;
        for (start, length) in inside(unchanged, start, start + segment.p_memsz as usize) {
            // SAFETY: a read-only private mapping of a file of which no page is this process's own: each reads the same
            // bytes when it is touched again.
            unsafe { libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED) };
        }
    }
    0
}

/// The mappings that lie within a segment, whose ends are rounded to pages when it is loaded.
#[cfg(target_os = "linux")]
fn inside(mappings: &[(usize, usize)], start: usize, end: usize) -> impl Iterator<Item = (usize, usize)> {
    // SAFETY: asks for a constant of the system.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
    let (first, last) = (start / page * page, end.next_multiple_of(page));
    mappings.iter().copied().filter(move |&(from, length)| first <= from && from + length <= last)
}

/// Start and length of the read-only private mappings of files that have no page of their own.
#[cfg(target_os = "linux")]
fn unchanged_code(maps: &str) -> Vec<(usize, usize)> {
    let (mut found, mut current) = (Vec::new(), None);
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let (Some(first), Some(second)) = (words.next(), words.next()) else { continue };
        if let Some((start, end)) = first.split_once('-') {
            let bounds = usize::from_str_radix(start, 16).ok().zip(usize::from_str_radix(end, 16).ok());
            let of_code = matches!(second, "r-xp" | "r--p") && words.nth(3).is_some_and(|path| path.starts_with('/'));
            current = bounds.filter(|_| of_code).map(|(start, end)| (start, end - start));
        } else if first == "Anonymous:" && second == "0" {
            found.extend(current.take());
        }
    }
    found
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    const MAPS: &str = "\
7f0000000000-7f0000003000 r-xp 00001000 fe:00 7   /usr/lib/libone.so
Rss:                  12 kB
Anonymous:             0 kB
7f0000003000-7f0000004000 r--p 00004000 fe:00 7   /usr/lib/libone.so
Anonymous:             4 kB
7f0000004000-7f0000005000 rw-p 00005000 fe:00 7   /usr/lib/libone.so
Anonymous:             0 kB
7f0000008000-7f0000009000 r-xp 00000000 00:00 0
Anonymous:             0 kB
7f0000009000-7f000000a000 r-xp 00000000 00:00 0   [vdso]
Anonymous:             0 kB
";

    #[test]
    fn only_unchanged_pages_of_files_go() {
        assert_eq!(unchanged_code(MAPS), [(0x7f00_0000_0000, 0x3000)]);
    }

    #[test]
    fn mappings_that_are_no_segment_stay() {
        let mappings = [(0x1000_0000, 0x10000), (0x2000_0000, 0x10000), (0x2001_0000, 0x10000)];
        // A segment begins and ends within its first and last page.
        let found: Vec<_> = inside(&mappings, 0x2000_0040, 0x2000_fff0).collect();
        assert_eq!(found, [(0x2000_0000, 0x10000)]);
        assert_eq!(inside(&mappings, 0x2000_0040, 0x2000_0080).count(), 0, "a mapping larger than the segment");
    }

    #[test]
    fn the_program_goes_on_afterwards() {
        release_code();
        assert_eq!(format!("{:.3}", 2f64.sqrt().sin()), "0.988");
    }
}
