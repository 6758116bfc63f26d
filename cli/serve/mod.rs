//! `pipe serve`: a model and its adapters behind OpenAI's HTTP interface, with a small chat page.
//!
//! HTTP, templates and tokenizers live here, in a process without libtorch; the tokens come from one worker. A worker that
//! crashes is an error for the answers it was making, and is started again.

mod answer;
mod app;
mod error;
mod messages;
mod metrics;
mod request;
mod routes;
mod shape;
mod stops;
mod tools;

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::middleware;
use clap::Args;
use pipe_stages::prompter::sampling_defaults;
use pipe_stages::worker::Worker;

use crate::chat::LoadingArgs;
use crate::failure::{Failure, Outcome};
use crate::http::{self, Place, Stop};
use crate::{alone, job, report};
use app::{App, Limits};

/// Serve a model and its adapters over HTTP, as OpenAI's clients expect it, with a chat page.
#[derive(Args, Debug)]
pub struct ServeArgs {
    #[command(flatten)]
    loading: LoadingArgs,
    /// PEFT adapter to serve beside the base, under its folder's name or another. Repeatable.
    #[arg(long = "adapter", value_name = "[NAME=]DIR", value_parser = adapter)]
    adapters: Vec<(Option<String>, PathBuf)>,
    /// The base's name in requests; default its folder's or file's.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Port to listen on; 0 for any that is free.
    #[arg(long, value_name = "N", default_value_t = 8080)]
    port: u16,
    /// Address to listen on; 0.0.0.0 for every one of this machine.
    #[arg(long, value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    host: IpAddr,
    /// Variable of the environment that holds the API key that requests must carry; without a key none is asked for.
    #[arg(long, value_name = "NAME", default_value = "PIPE_API_KEY")]
    api_key_env: String,
    /// Answers decoded together; further ones wait.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1024))]
    max_running: u32,
    /// Requests open at one time, waiting ones included; further ones get status 429.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65536))]
    max_requests: u32,
    /// Longest answer in tokens, whatever a request asks for.
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// Largest body of a request, in bytes.
    #[arg(long, value_name = "BYTES", default_value_t = 4 << 20, value_parser = clap::value_parser!(u32).range(1..))]
    max_body: u32,
    /// Memory for the keys and values of all answers together, in MiB; requests wait until there is room.
    #[arg(long, value_name = "MIB", default_value_t = 2048, value_parser = clap::value_parser!(u32).range(1..))]
    cache_mib: u32,
    /// Seconds from a request to the end of its answer; then it is cut with status 504.
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..))]
    timeout: u32,
    /// Seconds that running answers get to finish after Ctrl-C or SIGTERM.
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    grace: u32,
}

pub fn serve(args: &ServeArgs) -> Outcome {
    let worker = Worker { program: job::worker()? };
    let loading = args.loading.resolve(&worker)?;
    let resolved = args.adapters.iter().map(|(name, folder)| Ok((name.clone(), alone::existing(folder)?)));
    let resolved: Vec<_> = resolved.collect::<Result<_, Failure>>()?;
    let (models, held) = app::models(&loading, args.name.as_deref(), &resolved)?;
    let limits = Limits {
        body: args.max_body as usize,
        max_tokens: args.max_tokens as usize,
        time: Duration::from_secs(args.timeout.into()),
    };
    let defaults = sampling_defaults(&loading.model);
    let app = Arc::new(App::new(models, defaults, limits, args.max_requests as usize, key(&args.api_key_env)?));
    let job = loading.job(held, args.max_running as usize, u64::from(args.cache_mib) << 20);
    let stop = Stop::listen()?;
    http::block_on(listen(args, app.clone(), worker, job, stop))??;
    app.failure().map_or(Ok(()), Err)
}

async fn listen(
    args: &ServeArgs,
    app: Arc<App>,
    worker: Worker,
    job: pipe_stages::generator::ServeJob,
    stop: Stop,
) -> Outcome {
    let listener = http::bind(Place { host: args.host, port: args.port }).await?;
    let place = listener.local_addr().map_err(|e| Failure::stage(format!("cannot listen: {e}")))?;
    if !args.host.is_loopback() && app.key.is_none() {
        report::note(&format!(
            "warning: whoever reaches {place} can use the model; set {} to ask for a key",
            args.api_key_env
        ));
    }
    let names: Vec<&str> = app.models.iter().map(|model| model.name.as_str()).collect();
    report::note(&format!("loading {}", args.loading.model.display()));
    let ready = format!("serving {} on http://{place} (Ctrl-C stops)", names.join(", "));
    let (keeper, told) = (app.clone(), stop.clone());
    std::thread::spawn(move || app::keep_loaded(&keeper, &worker, &job, || report::note(&ready), &told));
    let mut routes = routes::routes(app.clone());
    if args.host.is_loopback() {
        routes = routes.layer(middleware::from_fn(http::same_site));
    }
    http::serve(listener, routes, stop, Duration::from_secs(args.grace.into())).await;
    app.close();
    Ok(())
}

/// The key in a variable of the environment.
fn key(name: &str) -> Result<Option<String>, Failure> {
    match std::env::var(name) {
        Ok(key) if !key.is_empty() => Ok(Some(key)),
        Err(std::env::VarError::NotUnicode(_)) => Err(Failure::invalid(format!("{name} is not text"))),
        _ if name != "PIPE_API_KEY" => {
            Err(Failure::invalid(format!("--api-key-env names {name}, which is not set")).hint("set it to the key"))
        }
        _ => Ok(None),
    }
}

fn adapter(text: &str) -> Result<(Option<String>, PathBuf), String> {
    match text.split_once('=') {
        // A folder whose name has an equals sign is still a folder.
        Some((name, folder)) if !name.is_empty() && !name.contains('/') && !folder.is_empty() => {
            Ok((Some(name.to_string()), PathBuf::from(folder)))
        }
        _ if text.is_empty() => Err("name a folder".to_string()),
        _ => Ok((None, PathBuf::from(text))),
    }
}
