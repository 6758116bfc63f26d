//! `pipe ui` over HTTP: the list, a run's page while the run goes on, runs beside each other, and whom it refuses.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use super::crash::with_training;
use super::harness::{Project, address_of, copy_folder};
use super::report::{Tag, squeezed, tags, text};

/// A running server.
struct Served {
    child: Child,
    address: String,
    said: String,
}

impl Served {
    fn start(project: &Project, args: &[&str]) -> Served {
        let mut command = project.command("work", &[&["ui", "--port", "0"], args].concat());
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let (address, said, _) = address_of(&mut child);
        Served { child, address, said }
    }

    /// Sends a request with these headers more.
    fn open(&self, path: &str, headers: &[(&str, &str)]) -> BufReader<TcpStream> {
        let port = self.address.rsplit_once(':').unwrap().1;
        let mut stream = TcpStream::connect(format!("127.0.0.1:{port}")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut head = format!("GET {path} HTTP/1.1\r\nconnection: close\r\n");
        if !headers.iter().any(|(name, _)| *name == "host") {
            head.push_str(&format!("host: {}\r\n", self.address));
        }
        headers.iter().for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
        write!(stream, "{head}\r\n").unwrap();
        BufReader::new(stream)
    }

    /// Status, head and body.
    fn ask(&self, path: &str, headers: &[(&str, &str)]) -> (u16, String, String) {
        let mut answer = String::new();
        self.open(path, headers).read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), head.to_lowercase(), body.to_string())
    }

    fn get(&self, path: &str) -> (u16, String) {
        let (status, _, body) = self.ask(path, &[]);
        (status, body)
    }

    /// A page that must be there, sound, and at home on this server.
    fn page(&self, path: &str) -> String {
        let (status, head, page) = self.ask(path, &[]);
        assert_eq!(status, 200, "{path}: {page}");
        assert!(head.contains("x-frame-options: deny") && head.contains("no-store"), "{head}");
        sound(&page);
        page
    }

    /// The events of a stream so far, up to one of this name: names and ids.
    fn until(stream: &mut BufReader<TcpStream>, awaited: &str) -> Vec<(String, String)> {
        let (mut events, mut name, mut id) = (Vec::new(), String::new(), String::new());
        loop {
            let mut line = String::new();
            assert!(stream.read_line(&mut line).unwrap() > 0, "{awaited} never came: {events:?}");
            if let Some(rest) = line.strip_prefix("event: ") {
                name = rest.trim().to_string();
            }
            if let Some(rest) = line.strip_prefix("id: ") {
                id = rest.trim().to_string();
            }
            if line.trim().is_empty() && !name.is_empty() {
                events.push((std::mem::take(&mut name), std::mem::take(&mut id)));
                if events.last().unwrap().0 == awaited {
                    return events;
                }
            }
        }
    }

    fn signal(&mut self, signal: &str) -> Option<i32> {
        Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap();
        self.child.wait().unwrap().code()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Well formed, one script of its own, no address of another server.
fn sound(page: &str) -> Vec<Tag> {
    let tags = tags(page);
    for tag in &tags {
        for (key, value) in &tag.attributes {
            assert!(!key.starts_with("on"), "<{} {key}>", tag.name);
            if ["src", "href", "action", "data", "srcset", "data-events", "data-body"].contains(&key.as_str()) {
                let is_own = value.starts_with("&#x2f;") && !value.starts_with("&#x2f;&#x2f;");
                let is_local = value.starts_with('/') && !value.starts_with("//");
                assert!(value == "data:," || is_own || is_local, "<{} {key}=\"{value}\">", tag.name);
            }
        }
    }
    assert_eq!(tags.iter().filter(|tag| tag.name == "script").count(), 1);
    assert!(page.contains("default-src 'none'") && page.contains("script-src 'nonce-"), "{page}");
    tags
}

/// A run at work, and the steps of its training as they come.
struct AtWork {
    child: Child,
    steps: Receiver<u64>,
}

impl AtWork {
    fn start(project: &Project, rate: &str) -> AtWork {
        let rate = format!("learning_rate={rate}");
        let long = ["run", "recipe.yml", "--until", "train", "--json", "--set", "num_epochs=4000", "--set", &rate];
        let mut child = project.start_telling(&long);
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (send, steps) = channel();
        // Read to the end, or it would wait for somebody to read.
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let event: serde_json::Value = serde_json::from_str(&line).unwrap();
                let _ = event["step"].as_u64().map(|step| send.send(step));
            }
        });
        AtWork { child, steps }
    }

    /// Waits until so many steps are done.
    fn reach(&self, step: u64) {
        while self.steps.recv_timeout(Duration::from_secs(60)).expect("a step") < step {}
    }

    fn end(&mut self, signal: &str) {
        Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap();
        self.child.wait().unwrap();
    }
}

