//! The only look at the clock: `strftime_now`, which templates use for today's date.

/// The local time, as C's `strftime` writes it.
pub fn strftime(format: &str) -> Result<String, String> {
    jiff::fmt::strtime::format(format, &jiff::Zoned::now()).map_err(|e| format!("strftime_now({format:?}): {e}"))
}
