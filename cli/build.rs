//! Writes the index of the recipe gallery, so that every file in `recipes/` is embedded without being named twice.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let folder = root.join("recipes");
    let mut files: Vec<PathBuf> = match fs::read_dir(&folder) {
        Ok(entries) => {
            entries.filter_map(Result::ok).map(|entry| entry.path()).filter(|path| is_recipe(path)).collect()
        }
        Err(_) => Vec::new(),
    };
    files.sort();
    let mut index = String::from("&[\n");
    for file in &files {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let _ = writeln!(index, "    ({name:?}, include_str!({:?})),", file.display().to_string());
    }
    index.push_str("]\n");
    println!("cargo::rerun-if-changed={}", folder.display());
    fs::write(PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("gallery.rs"), index)
}

fn is_recipe(path: &std::path::Path) -> bool {
    path.extension().is_some_and(|extension| extension == "yml" || extension == "yaml")
}
