//! Looking after the store: what it holds, whether it is sound, and letting old outputs go.
//!
//! An output that goes leaves its record behind, so that what lies below it still counts as known. What a live run uses
//! never goes: runs pin outputs under the gate, and giving up happens behind it.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use serde::Serialize;

use crate::digest::Digest;
use crate::lock::Lock;
use crate::manifest::Manifest;
use crate::plan::NodeName;
use crate::record::Record;
use crate::runs;
use crate::store::{Condition, Depth, Store, StoreError, unique};

/// One stored output.
#[derive(Clone, Debug, Serialize)]
pub struct Stored {
    pub output: Digest,
    /// The nodes that made it, as they were named then; none for an orphan whose record is gone.
    pub nodes: Vec<NodeName>,
    pub stage: Option<String>,
    pub keys: Vec<Digest>,
    pub rows: Option<u64>,
    pub files: usize,
    pub bytes: u64,
    /// RFC 3339, UTC.
    pub created: Option<String>,
    /// When a run last used it.
    pub last_used: Option<String>,
}

/// One thing wrong with the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// Below the store's folder.
    pub path: String,
    pub nodes: Vec<NodeName>,
    pub what: String,
}

/// What to keep. Without any limit only left-overs go.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// Keep what the latest runs of each recipe used.
    pub keep_last: Option<usize>,
    /// Keep what was used more recently than this.
    pub older_than: Option<Duration>,
    /// Let the least recently used go until the store holds at most this many bytes.
    pub max_size: Option<u64>,
    /// Only say what would go.
    pub dry_run: bool,
}

/// What went, or would go.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Collected {
    pub outputs: Vec<Stored>,
    /// Quarantined objects, drafts of dead processes and work folders nobody will resume; below the store's folder.
    pub leftovers: Vec<String>,
    pub freed_bytes: u64,
    pub kept_bytes: u64,
    /// Outputs that a live run protects.
    pub in_use: usize,
}

/// Everything stored, most recently used first.
pub fn ls(store: &Store) -> Vec<Stored> {
    let mut makers: HashMap<Digest, Vec<Record>> = HashMap::new();
    for record in store.keys().into_iter().filter_map(|key| store.record(key)) {
        makers.entry(record.output).or_default().push(record);
    }
    let used = last_used(store);
    let mut stored: Vec<Stored> = (objects(store).into_iter())
        .map(|output| {
            let records = makers.remove(&output).unwrap_or_default();
            let created = records.iter().map(|record| record.created.clone()).min();
            Stored {
                output,
                stage: records.first().map(|record| record.ingredients.stage.clone()),
                keys: records.iter().map(|record| record.key).collect(),
                rows: records.iter().find_map(|record| record.summary.rows),
                files: records.first().map_or(0, |record| record.manifest.files.len()),
                bytes: records.first().map_or_else(|| folder_bytes(&store.object(output)), |r| r.manifest.bytes()),
                last_used: used.get(&output).cloned().or_else(|| created.clone()),
                nodes: records.into_iter().map(|record| record.node).collect::<HashSet<_>>().into_iter().collect(),
                created,
            }
        })
        .collect();
    stored.iter_mut().for_each(|one| one.nodes.sort());
    stored.sort_by(|a, b| b.last_used.cmp(&a.last_used).then(a.output.cmp(&b.output)));
    stored
}

/// Re-hashes everything. Nothing is repaired: the next run that needs a damaged output makes it again.
pub fn verify(store: &Store) -> Vec<Damage> {
    let keys = store.keys();
    let damage = Mutex::new(Vec::new());
    let next = AtomicUsize::new(0);
    let once = Mutex::new(HashSet::new());
    let note = |path: String, nodes: Vec<NodeName>, what: String| {
        if let Ok(mut damage) = damage.lock() {
            damage.push(Damage { path, nodes, what });
        }
    };
    let check = |key: Digest| {
        let Some(record) = store.record(key) else {
            return note(format!("keys/{key}.json"), Vec::new(), "is not a sound record".to_string());
        };
        if !once.lock().is_ok_and(|mut once| once.insert(record.output)) {
            return;
        }
        let what = match store.inspect(&record, Depth::Bytes) {
            Condition::Missing if !record.evicted => "is missing".to_string(),
            Condition::Sound | Condition::Missing => return,
            Condition::Damaged(what) => what,
        };
        note(format!("objects/{}", record.output), vec![record.node], what);
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(&key) = keys.get(next.fetch_add(1, Ordering::Relaxed)) {
                    check(key);
                }
            });
        }
    });
    store.memo().save();
    let mut damage = damage.into_inner().unwrap_or_default();
    damage.sort_by(|a, b| a.path.cmp(&b.path));
    damage
}

