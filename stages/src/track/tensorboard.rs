//! TensorBoard's event files: records of a length, a protobuf message and their checksums.
//!
//! Format: <https://github.com/tensorflow/tensorboard/blob/master/tensorboard/compat/proto/event.proto> and `summary.proto`,
//! framed as TFRecord: length and payload each followed by a masked CRC32C.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use prost::Message;

use super::{Point, TrackError, Tracker, curve};

/// What a reader looks for in the first record.
const VERSION: &str = "brain.Event:2";
/// TFRecord adds this to a rotated checksum, so that a checksum of checksums stays useful.
const MASK: u32 = 0xa282_ead8;

/// `tensorflow.Event`.
#[derive(Clone, PartialEq, Message)]
struct EventRecord {
    /// Seconds since 1970, UTC.
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<SummaryRecord>,
}

/// `tensorflow.Summary`.
#[derive(Clone, PartialEq, Message)]
struct SummaryRecord {
    #[prost(message, repeated, tag = "1")]
    value: Vec<ScalarRecord>,
}

/// `tensorflow.Summary.Value` with a plain number.
#[derive(Clone, PartialEq, Message)]
struct ScalarRecord {
    #[prost(string, tag = "1")]
    tag: String,
    /// Inside a `oneof`, where zero is written too.
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

/// Writes one event file, into a folder of its own.
pub struct TensorBoard {
    folder: PathBuf,
    file: Option<(File, PathBuf)>,
}

impl TensorBoard {
    /// `folder` is the run's; it is made with the first number.
    pub fn new(folder: PathBuf) -> TensorBoard {
        TensorBoard { folder, file: None }
    }

    fn write(&mut self, records: &[EventRecord]) -> Result<(), TrackError> {
        let Some((file, path)) = &mut self.file else { return Ok(()) };
        let bytes: Vec<u8> = records.iter().flat_map(|record| framed(&record.encode_to_vec())).collect();
        // Whole records in one write: a reader that follows the file meanwhile never sees half of one.
        file.write_all(&bytes).and_then(|()| file.flush()).map_err(failed(path))
    }

    fn open(&mut self, time: i64) -> Result<(), TrackError> {
        fs::create_dir_all(&self.folder).map_err(failed(&self.folder))?;
        // Readers know an event file by this in its name, and sort by what follows it.
        let path = self.folder.join(format!("events.out.tfevents.{}.pipe", time / 1000));
        let file = File::create(&path).map_err(failed(&path))?;
        self.file = Some((file, path));
        let file_version = Some(VERSION.to_string());
        self.write(&[EventRecord { wall_time: seconds(time), step: 0, file_version, summary: None }])
    }
}

impl Tracker for TensorBoard {
    fn name(&self) -> &'static str {
        "tensorboard"
    }

    fn log(&mut self, points: &[Point]) -> Result<(), TrackError> {
        let Some(first) = points.first() else { return Ok(()) };
        if self.file.is_none() {
            self.open(first.time)?;
        }
        let records: Vec<EventRecord> = points.iter().map(record).collect();
        self.write(&records)
    }

    fn end(&mut self, _ok: bool, _time: i64) -> Result<(), TrackError> {
        let Some((file, path)) = self.file.take() else { return Ok(()) };
        file.sync_all().map_err(failed(&path))
    }
}

fn record(point: &Point) -> EventRecord {
    let value = |(name, value): &(String, f64)| ScalarRecord {
        tag: curve(&point.kind, name),
        simple_value: Some(*value as f32),
    };
    EventRecord {
        wall_time: seconds(point.time),
        step: point.step as i64,
        file_version: None,
        summary: Some(SummaryRecord { value: point.values.iter().map(value).collect() }),
    }
}

fn seconds(millis: i64) -> f64 {
    millis as f64 / 1000.0
}

/// A TFRecord.
fn framed(payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u64).to_le_bytes();
    let mut out = Vec::with_capacity(payload.len() + 16);
    out.extend(length);
    out.extend(checksum(&length).to_le_bytes());
    out.extend(payload);
    out.extend(checksum(payload).to_le_bytes());
    out
}

fn checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(MASK)
}

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> TrackError {
    let path = path.to_path_buf();
    move |source| TrackError::Io { path, source }
}
