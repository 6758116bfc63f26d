//! Which files a dataset entry reads, and which rows of them: its path, `data_files`, `name` and `split`, resolved.
//!
//! Looks at names, and at the small files that describe a dataset's folder; never at rows, and never at the network.

use std::fs;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde_json::Value;

use super::layout::{Card, Layout, matching};
use super::slice::{self, Slice};
use super::source::FileFormat;
use crate::fetch::listed_below;
use crate::project::Project;
use crate::recipe::dataset::{Dataset, Role, is_builder};

/// What a dataset reads, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Every file once.
    pub sources: Vec<PathBuf>,
    /// Slices with the sources of their splits.
    pub parts: Vec<(Slice, Vec<usize>)>,
    /// Files beside them that are not read.
    pub left_out: Vec<String>,
}

/// Why a dataset's keys lead to no rows.
#[derive(Debug, PartialEq, Eq)]
pub struct Wrong {
    /// The key of the entry that is wrong.
    pub key: &'static str,
    pub message: String,
    pub suggestion: Option<String>,
}

/// Folders are followed this deep.
const DEEPEST: usize = 12;
/// The split of a file that stands alone.
const TRAIN: &str = "train";

/// What the entry reads. A path that is not there is read as it is written, for the run to say that it is missing.
pub fn reading(project: &Project, dataset: &Dataset, role: Role) -> Result<Reading, Wrong> {
    let path = dataset.path.clone().unwrap_or_default();
    let base = project.rows(&path, dataset.revision.as_deref());
    if project.is_unfetched(&path, dataset.revision.as_deref()) {
        return unknown(base, dataset);
    }
    let named = dataset.data_files.as_ref().map(|files| files.0.clone()).unwrap_or_default();
    let (root, layout) = if is_builder(&path) {
        let files = self::named(project, &named)?;
        (PathBuf::new(), Layout { splits: one_split(files), left_out: Vec::new() })
    } else if base.is_dir() {
        let layout = match named.is_empty() {
            true => folder(&base, dataset.name.as_deref())?,
            false => Layout::of_patterns(&names_below(&base), &named).map_err(|why| wrong("data_files", why))?,
        };
        (base.clone(), layout)
    } else if stands_for_several(&path, &base) {
        (PathBuf::new(), pattern(&base)?)
    } else {
        (PathBuf::new(), Layout { splits: one_split(vec![base.display().to_string()]), left_out: Vec::new() })
    };
    let slices = slices(dataset, role, &layout)?;
    let mut reading = Reading { left_out: layout.left_out, ..Reading::default() };
    for slice in slices {
        let mut places = Vec::new();
        for file in layout.splits.get(&slice.split).into_iter().flatten() {
            let path = root.join(file);
            let at = reading.sources.iter().position(|known| *known == path).unwrap_or_else(|| {
                reading.sources.push(path);
                reading.sources.len() - 1
            });
            places.push(at);
        }
        reading.parts.push((slice, places));
    }
    if reading.sources.is_empty() {
        let why = format!("there is no data file in `{}`", base.display());
        return Err(wrong("path", why));
    }
    Ok(reading)
}

/// What lies at an address where nobody has looked yet stands for itself.
fn unknown(base: PathBuf, dataset: &Dataset) -> Result<Reading, Wrong> {
    let slices = match dataset.split.as_deref().filter(|text| !text.trim().is_empty()) {
        Some(written) => slice::parse(written).map_err(|why| wrong("split", why))?,
        None => vec![Slice::whole(TRAIN)],
    };
    let parts = slices.into_iter().map(|slice| (slice, vec![0])).collect();
    Ok(Reading { sources: vec![base], parts, left_out: Vec::new() })
}

/// The slices that `split` names; without it the one that the entry's place in the recipe means.
fn slices(dataset: &Dataset, role: Role, layout: &Layout) -> Result<Vec<Slice>, Wrong> {
    let has = |split: &str| layout.splits.contains_key(split);
    let Some(written) = dataset.split.as_deref().filter(|text| !text.trim().is_empty()) else {
        let usual: &[&str] = match role {
            Role::Train => &[TRAIN],
            Role::Test => &["test", "validation"],
        };
        let only = match role {
            Role::Test if layout.splits.len() == 1 => layout.splits.keys().next().map(String::as_str),
            _ => None,
        };
        return match usual.iter().copied().find(|split| has(split)).or(only) {
            Some(split) => Ok(vec![Slice::whole(split)]),
            None if layout.splits.is_empty() => Ok(Vec::new()),
            None => Err(Wrong {
                key: "split",
                message: format!("there is no split `{}`; there are {}", usual[0], layout.names()),
                suggestion: layout.splits.keys().next().map(|split| format!("split: {split}")),
            }),
        };
    };
    let slices = slice::parse(written).map_err(|why| wrong("split", why))?;
    match slices.iter().find(|slice| !has(&slice.split)) {
        None => Ok(slices),
        Some(slice) if layout.splits.is_empty() => Ok(vec![slice.clone()]),
        Some(slice) => {
            let names: Vec<String> = layout.splits.keys().cloned().collect();
            let alone = names == [TRAIN];
            let message = match alone {
                true => format!("there is no split `{}`; these files are all `train`", slice.split),
                false => format!("there is no split `{}`; there are {}", slice.split, layout.names()),
            };
            let near = names.iter().min_by_key(|name| {
                let starts = slice.split.starts_with(name.as_str()) || name.starts_with(&slice.split);
                if starts { 0 } else { strsim::osa_distance(name, &slice.split) }
            });
            Err(Wrong { key: "split", message, suggestion: near.cloned() })
        }
    }
}

