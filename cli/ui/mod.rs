//! `pipe ui`: the pages of a store's runs in a browser, following those that are at work. Reads only.

mod routes;
mod subject;
mod watch;

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use axum::middleware;
use clap::Args;

use crate::args::StoreArgs;
use crate::failure::{Failure, Outcome};
use crate::http::{self, Place, Stop};
use crate::{open, report};

/// How long pages that are being made get to finish after Ctrl-C.
const GRACE: Duration = Duration::from_secs(5);

/// Look at runs in a browser: the list, each run's page, live while it goes on, and runs beside each other.
#[derive(Args, Debug)]
pub struct UiArgs {
    /// Port to listen on; 0 for any that is free.
    #[arg(long, value_name = "N", default_value_t = 8090)]
    port: u16,
    /// Address to listen on; 0.0.0.0 for every one of this machine.
    #[arg(long, value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    host: IpAddr,
    #[command(flatten)]
    store: StoreArgs,
}

pub fn ui(args: &UiArgs) -> Outcome {
    let stop = Stop::listen()?;
    http::block_on(listen(args, stop))?
}

async fn listen(args: &UiArgs, stop: Stop) -> Outcome {
    let store = open::store_here(&args.store);
    let listener = http::bind(Place { host: args.host, port: args.port }).await?;
    let place = listener.local_addr().map_err(|e| Failure::stage(format!("cannot listen: {e}")))?;
    if !args.host.is_loopback() {
        report::note(&format!("warning: whoever reaches {place} can read the runs, their recipes and rows"));
    }
    report::note(&format!("runs of {} on http://{place} (Ctrl-C stops)", store.display()));
    let mut routes = routes::routes(store, stop.clone());
    if args.host.is_loopback() {
        routes = routes.layer(middleware::from_fn(http::same_site));
    }
    http::serve(listener, routes, stop, GRACE).await;
    Ok(())
}
