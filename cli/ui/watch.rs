//! What changes in the records of runs, by looking at their files.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, stream};
use pipe_engine::store::Store;

use super::routes::App;
use super::subject::{State, Subject};

const PAUSE: Duration = Duration::from_millis(500);

/// Something new.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The page is no longer what it was; it stands where this says.
    Changed(String),
    /// Nothing more will come.
    Ended,
}

/// Where a follower is.
enum At {
    /// It has the page as it stood then.
    Seen(String),
    Over,
    Told,
}

/// Changes of a page since it stood at `seen`, until what it shows is at work no more.
pub fn changes(app: Arc<App>, subject: Subject, seen: String) -> impl Stream<Item = Change> + Send {
    stream::unfold((At::Seen(seen), app, subject), |(at, app, subject)| async move {
        let seen = match at {
            At::Seen(seen) => seen,
            At::Over => return Some((Change::Ended, (At::Told, app, subject))),
            At::Told => return None,
        };
        loop {
            let State { text, is_over } = look(&app, &subject).await;
            if text != seen {
                let at = if is_over { At::Over } else { At::Seen(text.clone()) };
                return Some((Change::Changed(text), (at, app, subject)));
            }
            if is_over {
                return Some((Change::Ended, (At::Told, app, subject)));
            }
            tokio::time::sleep(PAUSE).await;
        }
    })
}

/// Where the page stands, looked at on a thread where reading files is no harm.
async fn look(app: &Arc<App>, subject: &Subject) -> State {
    let (app, subject) = (app.clone(), subject.clone());
    let state = tokio::task::spawn_blocking(move || subject.state(&Store::peek(app.store.as_path()))).await;
    state.unwrap_or(State { text: String::new(), is_over: true })
}