/// Files named beside a reader's name, relative to the project's root.
pub fn named(project: &Project, named: &[String]) -> Result<Vec<String>, Wrong> {
    let mut files = Vec::new();
    for name in named {
        let path = project.rows(name, None);
        if project.is_unfetched(name, None) {
            files.push(path.display().to_string());
        } else if stands_for_several(name, &path) {
            files.extend(pattern(&path)?.splits.swap_remove(TRAIN).unwrap_or_default());
        } else if path.is_dir() {
            let below = Layout::of_names(&names_below(&path));
            files.extend(below.splits.values().flatten().map(|file| path.join(file).display().to_string()));
        } else {
            files.push(path.display().to_string());
        }
    }
    Ok(files)
}

fn pattern(path: &Path) -> Result<Layout, Wrong> {
    let written = path.display().to_string();
    let fixed: PathBuf =
        path.components().take_while(|part| !is_pattern(&part.as_os_str().to_string_lossy())).collect();
    let rest = path.strip_prefix(&fixed).unwrap_or(path).to_string_lossy().into_owned();
    let names = names_below(&fixed);
    let found = matching(&names, &rest).map_err(|why| wrong("path", why))?;
    if found.is_empty() {
        let (data, _) = (Layout::of_names(&names), ());
        let there: Vec<&String> = data.splits.values().flatten().take(3).collect();
        let message = match there.is_empty() {
            true => format!("no file fits `{written}`"),
            false => format!("no file fits `{written}`; in `{}` there is `{}`", fixed.display(), there[0]),
        };
        return Err(Wrong { key: "path", message, suggestion: None });
    }
    let data = found.into_iter().filter(|name| FileFormat::of_path(Path::new(name)) != FileFormat::Unknown);
    let files: Vec<String> = data.map(|name| fixed.join(name).display().to_string()).collect();
    Ok(Layout { splits: one_split(files), left_out: Vec::new() })
}

/// A folder: saved by `save_to_disk`, described by its card, or laid out by names.
fn folder(path: &Path, name: Option<&str>) -> Result<Layout, Wrong> {
    if let Some(dict) = read_json(&path.join("dataset_dict.json")) {
        let splits = dict.get("splits").and_then(Value::as_array).cloned().unwrap_or_default();
        let mut layout = Layout::default();
        for split in splits.iter().filter_map(Value::as_str) {
            let files = saved(&path.join(split)).unwrap_or_default();
            layout.splits.insert(split.to_string(), files.iter().map(|file| format!("{split}/{file}")).collect());
        }
        return Ok(layout);
    }
    if let Some(files) = saved(path) {
        return Ok(Layout { splits: one_split(files), left_out: Vec::new() });
    }
    let names = names_below(path);
    let readme = fs::read_to_string(path.join("README.md")).unwrap_or_default();
    match Card::read(&readme, name, &names).map_err(|why| wrong("name", why))? {
        Card::Found(layout) => Ok(layout),
        Card::NoSuch(known) => Err(Wrong {
            key: "name",
            message: match name {
                Some(name) => format!("there is no configuration `{name}`; there are {}", known.join(", ")),
                None => format!("this dataset has several configurations; choose one of {}", known.join(", ")),
            },
            suggestion: known.first().map(|known| format!("name: {known}")),
        }),
        Card::Silent => match name.filter(|name| *name != "default") {
            // Without a card a configuration is a folder.
            Some(name) => {
                let inside: Vec<String> = matching(&names, name).map_err(|why| wrong("name", why))?;
                if inside.is_empty() {
                    return Err(wrong("name", format!("there is no configuration `{name}` in `{}`", path.display())));
                }
                Ok(Layout::of_names(&inside))
            }
            None => Ok(Layout::of_names(&names)),
        },
    }
}

/// The files of a folder that `save_to_disk` wrote.
fn saved(path: &Path) -> Option<Vec<String>> {
    let state = read_json(&path.join("state.json"))?;
    let files = state.get("_data_files")?.as_array()?;
    Some(files.iter().filter_map(|file| file.get("filename")?.as_str().map(str::to_string)).collect())
}

fn read_json(path: &Path) -> Option<Value> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Names of all files below a folder, `/` between their parts; hidden ones are not looked at. Below an address these are the
/// names there, fetched or not.
pub fn names_below(folder: &Path) -> Vec<String> {
    if let Some(names) = listed_below(folder) {
        return names;
    }
    let mut names = Vec::new();
    walk(folder, "", 0, &mut names);
    names.sort();
    names
}

fn walk(folder: &Path, prefix: &str, depth: usize, names: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        if name.starts_with('.') {
            continue;
        }
        let path = entry.path();
        let name = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
        if path.is_dir() && depth < DEEPEST {
            walk(&path, &name, depth + 1, names);
        } else if path.is_file() {
            names.push(name);
        }
    }
}

fn one_split(files: Vec<String>) -> IndexMap<String, Vec<String>> {
    if files.is_empty() { IndexMap::new() } else { IndexMap::from_iter([(TRAIN.to_string(), files)]) }
}

/// A web address may hold a question mark, which is no pattern of the file behind it.
fn stands_for_several(written: &str, path: &Path) -> bool {
    is_pattern(written) && is_pattern(&path.to_string_lossy()) && !path.exists()
}

/// Whether a path stands for several by its form.
pub fn is_pattern(path: &str) -> bool {
    path.contains(['*', '?', '{']) || path.contains('[') && path.contains(']')
}

fn wrong(key: &'static str, message: String) -> Wrong {
    Wrong { key, message, suggestion: None }
}
