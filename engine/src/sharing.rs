//! The traffic between a run and the shared store: a node's key is asked for before it runs, its output given after.
//!
//! Both happen beside the run, on threads of their own. Whatever goes wrong is told once, and the run goes on without; a
//! damaged output is told of and counts as absent.

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::digest::Digest;
use crate::earlier::family;
use crate::event::{Event, Sink};
use crate::lock::Lock;
use crate::plan::{Node, NodeName};
use crate::record::Record;
use crate::remote::{Remote, RemoteError, Taken};
use crate::store::{Store, StoreError};
use crate::task::Cancel;

/// How often the end of a run looks whether it was interrupted while the last outputs are given.
const TICK: Duration = Duration::from_millis(40);

/// One run's part in a shared store.
pub(crate) struct Sharing {
    party: Party,
    gifts: Sender<(NodeName, Arc<Record>)>,
    giver: JoinHandle<()>,
}

#[derive(Clone)]
struct Party {
    remote: Arc<Remote>,
    store: Arc<Store>,
    /// Not owned: a slow transfer must not keep the run's record open.
    sink: Weak<dyn Sink>,
}

impl Sharing {
    pub fn begin(remote: Arc<Remote>, store: &Arc<Store>, sink: &Arc<dyn Sink>) -> Sharing {
        let party = Party { remote, store: store.clone(), sink: Arc::downgrade(sink) };
        let (gifts, received) = channel::<(NodeName, Arc<Record>)>();
        let own = party.clone();
        let giver = std::thread::spawn(move || {
            for (node, record) in received {
                own.give(&node, &record);
            }
        });
        Sharing { party, gifts, giver }
    }

    pub fn is_on(&self) -> bool {
        self.party.remote.is_on()
    }

    /// Looks for a key, brings its output into the store, and calls `done` with what came of it.
    pub fn ask(&self, node: &Node, key: Digest, done: impl FnOnce(Option<Box<Record>>) + Send + 'static) {
        let party = self.party.clone();
        let (name, reuses_rows) = (node.name.clone(), node.task.reuses_rows());
        std::thread::spawn(move || {
            let record = party.take(&name, key);
            if let Some(record) = record.as_ref().filter(|_| reuses_rows) {
                party.store.note_latest(family(&name, &record.ingredients), key);
            }
            done(record);
        });
    }

    /// Has an output uploaded, if it is not there yet.
    pub fn give(&self, node: &NodeName, record: &Arc<Record>) {
        let _ = self.gifts.send((node.clone(), record.clone()));
    }

    /// Waits until everything is given, or the run is interrupted.
    pub fn finish(self, cancel: &Cancel) {
        drop(self.gifts);
        while !self.giver.is_finished() && !cancel.is_cancelled() {
            std::thread::sleep(TICK);
        }
    }
}

impl Party {
    fn take(&self, node: &NodeName, key: Digest) -> Option<Box<Record>> {
        let path = self.store.lock_path(key);
        let take = || -> Result<Taken, RemoteError> {
            // Whoever holds the key is making its output or bringing it; the node waits for that when its turn comes.
            match Lock::try_take(&path).map_err(StoreError::io("lock", &path))? {
                Some(_lock) if self.remote.is_on() => self.remote.take(&self.store, key),
                _ => Ok(Taken::Nothing),
            }
        };
        match take() {
            Ok(Taken::Output(record)) => return Some(record),
            Ok(Taken::Nothing) => {}
            Ok(Taken::Wrong(what)) => {
                self.warn(
                    node,
                    format!("what {} has for it is damaged: {what}; it is made again", self.remote.address()),
                );
            }
            Err(error) => self.give_up(node, &error),
        }
        None
    }

    fn give(&self, node: &NodeName, record: &Record) {
        if self.remote.is_on()
            && let Err(error) = self.remote.give(&self.store, record)
        {
            self.give_up(node, &error);
        }
    }

    fn give_up(&self, node: &NodeName, error: &RemoteError) {
        if self.remote.give_up() {
            let message = format!("results are not shared for the rest of this run: {error}");
            self.warn(node, message);
        }
    }

    fn warn(&self, node: &NodeName, message: String) {
        if let Some(sink) = self.sink.upgrade() {
            sink.emit(Event::Warning { node: node.clone(), message });
        }
    }
}
