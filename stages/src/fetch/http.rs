//! Reading over HTTP: redirects followed by hand, so that a token stays with its host and a hub's word on a file is heard.

use std::io::Read;
use std::time::Duration;

use ureq::http::{HeaderMap, Response};
use ureq::{Agent, Body};

use super::FetchError;
use super::transfer::{Check, Stream, Trouble};

const MOST_REDIRECTS: usize = 8;
/// The largest listing.
const LARGEST_ANSWER: u64 = 256 << 20;

/// A client with at most one host's token.
pub struct Http {
    agent: Agent,
    /// The address that the token is for, up to its path, and the token.
    token: Option<(String, String)>,
}

/// A response that is no redirect, with what those before it said of the file.
struct Answer {
    response: Response<Body>,
    linked: Option<String>,
}

impl Http {
    pub fn new(token: Option<(String, String)>) -> Http {
        let config = Agent::config_builder()
            .timeout_connect(Some(Duration::from_secs(10)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_per_read(Some(Duration::from_secs(60)))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("pipe/", env!("CARGO_PKG_VERSION")));
        Http { agent: config.build().into(), token }
    }

    /// The text at an address, or the status that came instead.
    pub fn text(&self, url: &str) -> Result<Result<String, u16>, Trouble> {
        let mut answer = self.get(url, &[])?;
        let status = answer.response.status().as_u16();
        if !(200..300).contains(&status) {
            return if is_passing(status) { Err(passing(status, &answer.response)) } else { Ok(Err(status)) };
        }
        let body = answer.response.body_mut().with_config().limit(LARGEST_ANSWER).read_to_string();
        body.map(Ok).map_err(|error| Trouble::Passing(error.to_string(), None))
    }

    /// The bytes at an address from `from` on; the server may start over.
    pub fn stream(&self, url: &str, shown: &str, from: u64, etag: Option<&str>) -> Result<Stream<'static>, Trouble> {
        let range = format!("bytes={from}-");
        let mut headers = Vec::new();
        if from > 0 {
            headers.push(("Range", range.as_str()));
            headers.extend(etag.map(|etag| ("If-Range", etag)));
        }
        let Answer { response, linked } = self.get(url, &headers)?;
        let status = response.status().as_u16();
        let start = match status {
            200 => 0,
            206 => from,
            416 => return Err(Trouble::Changed),
            status if is_passing(status) => return Err(passing(status, &response)),
            status => return Err(Trouble::Lasting(refused(shown, status, self.token.is_some()))),
        };
        let etag = header(response.headers(), "etag");
        let length = response.body().content_length();
        let check = linked.as_deref().or(etag.as_deref()).and_then(Check::of_etag);
        let reader: Box<dyn Read> = Box::new(response.into_body().into_reader());
        Ok(Stream { start, total: length.map(|length| start + length), etag, check, reader })
    }

    fn get(&self, url: &str, headers: &[(&str, &str)]) -> Result<Answer, Trouble> {
        let (mut url, mut linked) = (url.to_string(), None);
        for _ in 0..MOST_REDIRECTS {
            let mut request = self.agent.get(&url);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            if let Some((host, token)) = &self.token
                && url.strip_prefix(host.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            {
                request = request.header("Authorization", format!("Bearer {token}"));
            }
            let response = request.call().map_err(|error| Trouble::Passing(error.to_string(), None))?;
            linked = linked.or(header(response.headers(), "x-linked-etag"));
            match header(response.headers(), "location").filter(|_| response.status().is_redirection()) {
                Some(next) => url = joined(&url, &next),
                None => return Ok(Answer { response, linked }),
            }
        }
        Err(Trouble::Passing(format!("redirected more than {MOST_REDIRECTS} times"), None))
    }
}

/// Another try may help.
fn is_passing(status: u16) -> bool {
    matches!(status, 408 | 425 | 429 | 500..)
}

fn passing(status: u16, response: &Response<Body>) -> Trouble {
    let after = header(response.headers(), "retry-after").and_then(|text| text.trim().parse().ok());
    Trouble::Passing(format!("status {status}"), after.map(Duration::from_secs))
}

/// What a status that will not change means.
pub fn refused(shown: &str, status: u16, has_token: bool) -> FetchError {
    match status {
        401 | 403 if has_token => FetchError::invalid(
            format!("{shown}: the token is refused (status {status})"),
            "check HF_TOKEN, and that its owner has been given access (gated repositories have a form to accept)",
        ),
        401 | 403 => FetchError::invalid(
            format!("{shown}: there is no such repository, or it is private or gated (status {status})"),
            "check the spelling; for a private or gated one set HF_TOKEN to a token that may read it",
        ),
        404 => {
            FetchError::invalid(format!("{shown}: is not there (status 404)"), "check the spelling and the revision")
        }
        status => FetchError::invalid(format!("{shown}: cannot be read (status {status})"), "check the address"),
    }
}

pub fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(|text| text.trim().to_string())
}

/// Where a redirect leads, which may be told from the host's root.
fn joined(url: &str, next: &str) -> String {
    if next.contains("://") {
        return next.to_string();
    }
    let (scheme, rest) = url.split_once("://").unwrap_or(("https", url));
    if let Some(other) = next.strip_prefix("//") {
        return format!("{scheme}://{other}");
    }
    let host = rest.split('/').next().unwrap_or(rest);
    match next.strip_prefix('/') {
        Some(path) => format!("{scheme}://{host}/{path}"),
        None => {
            let folder = url.split('?').next().and_then(|url| url.rsplit_once('/')).map_or(url, |(folder, _)| folder);
            format!("{folder}/{next}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::joined;

    #[test]
    fn redirects_lead_where_they_say() {
        let from = "https://host:1/a/b?x=/y";
        assert_eq!(joined(from, "https://cdn/z"), "https://cdn/z");
        assert_eq!(joined(from, "/c/d"), "https://host:1/c/d");
        assert_eq!(joined(from, "d"), "https://host:1/a/d");
        assert_eq!(joined(from, "//cdn/z"), "https://cdn/z");
    }
}
