//! The server's addresses: OpenAI's endpoints, health, metrics and the chat page.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::{Stream, StreamExt, stream};
use serde_json::{Value, json};

use super::answer::{Answer, Piece};
use super::app::{App, Model, now, random};
use super::error::{ApiError, with_json};
use super::request::{Endpoint, Wanted};
use super::shape::Shape;

/// How long a client may take to send its body.
const BODY: Duration = Duration::from_secs(30);
/// A body beyond the limit is read this far before it is refused, so that its sender hears why.
const DISCARDED: usize = 64 << 20;

/// All addresses.
pub fn routes(app: Arc<App>) -> Router {
    let guarded = Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completions))
        .route("/v1/models", get(models))
        .route("/v1/models/{*name}", get(model))
        .route("/metrics", get(metrics))
        .layer(middleware::from_fn_with_state(app.clone(), authorised));
    Router::new()
        .route("/health", get(health))
        .route("/", get(|| page("text/html; charset=utf-8", include_str!("page/index.html"))))
        .route("/page.css", get(|| page("text/css; charset=utf-8", include_str!("page/page.css"))))
        .route("/page.js", get(|| page("text/javascript; charset=utf-8", include_str!("page/page.js"))))
        .merge(guarded)
        .fallback(nowhere)
        .method_not_allowed_fallback(not_that_way)
        .layer(middleware::from_fn_with_state(app.clone(), counted))
        .with_state(app)
}

async fn page(kind: &'static str, text: &'static str) -> Response {
    const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
        base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, text).into_response()
}

async fn nowhere(request: Request) -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, format!("there is no {}", request.uri().path()))
}

async fn not_that_way(request: Request) -> ApiError {
    let (method, path) = (request.method(), request.uri().path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, format!("{path} does not answer {method}"))
}

async fn counted(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let api = request.uri().path().starts_with("/v1/");
    let response = next.run(request).await;
    if api {
        app.metrics.request(response.status().as_u16());
    }
    response
}

async fn authorised(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let Some(key) = &app.key else { return next.run(request).await };
    let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    match given.and_then(|value| value.strip_prefix("Bearer ")) {
        Some(given) if same(given.as_bytes(), key.as_bytes()) => next.run(request).await,
        Some(_) => ApiError::new(StatusCode::UNAUTHORIZED, "the API key is not this server's")
            .code("invalid_api_key")
            .into_response(),
        None => {
            ApiError::new(StatusCode::UNAUTHORIZED, "an API key is needed: Authorization: Bearer KEY").into_response()
        }
    }
}

/// Equality that takes as long for every wrong key of this length.
fn same(given: &[u8], key: &[u8]) -> bool {
    given.len() == key.len() && given.iter().zip(key).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

async fn health(State(app): State<Arc<App>>) -> Response {
    match app.generator() {
        Ok(_) => with_json(StatusCode::OK, &json!({ "status": "ok" })),
        Err(error) => error.into_response(),
    }
}

async fn metrics(State(app): State<Arc<App>>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], app.metrics.render(app.cache()))
        .into_response()
}

fn described(app: &App, model: &Model) -> Value {
    let base = model.adapter.as_ref().map(|_| app.models[0].name.clone());
    json!({ "id": model.name, "object": "model", "created": app.created, "owned_by": "pipe", "parent": base })
}

async fn models(State(app): State<Arc<App>>) -> Response {
    let all: Vec<Value> = app.models.iter().map(|model| described(&app, model)).collect();
    with_json(StatusCode::OK, &json!({ "object": "list", "data": all }))
}

async fn model(State(app): State<Arc<App>>, Path(name): Path<String>) -> Result<Response, ApiError> {
    Ok(with_json(StatusCode::OK, &described(&app, &*app.model(&name)?)))
}

async fn chat(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    complete(app, Endpoint::Chat, request).await
}

async fn completions(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    complete(app, Endpoint::Completions, request).await
}

