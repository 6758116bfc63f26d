//! Finds the worker `pipe-torch`, which owns libtorch.

use std::path::PathBuf;

use crate::failure::Failure;

const NAME: &str = "pipe-torch";

/// PIPE_TORCH, else beside this executable, else on PATH.
pub fn worker() -> Result<PathBuf, Failure> {
    if let Some(named) = std::env::var_os("PIPE_TORCH").filter(|value| !value.is_empty()) {
        let path = PathBuf::from(named);
        return if path.is_file() {
            Ok(path)
        } else {
            Err(Failure::invalid(format!("PIPE_TORCH names {}, which is no file", path.display())))
        };
    }
    let beside =
        std::env::current_exe().ok().and_then(|exe| exe.canonicalize().ok()).map(|exe| exe.with_file_name(NAME));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|folder| folder.join(NAME));
    beside.into_iter().chain(on_path).find(|candidate| candidate.is_file()).ok_or_else(|| {
        Failure::invalid("the worker pipe-torch is not beside pipe, and this needs it")
            .hint("build it with: make quickstart; or name it in PIPE_TORCH")
    })
}
