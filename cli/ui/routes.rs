//! The addresses of `pipe ui`: every page, its content alone, and the stream of its changes.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, RawQuery, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::StreamExt;
use percent_encoding::percent_decode_str;
use pipe_engine::store::Store;

use super::subject::{Asked, Refusal, Subject};
use super::watch::{self, Change};
use crate::http::Stop;
use crate::page::{self, Memory, Served};

/// What all requests share.
pub struct App {
    /// The store's folder.
    pub store: PathBuf,
    memory: Memory,
    stop: Stop,
}

/// What of a page is asked for.
#[derive(Clone, Copy)]
enum What {
    Whole,
    Body,
}

type Shared = State<Arc<App>>;

pub fn routes(store: PathBuf, stop: Stop) -> Router {
    let app = Arc::new(App { store, memory: Memory::default(), stop });
    let run = |what: What| get(move |app: Shared, Path(run): Path<String>| shown(app, Asked::Run(run), what));
    let compared = |what: What| get(move |app: Shared, RawQuery(query)| shown(app, runs_in(query.as_deref()), what));
    Router::new()
        .route("/", get(|app: Shared| shown(app, Asked::Runs, What::Whole)))
        .route("/body", get(|app: Shared| shown(app, Asked::Runs, What::Body)))
        .route("/events", get(|app: Shared, query, headers| events(app, Asked::Runs, query, headers)))
        .route("/runs/{run}", run(What::Whole))
        .route("/runs/{run}/body", run(What::Body))
        .route(
            "/runs/{run}/events",
            get(|app: Shared, Path(run): Path<String>, query, headers| events(app, Asked::Run(run), query, headers)),
        )
        .route("/compare", compared(What::Whole))
        .route("/compare/body", compared(What::Body))
        .route(
            "/compare/events",
            get(|app: Shared, RawQuery(query), headers| {
                events(app, runs_in(query.as_deref()), RawQuery(query), headers)
            }),
        )
        .fallback(nowhere)
        .with_state(app)
}

/// The runs that a form chose: `run=A&run=B`.
fn runs_in(query: Option<&str>) -> Asked {
    Asked::Compared(fields(query, "run").collect())
}

/// The values of a query's field.
fn fields<'a>(query: Option<&'a str>, name: &'a str) -> impl Iterator<Item = String> + 'a {
    let pairs = query.unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
    let values = pairs.filter(move |(key, _)| *key == name).map(|(_, value)| value.replace('+', " "));
    values.map(|value| percent_decode_str(&value).decode_utf8_lossy().into_owned())
}

/// A page or its content, made on a thread where reading files is no harm.
async fn shown(State(app): Shared, asked: Asked, what: What) -> Response {
    let made = tokio::task::spawn_blocking(move || make(&app, &asked, what)).await;
    match made {
        Ok(Ok(page)) => html(StatusCode::OK, page),
        Ok(Err(refusal)) => refused(refusal, what),
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, "the page cannot be made\n").into_response(),
    }
}

fn make(app: &App, asked: &Asked, what: What) -> Result<String, Refusal> {
    let store = Store::peek(app.store.as_path());
    let subject = Subject::find(&store, asked)?;
    // Before the page is made: what comes meanwhile is a change.
    let state = subject.state(&store);
    let part = subject.part(&store, &app.memory)?;
    let page = match what {
        What::Body => page::body(&part),
        What::Whole if state.is_over => page::served(&part, &Served::default()),
        What::Whole => {
            let events = format!("{}seen={}", subject.address("events"), state.text);
            page::served(&part, &Served { events, body: subject.address("body") })
        }
    };
    page.map_err(|failure| Refusal { status: StatusCode::INTERNAL_SERVER_ERROR, message: failure.message() })
}

async fn events(
    State(app): Shared,
    asked: Asked,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Response> {
    let held = app.clone();
    let found = tokio::task::spawn_blocking(move || Subject::find(&Store::peek(held.store.as_path()), &asked)).await;
    let subject = found.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response())?;
    let subject = subject.map_err(|refusal| refused(refusal, What::Body))?;
    // A browser that lost the connection says where it was.
    let last = headers.get("last-event-id").and_then(|value| value.to_str().ok()).map(str::to_string);
    let seen = last.or_else(|| fields(query.as_deref(), "seen").next()).unwrap_or_default();
    let stop = app.stop.clone();
    let changes = watch::changes(app, subject, seen).take_until(Box::pin(async move { stop.raised().await }));
    let event = |change| {
        let event = match change {
            Change::Changed(state) => Event::default().event("changed").id(state),
            Change::Ended => Event::default().event("ended"),
        };
        Ok::<_, Infallible>(event.data("{}"))
    };
    Ok(Sse::new(changes.map(event)).keep_alive(KeepAlive::default()).into_response())
}

async fn nowhere(request: Request) -> Response {
    let message = format!("there is no page {}", request.uri().path());
    refused(Refusal { status: StatusCode::NOT_FOUND, message }, What::Whole)
}

/// In words: as a page for people, as text for scripts.
fn refused(refusal: Refusal, what: What) -> Response {
    let page = page::served(&page::missing(refusal.message.clone()), &Served::default());
    match (what, page) {
        (What::Whole, Ok(page)) => html(refusal.status, page),
        _ => (refusal.status, format!("{}\n", refusal.message)).into_response(),
    }
}

fn html(status: StatusCode, page: String) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (status, headers, page).into_response()
}