async fn complete(app: Arc<App>, endpoint: Endpoint, request: Request) -> Result<Response, ApiError> {
    let began = Instant::now();
    let (parts, body) = request.into_parts();
    check_type(&parts.headers)?;
    let place = app.places.clone().try_acquire_owned().map_err(|_| {
        ApiError::new(StatusCode::TOO_MANY_REQUESTS, "too many requests are open; try again")
            .code("rate_limit_exceeded")
    })?;
    let body = read(body, &parts.headers, app.limits.body).await?;
    let wanted = Wanted::parse(endpoint, &body, app.defaults, random())?;
    drop(body);
    let shape = Shape { endpoint, id: random(), created: now(), model: wanted.model.clone() };
    let (streams, with_usage) = (wanted.stream, wanted.include_usage);
    let mut answer = Answer::begin(app, wanted, place, began).await?;
    if !streams {
        return whole(answer, &shape).await;
    }
    // What goes wrong before the first piece still gets a status of its own.
    let first = answer.next().await?;
    let events = streamed(answer, first, shape, with_usage);
    let mut response = Sse::new(events).keep_alive(KeepAlive::default()).into_response();
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

/// A page of another site can have a browser send anything but JSON without asking.
fn check_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if kind.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let what = "the body must be JSON, with the header Content-Type: application/json";
    Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, what))
}

async fn read(body: Body, headers: &HeaderMap, limit: usize) -> Result<Bytes, ApiError> {
    let over = || ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is larger than {limit} bytes"));
    let told = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if told.is_some_and(|told| told > limit.saturating_add(DISCARDED)) {
        return Err(over());
    }
    let all = async {
        let (mut held, mut size) = (Vec::new(), 0);
        let mut chunks = body.into_data_stream();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|_| ApiError::new(StatusCode::BAD_REQUEST, "the body broke off"))?;
            size += chunk.len();
            match size {
                _ if size <= limit => held.extend_from_slice(&chunk),
                _ if size <= limit.saturating_add(DISCARDED) => held = Vec::new(),
                _ => break,
            }
        }
        if size > limit { Err(over()) } else { Ok(Bytes::from(held)) }
    };
    let slow = |_| ApiError::new(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time");
    tokio::time::timeout(BODY, all).await.map_err(slow)?
}

async fn whole(mut answer: Answer, shape: &Shape) -> Result<Response, ApiError> {
    let (mut text, mut calls) = (String::new(), Vec::new());
    let reason = loop {
        match answer.next().await? {
            Piece::Text(more) => text.push_str(&more),
            Piece::Calls(found) => calls.extend(found),
            Piece::Done(reason) => break reason,
        }
    };
    Ok(with_json(StatusCode::OK, &shape.whole(&text, calls, reason, answer.usage())))
}

/// How far a stream has come.
enum Stage {
    Open,
    Answering,
    Usage,
    Mark,
    Over,
}

struct Streaming {
    answer: Answer,
    waiting: Option<Piece>,
    shape: Shape,
    with_usage: bool,
    stage: Stage,
}

fn streamed(
    answer: Answer,
    first: Piece,
    shape: Shape,
    with_usage: bool,
) -> impl Stream<Item = Result<Event, Infallible>> {
    let stage = if shape.endpoint == Endpoint::Chat { Stage::Open } else { Stage::Answering };
    let streaming = Streaming { answer, waiting: Some(first), shape, with_usage, stage };
    stream::unfold(streaming, |mut streaming| async move {
        let event = streaming.event().await?;
        Some((Ok(event), streaming))
    })
}

impl Streaming {
    async fn event(&mut self) -> Option<Event> {
        match self.stage {
            Stage::Open => {
                self.stage = Stage::Answering;
                Some(data(&self.shape.opening(self.with_usage)))
            }
            Stage::Answering => {
                let piece = match self.waiting.take() {
                    Some(piece) => Ok(piece),
                    None => self.answer.next().await,
                };
                if let Ok(Piece::Done(_)) = &piece {
                    self.stage = if self.with_usage { Stage::Usage } else { Stage::Mark };
                }
                match piece {
                    Ok(piece) => Some(data(&self.shape.chunk(piece, self.with_usage))),
                    Err(error) => {
                        self.stage = Stage::Over;
                        Some(data(&error.body()))
                    }
                }
            }
            Stage::Usage => {
                self.stage = Stage::Mark;
                Some(data(&self.shape.usage(self.answer.usage())))
            }
            Stage::Mark => {
                self.stage = Stage::Over;
                Some(Event::default().data("[DONE]"))
            }
            Stage::Over => None,
        }
    }
}

fn data(value: &Value) -> Event {
    Event::default().data(value.to_string())
}