/// The ids of all runs, oldest first.
fn runs(project: &Project) -> Vec<String> {
    let runs = project.pipe(&["runs", "--json"]).json();
    runs["runs"].as_array().unwrap().iter().map(|run| run["id"].as_str().unwrap().to_string()).collect()
}

fn attribute(page: &str, name: &str) -> Option<String> {
    let value = page.split_once(&format!(" {name}=\""))?.1.split_once('"')?.0;
    Some(value.replace("&#x2f;", "/").replace("&amp;", "&"))
}

#[test]
fn runs_are_listed_shown_and_compared() {
    let project = Project::with_data_recipe();
    let served = Served::start(&project, &[]);
    assert!(squeezed(&text(&served.page("/"))).contains("None yet: pipe run RECIPE"));
    project.run(&["--set", "report.title=First"]);
    project.run(&["--set", "sequence_len=64"]);
    let ids = runs(&project);
    let list = served.page("/");
    assert!(ids.iter().all(|id| list.contains(&format!("href=\"/runs/{id}\""))), "{list}");
    let told = squeezed(&text(&list));
    let (first, second) = (told.find("First").unwrap(), told.find("recipe 2").unwrap());
    assert!(second < first && told.contains(" reused"), "the latest is the first: {told}");

    let page = served.page(&format!("/runs/{}", ids[0]));
    let shown = squeezed(&text(&page));
    assert!(page.contains("<title>First</title>") && shown.contains("tokenize.docker it has not run yet run 20"));
    assert!(!page.contains("data-events"), "a run that has ended is not followed");
    assert!(served.page("/runs/last").contains(&ids[1]), "as pipe runs names it");

    let compared = served.page(&format!("/compare?run={}&run={}&run={}", ids[0], ids[1], ids[0]));
    assert!(compared.contains("<title>2 runs compared</title>"), "{compared}");
    let row = |name: &str| {
        let row = compared.split("<tr>").find(|row| row.contains(&format!("<th class=\"mono\">{name}</th>")));
        let row = row.map(|row| row.split("</tr>").next().unwrap());
        row.map(|row| squeezed(&text(&format!("<body>{row}<script>"))))
    };
    assert_eq!(row("sequence_len").unwrap(), "sequence_len 128 64");
    assert_eq!(row("report.title").unwrap(), "report.title First not set");
    assert_eq!(row("pack.train: sequence_len").unwrap(), "pack.train: sequence_len 128 64");
    assert_eq!(row("base_model"), None, "what is the same is not shown");

    // The same in a file.
    let said = project.pipe(&["report", &ids[0], "--compare", &ids[1], "--output", "-"]);
    let link = format!("<a href=\"/runs/{}\">", ids[0]);
    assert!(said.code == 0 && compared.contains(&link) && !said.stdout.contains("<a "), "{}", said.stdout);
    assert!(said.stdout.contains("<th class=\"mono\">sequence_len</th>"), "{}", said.stdout);
    assert_eq!(project.pipe(&["report", "last", "--compare", "last"]).code, 2);

    for (path, status, word) in [
        ("/runs/none", 404, "there is no run `none`"),
        ("/runs/..%2F..%2Fetc", 404, "there is no run"),
        ("/compare?run=none", 404, "there is no run `none`"),
        ("/compare", 400, "choose two to 8 different runs to compare, not 0"),
        (&format!("/compare?run={}", ids[0]), 400, "not 1"),
        ("/nowhere", 404, "there is no page /nowhere"),
    ] {
        let (found, page) = served.get(path);
        sound(&page);
        let told = squeezed(&text(&page));
        assert!(found == status && told.contains(word) && told.contains("All runs"), "{path}: {found} {told}");
    }
    let (status, head, body) = served.ask("/runs/none/body", &[]);
    assert!(status == 404 && head.contains("text/plain") && body.starts_with("there is no run"), "{head} {body}");
    assert_eq!(served.get("/runs/none/events").0, 404);
}