/// Lets outputs go by policy, and clears what is left over.
pub fn gc(store: &Store, policy: &Policy) -> Result<Collected, StoreError> {
    // From here to the end no run can begin to use an output; running ones have pinned theirs.
    let gate = store.gate_alone()?;
    let pinned: HashSet<Digest> = runs::pinned(store).into_iter().collect();
    let recent = policy.keep_last.map(|last| used_by_last_runs(store, last)).unwrap_or_default();
    let stored = ls(store);
    let total: u64 = stored.iter().map(|one| one.bytes).sum();
    let mut collected = Collected { kept_bytes: total, ..Collected::default() };
    let is_fresh = |one: &Stored| policy.older_than.is_some_and(|limit| age(one.last_used.as_deref()) < limit);
    let by_age = policy.keep_last.is_some() || policy.older_than.is_some();
    for one in stored.into_iter().rev() {
        let orphan = one.keys.is_empty();
        if pinned.contains(&one.output) {
            collected.in_use += 1;
            continue;
        }
        let wanted = match policy.max_size {
            Some(limit) => collected.kept_bytes <= limit,
            None => !by_age,
        };
        if !orphan && (wanted || recent.contains(&one.output) || is_fresh(&one)) {
            continue;
        }
        if !policy.dry_run {
            give_up(store, &one)?;
        }
        collected.kept_bytes -= one.bytes;
        collected.freed_bytes += one.bytes;
        collected.outputs.push(one);
    }
    clear_leftovers(store, policy, &mut collected)?;
    if !policy.dry_run {
        store.clear_latest();
    }
    drop(gate);
    Ok(collected)
}

/// The records learn it first: killed in between, they lead to an object that is still there, which is no harm.
fn give_up(store: &Store, one: &Stored) -> Result<(), StoreError> {
    for mut record in one.keys.iter().filter_map(|&key| store.record(key)) {
        record.evicted = true;
        store.put_record(&record)?;
    }
    let aside = store.root().join("drafts").join(format!("gone.{}", unique()));
    let object = store.object(one.output);
    fs::rename(&object, &aside).map_err(StoreError::io("remove", &object))?;
    fs::remove_dir_all(&aside).map_err(StoreError::io("remove", &aside))
}

fn clear_leftovers(store: &Store, policy: &Policy, collected: &mut Collected) -> Result<(), StoreError> {
    for folder in ["quarantine", "drafts", "work", "keys"] {
        let Ok(entries) = fs::read_dir(store.root().join(folder)) else { continue };
        for entry in entries.flatten() {
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            // A lock held means that somebody is writing there; ours only says that nobody was.
            let key = Digest::parse(name.split('.').next().unwrap_or_default());
            let lock = match key.filter(|_| folder != "quarantine" && folder != "keys") {
                Some(key) => match Lock::try_take(&store.lock_path(key)) {
                    Ok(Some(lock)) => Some(lock),
                    _ => continue,
                },
                None => None,
            };
            let is_leftover = match folder {
                "work" => key.is_none_or(|key| store.record(key).is_some()) || is_stale(&path, policy),
                "keys" => name.starts_with('.') && modified_ago(&path) > Duration::from_secs(3600),
                _ => true,
            };
            if !is_leftover {
                continue;
            }
            collected.freed_bytes += folder_bytes(&path);
            collected.leftovers.push(format!("{folder}/{name}"));
            if !policy.dry_run {
                let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                removed.map_err(StoreError::io("remove", &path))?;
            }
            drop(lock);
        }
    }
    Ok(())
}

/// An interrupted training that nobody took up again within the policy's age.
fn is_stale(path: &Path, policy: &Policy) -> bool {
    policy.older_than.is_some_and(|limit| modified_ago(path) > limit)
}

fn objects(store: &Store) -> Vec<Digest> {
    let Ok(entries) = fs::read_dir(store.root().join("objects")) else { return Vec::new() };
    entries.flatten().filter_map(|entry| Digest::parse(entry.file_name().to_str()?)).collect()
}

/// When each output was last used, by the runs that are on record.
fn last_used(store: &Store) -> HashMap<Digest, String> {
    let mut used = HashMap::new();
    for run in runs::list(store) {
        for output in runs::pins(store, &run.id) {
            used.insert(output, run.started.clone());
        }
    }
    used
}

fn used_by_last_runs(store: &Store, last: usize) -> HashSet<Digest> {
    let mut left: HashMap<String, usize> = HashMap::new();
    let mut used = HashSet::new();
    for run in runs::list(store).into_iter().rev() {
        let left = left.entry(run.about.recipe.clone()).or_insert(last);
        if *left > 0 {
            *left -= 1;
            used.extend(runs::pins(store, &run.id));
        }
    }
    used
}

fn age(time: Option<&str>) -> Duration {
    let then = time.and_then(|time| time.parse::<Timestamp>().ok());
    then.and_then(|then| Duration::try_from(Timestamp::now().duration_since(then)).ok()).unwrap_or_default()
}

fn modified_ago(path: &Path) -> Duration {
    let modified = fs::metadata(path).and_then(|metadata| metadata.modified());
    modified.ok().and_then(|modified| SystemTime::now().duration_since(modified).ok()).unwrap_or_default()
}

fn folder_bytes(path: &Path) -> u64 {
    if path.is_file() {
        return fs::metadata(path).map_or(0, |metadata| metadata.len());
    }
    let size = |name: String| fs::metadata(path.join(name)).map_or(0, |metadata| metadata.len());
    Manifest::names(path).unwrap_or_default().into_iter().map(size).sum()
}
