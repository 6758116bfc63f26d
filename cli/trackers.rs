//! Trackers of a run, fed from its events on a thread of their own: none can slow a run down or fail it. What one cannot take
//! is a warning, and it is asked no more.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use pipe_engine::event::{Event, NodeOutcome, Sink, Stamped};
use pipe_engine::plan::NodeName;
use pipe_engine::runs::stamp;
use pipe_stages::track::{
    self, Address, Credentials, Mlflow, Point, RunFacts, TensorBoard, Tracker, TrackerName, Wandb, WandbRun,
};

use crate::open::Opened;
use crate::page;

/// How long a run waits at its end for trackers that are behind.
const PATIENCE: Duration = Duration::from_secs(15);

/// The trackers of a run at work.
pub struct Trackers {
    send: Sender<Stamped>,
    /// Closed when all is written.
    done: Receiver<()>,
    tell: Arc<dyn Sink>,
}

/// Which trackers a run has, and where they write.
struct Wanted {
    names: Vec<TrackerName>,
    output_dir: Option<PathBuf>,
    store: PathBuf,
    address: Option<Address>,
    experiment: Option<String>,
    run_name: Option<String>,
    wandb: WandbRun,
    credentials: Credentials,
    facts: RunFacts,
    logging_steps: u64,
}

impl Trackers {
    /// The recipe's trackers, warning through `tell`; `None` for a recipe without any.
    pub fn start(opened: &Opened, tell: Arc<dyn Sink>) -> Option<Trackers> {
        let wanted = Wanted::of(opened)?;
        let (send, receive) = channel();
        let (end, done) = channel::<()>();
        let sink = tell.clone();
        std::thread::spawn(move || {
            follow(wanted, &receive, &*sink);
            drop(end);
        });
        Some(Trackers { send, done, tell })
    }

    /// Passes an event on, if there is a number in it.
    pub fn take(&self, event: &Event) {
        let matters = match event {
            Event::RunStarted { .. } | Event::Metric { .. } | Event::Eval { .. } | Event::RunFinished(_) => true,
            // What was measured before is no news.
            Event::NodeFinished(done) => done.node.stage() == "eval" && done.outcome == NodeOutcome::Executed,
            _ => false,
        };
        if matters {
            let _ = self.send.send(stamp(event.clone()));
        }
    }

    /// Waits until everything is written, but not for ever.
    pub fn finish(self) {
        drop(self.send);
        if self.done.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
            let message =
                format!("trackers are behind after {} s; what they lack is in the run's record", PATIENCE.as_secs());
            self.tell.emit(Event::Warning { node: NodeName::new("train"), message });
        }
    }
}

impl Wanted {
    fn of(opened: &Opened) -> Option<Wanted> {
        let recipe = &opened.recipe;
        let names = track::trackers(recipe);
        let train = opened.plan.nodes().iter().find(|node| node.name.stage() == "train")?;
        if names.is_empty() {
            return None;
        }
        let mut params = vec![("base_model".to_string(), recipe.base_model.clone().unwrap_or_default())];
        page::flatten("", &train.task.params(), &mut params);
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        Some(Wanted {
            names,
            output_dir: recipe.output_dir.as_deref().map(|folder| opened.project.resolve(folder)),
            store: opened.store_folder.clone(),
            address: recipe.mlflow_tracking_uri.as_deref().and_then(|uri| track::address(uri, &opened.project)),
            experiment: recipe.mlflow_experiment_name.clone(),
            run_name: recipe.mlflow_run_name.clone(),
            wandb: WandbRun {
                project: recipe.wandb_project.clone(),
                entity: recipe.wandb_entity.clone(),
                name: recipe.wandb_name.clone(),
                id: recipe.wandb_run_id.clone(),
            },
            credentials: Credentials {
                username: variable("MLFLOW_TRACKING_USERNAME"),
                password: variable("MLFLOW_TRACKING_PASSWORD"),
                token: variable("MLFLOW_TRACKING_TOKEN"),
            },
            facts: RunFacts { recipe: opened.scope.clone(), params, ..RunFacts::default() },
            logging_steps: recipe.logging_steps.unwrap_or(1).max(1),
        })
    }

    /// The trackers of the run `run`.
    fn trackers(&self, run: &str, started: i64) -> Vec<Box<dyn Tracker>> {
        let facts = RunFacts { run: run.to_string(), started, ..self.facts.clone() };
        let tracker = |name: &TrackerName| -> Option<Box<dyn Tracker>> {
            match name {
                TrackerName::None => None,
                TrackerName::Tensorboard => {
                    // transformers' place within an output folder.
                    let all = self.output_dir.as_ref().map(|folder| folder.join("runs"));
                    let all = all.unwrap_or_else(|| self.store.join("tensorboard"));
                    Some(Box::new(TensorBoard::new(all.join(run))))
                }
                TrackerName::Wandb => {
                    let all = self.output_dir.as_ref().unwrap_or(&self.store).join("wandb");
                    Some(Box::new(Wandb::new(all, self.wandb.clone(), facts.clone())))
                }
                TrackerName::Mlflow => {
                    let address = self.address.clone().unwrap_or_else(|| Address::Folder(self.store.join("mlruns")));
                    let (experiment, name) = (self.experiment.as_deref(), self.run_name.as_deref());
                    Some(Box::new(Mlflow::new(address, self.credentials.clone(), experiment, name, facts.clone())))
                }
            }
        };
        self.names.iter().filter_map(tracker).collect()
    }

    /// `logging_steps` thins what trackers are told; the first and the last step they always are.
    fn wants(&self, event: &Event) -> bool {
        match event {
            Event::Metric { step, total_steps, .. } => {
                *step == 1 || step == total_steps || step.is_multiple_of(self.logging_steps)
            }
            _ => true,
        }
    }
}

/// Writes what comes until the sender is gone: whatever has come meanwhile at once.
fn follow(wanted: Wanted, receive: &Receiver<Stamped>, tell: &dyn Sink) {
    let mut trackers: Vec<Box<dyn Tracker>> = Vec::new();
    let mut last_step = 0;
    while let Ok(first) = receive.recv() {
        let (mut points, mut ended): (Vec<Point>, Option<(bool, i64)>) = (Vec::new(), None);
        for stamped in std::iter::once(first).chain(receive.try_iter()) {
            let time = track::millis(&stamped.time);
            match &stamped.event {
                Event::RunStarted { run, .. } => trackers = wanted.trackers(run, time),
                Event::RunFinished(finished) => ended = Some((finished.ok, time)),
                event if wanted.wants(event) => points.extend(track::point(&stamped, last_step)),
                _ => {}
            }
            last_step = points.last().map_or(last_step, |point| point.step);
        }
        trackers.retain_mut(|tracker| {
            let logged = tracker.log(&points).and_then(|()| match ended {
                Some((ok, time)) => tracker.end(ok, time),
                None => Ok(()),
            });
            let Err(error) = logged else { return true };
            let message = format!("{}: {error}; the run goes on without it", tracker.name());
            tell.emit(Event::Warning { node: NodeName::new("train"), message });
            false
        });
    }
}