#[test]
fn names_and_recipes_stay_text() {
    let project = Project::with_data_recipe();
    let hostile = "<img src=x onerror=alert(1)>\"'&\u{202e}";
    let recipe = project.read("recipe.yml");
    let title = serde_json::json!(format!("</title><script>{hostile}"));
    let name = "<svg onload=alert(2)>&'.yml";
    project.write(name, &format!("{recipe}report:\n  title: {title}\n"));
    assert_eq!(project.pipe(&["run", name]).code, 0);
    let id = &runs(&project)[0];
    let store = project.path("work/.pipe/runs");
    let other = "9<b>#?&\"%41 +";
    copy_folder(&store.join(id), &store.join(other));
    let served = Served::start(&project, &[]);
    let list = served.page("/");
    let links: Vec<String> = list.match_indices("<a href=\"/runs/").map(|(at, _)| list[at + 9..].to_string()).collect();
    let links: Vec<&str> = links.iter().map(|link| link.split_once('"').unwrap().0).collect();
    assert_eq!(links.len(), 2, "{links:?}");
    for link in &links {
        let page = served.page(link);
        let told = text(&page);
        assert!(told.contains("</title><script><img src=x onerror=alert(1)>"), "{told}");
        assert!(told.contains("<svg onload=alert(2)>&'.yml") && !page.contains('\u{202e}'));
    }
    let chosen = "/compare?run=9%3Cb%3E%23%3F%26%22%2541+%2B&run=last";
    assert_eq!(served.get(chosen).0, 400, "the copy is the last one");
    let compared = served.page(&format!("/compare?run=9%3Cb%3E%23%3F%26%22%2541+%2B&run={id}"));
    assert!(text(&compared).contains(other), "{compared}");
}

#[test]
fn a_run_is_followed_while_it_goes_on_and_to_its_end() {
    let project = with_training();
    let served = Served::start(&project, &[]);
    let mut list = served.open(&attribute(&served.page("/"), "data-events").unwrap(), &[]);
    for (signal, result) in [("-INT", "interrupted"), ("-KILL", "killed")] {
        let mut run = AtWork::start(&project, &format!("0.01{}", result.len()));
        run.reach(3);
        Served::until(&mut list, "changed");
        assert!(squeezed(&text(&served.page("/"))).contains("running"));
        let page = served.page("/runs/last");
        let (events, body) = (attribute(&page, "data-events").unwrap(), attribute(&page, "data-body").unwrap());
        assert!(squeezed(&text(&page)).contains("train step "), "how far it is");
        let mut stream = served.open(&events, &[]);
        let drawn = |page: &str| attribute(page, "data-points").unwrap().split(';').count();
        let before = drawn(&page);
        // The page was made before the stream was opened; the run has been training since.
        run.reach(before as u64 + 5);
        let state = Served::until(&mut stream, "changed").pop().unwrap().1;
        assert!(!state.is_empty() && !events.ends_with(&state));
        let (status, part) = served.get(&body);
        assert!(status == 200 && drawn(&part) > before && !part.contains("<html"), "{part}");
        run.end(signal);
        let ended = Served::until(&mut stream, "ended");
        assert!(ended.len() > 1, "the end is a change: {ended:?}");
        let told = squeezed(&text(&served.page("/runs/last")));
        assert!(told.contains(&format!("recipe {result}")), "{told}");
        // Who has seen the last state is told of no change.
        let seen = &ended[ended.len() - 2].1;
        let id = runs(&project).pop().unwrap();
        let mut again = served.open(&format!("/runs/{id}/events"), &[("last-event-id", seen)]);
        assert_eq!(Served::until(&mut again, "ended").len(), 1);
        let mut anew = served.open(&format!("/runs/{id}/events"), &[]);
        assert_eq!(Served::until(&mut anew, "ended").len(), 2);
    }
}

