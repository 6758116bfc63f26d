//! What a run's file holds: the few of W&B's protobuf messages that a run of numbers needs.
//!
//! Fields by number: <https://github.com/wandb/wandb/blob/main/wandb/proto/wandb_internal.proto>.

use prost::Message;

/// `wandb_internal.Record`: one of its bodies.
#[derive(Clone, PartialEq, Message)]
struct Record {
    #[prost(int64, tag = "1")]
    num: i64,
    #[prost(message, optional, tag = "2")]
    history: Option<History>,
    #[prost(message, optional, tag = "3")]
    summary: Option<Summary>,
    #[prost(message, optional, tag = "12")]
    metric: Option<Metric>,
    #[prost(message, optional, tag = "17")]
    run: Option<Run>,
    #[prost(message, optional, tag = "18")]
    exit: Option<Exit>,
    #[prost(message, optional, tag = "21")]
    header: Option<Header>,
    #[prost(message, optional, tag = "200")]
    info: Option<RecordInfo>,
}

/// `_RecordInfo`: which run a record belongs to.
#[derive(Clone, PartialEq, Message)]
struct RecordInfo {
    #[prost(string, tag = "1")]
    stream_id: String,
}

/// The bodies that are written.
pub(super) enum Body {
    Header(Header),
    Run(Run),
    Metric(Metric),
    Summary(Summary),
    History(History),
    Exit(Exit),
}

/// `HeaderRecord`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Header {
    #[prost(message, optional, tag = "1")]
    pub version_info: Option<Version>,
}

/// `VersionInfo`: who wrote the file.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Version {
    #[prost(string, tag = "1")]
    pub producer: String,
}

/// `RunRecord`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Run {
    #[prost(string, tag = "1")]
    pub run_id: String,
    #[prost(string, tag = "2")]
    pub entity: String,
    #[prost(string, tag = "3")]
    pub project: String,
    #[prost(message, optional, tag = "4")]
    pub config: Option<Config>,
    #[prost(string, tag = "8")]
    pub display_name: String,
    #[prost(message, optional, tag = "17")]
    pub start_time: Option<Time>,
}

/// `google.protobuf.Timestamp`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Time {
    /// Since 1970, UTC.
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

impl Time {
    pub fn of(millis: i64) -> Time {
        Time { seconds: millis.div_euclid(1000), nanos: (millis.rem_euclid(1000) * 1_000_000) as i32 }
    }
}

/// `ConfigRecord`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Config {
    #[prost(message, repeated, tag = "1")]
    pub update: Vec<Item>,
}

/// `ConfigItem`, `HistoryItem` and `SummaryItem`, which have these fields alike.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Item {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, repeated, tag = "2")]
    nested_key: Vec<String>,
    #[prost(string, tag = "16")]
    value_json: String,
}

impl Item {
    pub fn plain(key: &str, value_json: String) -> Item {
        Item { key: key.to_string(), nested_key: Vec::new(), value_json }
    }

    /// As W&B's own clients write numbers.
    pub fn nested(key: &str, value_json: String) -> Item {
        Item { key: String::new(), nested_key: vec![key.to_string()], value_json }
    }
}

/// `MetricRecord`: over what a curve is drawn.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Metric {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub glob_name: String,
    #[prost(string, tag = "4")]
    pub step_metric: String,
    #[prost(message, optional, tag = "6")]
    pub options: Option<MetricOptions>,
}

/// `MetricOptions`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct MetricOptions {
    #[prost(bool, tag = "1")]
    pub step_sync: bool,
    #[prost(bool, tag = "3")]
    pub defined: bool,
}

/// `SummaryRecord`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Summary {
    #[prost(message, repeated, tag = "1")]
    pub update: Vec<Item>,
}

/// `HistoryRecord`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct History {
    #[prost(message, repeated, tag = "1")]
    pub item: Vec<Item>,
    #[prost(message, optional, tag = "2")]
    pub step: Option<Step>,
}

/// `HistoryStep`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Step {
    #[prost(int64, tag = "1")]
    pub num: i64,
}

/// `RunExitRecord`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Exit {
    #[prost(int32, tag = "1")]
    pub exit_code: i32,
    /// Seconds.
    #[prost(int32, tag = "2")]
    pub runtime: i32,
}

/// A record's bytes; `num` counts from 1, `stream` is the run's id.
pub(super) fn encode(body: Body, num: i64, stream: &str) -> Vec<u8> {
    let mut record = Record { num, ..Record::default() };
    record.info = Some(RecordInfo { stream_id: stream.to_string() });
    match body {
        Body::Header(header) => record.header = Some(header),
        Body::Run(run) => record.run = Some(run),
        Body::Metric(metric) => record.metric = Some(metric),
        Body::Summary(summary) => record.summary = Some(summary),
        Body::History(history) => record.history = Some(history),
        Body::Exit(exit) => record.exit = Some(exit),
    }
    record.encode_to_vec()
}
