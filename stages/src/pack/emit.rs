//! Packs on their way to the file, on a thread of their own: while one window is written the next one fills.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use arrow::array::{ArrayRef, ListBuilder, RecordBatch, StringBuilder, UInt16Builder};
use pipe_engine::task::TaskError;

use super::{MASKED, Window};
use crate::rows::{TableWriter, int_lists, shapes};

/// Tokens per batch of packs that is written.
const BATCH_TOKENS: usize = 1 << 18;

/// A window and the rows of each of its packs.
type Planned = (Arc<Window>, Vec<Vec<u32>>);

/// Writes packs in the order in which they are given.
pub(super) struct Emitter {
    sender: Option<SyncSender<Planned>>,
    thread: Option<JoinHandle<Result<(), TaskError>>>,
    /// Packs given so far.
    pub packs: u64,
}

impl Emitter {
    pub(super) fn start(writer: TableWriter) -> Self {
        // Nothing waits in between: one window is written, one fills.
        let (sender, receiver) = sync_channel(0);
        let thread = std::thread::spawn(move || write(writer, &receiver));
        Self { sender: Some(sender), thread: Some(thread), packs: 0 }
    }

    pub(super) fn emit(&mut self, window: &Arc<Window>, packs: Vec<Vec<u32>>) -> Result<(), TaskError> {
        self.packs += packs.len() as u64;
        match &self.sender {
            Some(sender) if sender.send((window.clone(), packs)).is_ok() => Ok(()),
            // The thread only hangs up when it failed: its own error says why.
            _ => self.join(),
        }
    }

    /// Waits until everything is written and the file is complete.
    pub(super) fn finish(mut self) -> Result<u64, TaskError> {
        self.join()?;
        Ok(self.packs)
    }

    fn join(&mut self) -> Result<(), TaskError> {
        self.sender = None;
        let gone = || TaskError::Failed("the thread that writes packs panicked".into());
        self.thread.take().ok_or_else(gone)?.join().map_err(|_| gone())?
    }
}

impl Drop for Emitter {
    fn drop(&mut self) {
        // Abandoned: let the thread end before the draft folder goes away.
        self.sender = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn write(mut writer: TableWriter, windows: &Receiver<Planned>) -> Result<(), TaskError> {
    let mut out = Packs::new();
    for (window, packs) in windows {
        for rows in packs {
            out.push(&window, &rows);
            if out.ids.len() >= BATCH_TOKENS {
                writer.write(&std::mem::replace(&mut out, Packs::new()).batch()?)?;
            }
        }
    }
    writer.write(&out.batch()?)?;
    writer.finish().map(|_| ())
}

/// Packs to be written, column by column.
struct Packs {
    ids: Vec<i32>,
    labels: Vec<i32>,
    positions: Vec<i32>,
    segments: Vec<i32>,
    /// End of each pack in the four columns above.
    ends: Vec<i32>,
    lengths: Vec<i32>,
    length_ends: Vec<i32>,
    row_ids: ListBuilder<StringBuilder>,
    sources: ListBuilder<UInt16Builder>,
}

impl Packs {
    fn new() -> Self {
        // A pack more than a batch: the last one goes over its end.
        let room = || Vec::with_capacity(BATCH_TOKENS + BATCH_TOKENS / 8);
        Self {
            ids: room(),
            labels: room(),
            positions: room(),
            segments: room(),
            ends: Vec::new(),
            lengths: Vec::new(),
            length_ends: Vec::new(),
            row_ids: ListBuilder::default(),
            sources: ListBuilder::default(),
        }
    }

    fn push(&mut self, window: &Window, rows: &[u32]) {
        for (segment, row) in rows.iter().map(|&row| row as usize).enumerate() {
            let range = window.range(row);
            let length = range.len() as i32;
            self.ids.extend_from_slice(&window.ids[range.clone()]);
            self.labels.push(MASKED);
            self.labels.extend_from_slice(&window.labels[range.start + 1..range.end]);
            self.positions.extend(0..length);
            self.segments.extend(std::iter::repeat_n(segment as i32 + 1, range.len()));
            self.lengths.push(length);
            self.row_ids.values().append_value(&window.row_ids[row]);
            self.sources.values().append_value(window.sources[row]);
        }
        self.ends.push(self.ids.len() as i32);
        self.length_ends.push(self.lengths.len() as i32);
        self.row_ids.append(true);
        self.sources.append(true);
    }

    fn batch(mut self) -> Result<RecordBatch, TaskError> {
        let columns: Vec<ArrayRef> = vec![
            int_lists(self.ids, &self.ends),
            int_lists(self.labels, &self.ends),
            int_lists(self.positions, &self.ends),
            int_lists(self.segments, &self.ends),
            Arc::new(self.row_ids.finish()),
            int_lists(self.lengths, &self.length_ends),
            Arc::new(self.sources.finish()),
        ];
        RecordBatch::try_new(shapes::packs(), columns).map_err(|e| TaskError::Failed(e.to_string()))
    }
}