#[test]
fn curves_of_runs_lie_over_each_other() {
    let project = with_training();
    let short = ["--until", "train", "--set", "num_epochs=1"];
    let steps = |rate: &str| {
        let ran = project.run(&[&short[..], &["--set", rate]].concat());
        ran.events.iter().filter(|event| event["event"] == "metric").count()
    };
    let steps = [steps("learning_rate=0.01"), steps("learning_rate=0.02")];
    assert!(steps[0] > 1);
    let ids = runs(&project);
    let served = Served::start(&project, &[]);
    let compared = served.page(&format!("/compare?run={}&run={}", ids[0], ids[1]));
    let loss = compared.split("<figure").find(|figure| figure.contains("loss, nats per trained token")).unwrap();
    for (id, steps) in ids.iter().zip(steps) {
        let name = format!("recipe {}", id.rsplit_once('-').unwrap().1);
        let line = loss.split("<path").find(|line| line.contains(&format!("data-name=\"{name}\""))).expect(&name);
        assert_eq!(attribute(line, "data-points").unwrap().split(';').count(), steps);
    }
    let told = squeezed(&text(&compared));
    for curve in ["learning rate", "gradient norm", "tokens per second", "memory", "learning_rate 0.01 0.02"] {
        assert!(told.contains(curve), "{curve} in {told}");
    }
}

#[test]
fn only_this_machines_pages_are_answered_unless_it_is_told_otherwise() {
    let project = Project::with_data_recipe();
    let served = Served::start(&project, &[]);
    assert!(served.address.starts_with("127.0.0.1:") && !served.said.contains("warning"), "{}", served.said);
    for (header, status) in [
        (("host", "evil.example"), 403),
        (("host", "localhost:1"), 200),
        (("origin", "http://evil.example"), 403),
        (("origin", "null"), 403),
    ] {
        for path in ["/", "/body", "/compare"] {
            let found = served.ask(path, &[header]).0;
            assert!(found == status || (path == "/compare" && found == 400 && status == 200), "{header:?} {path}");
        }
    }
    let open = Served::start(&project, &["--host", "0.0.0.0"]);
    assert!(open.said.contains("warning: whoever reaches 0.0.0.0:"), "{}", open.said);
    assert_eq!(open.ask("/", &[("host", "machine.example")]).0, 200);
}

#[test]
fn it_stops_at_once_and_says_what_is_in_its_way() {
    let project = with_training();
    let mut run = AtWork::start(&project, "0.01");
    run.reach(1);
    for signal in ["-INT", "-TERM"] {
        let mut served = Served::start(&project, &[]);
        let mut stream = served.open("/runs/last/events", &[]);
        Served::until(&mut stream, "changed");
        let began = Instant::now();
        assert_eq!(served.signal(signal), Some(0));
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
        let mut rest = String::new();
        assert!(stream.read_to_string(&mut rest).is_ok(), "the stream ends in order");
    }
    run.end("-KILL");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let said = project.pipe(&["ui", "--port", &port]);
    assert_eq!(said.code, 3, "{}", said.stderr);
    assert!(said.stderr.contains(&format!("cannot listen on 127.0.0.1:{port}")) && said.stderr.contains("--port 0"));
    assert_eq!(project.pipe(&["ui", "--port", "70000"]).code, 2);
    assert_eq!(project.pipe(&["ui", "--host", "nowhere.example"]).code, 2);
}
