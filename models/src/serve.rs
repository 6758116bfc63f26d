//! Many answers at one time: requests join and leave the running batch between tokens.
//!
//! The parent renders, tokenises and reads the answers' text; here are tokens only. Rows of one adapter share a batch; the
//! base is held once. A row takes blocks of the cache as it grows. When they run out, the youngest row gives its own back and
//! is read again later: it waits, and says what it would have said. Requests that begin alike read their beginning once.

use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc::{Receiver, TryRecvError};

use pipe_job::{Ask, BaseWeights, CacheFill, Command, End, Event, Sampling, ServeJob};
use tch::{Kind, Tensor};

use crate::cache::{Blocks, Cache, token_bytes};
use crate::decoder::Decoder;
use crate::events::Events;
use crate::linear::Pass;
use crate::pool::{Content, blocks_of};
use crate::sample::{self, Cut};
use crate::tunings::Tunings;
use crate::{ModelError, Result, load, random, tuned};

/// Prompt tokens read between two tokens of the running answers, one prompt at least: who answers waits no longer.
const PROMPT_TOKENS: usize = 1024;

/// Below this hidden size the products of a token are done before a second thread has begun.
const SPLIT: usize = 256;

/// Loads the model and answers until the input ends.
pub fn serve(job: &ServeJob, commands: &Receiver<Command>, events: &Events) -> Result<()> {
    let mut decoder = load::load_stored(&job.model.path, job.model.base, job.model.compute, events)?;
    if job.model.base != BaseWeights::Dense {
        tuned::densify(&mut decoder);
    }
    if decoder.config.hidden < SPLIT {
        tch::set_num_threads(1);
    }
    let mut floor = Floor::new(decoder, job, events);
    for (name, path) in &job.adapters {
        floor.tunings.add(name, path)?;
    }
    events.send(&Event::Ready { context: floor.context, cache_tokens: floor.cache_tokens });
    loop {
        while let Some(command) = next(commands, floor.is_idle())? {
            floor.take(command)?;
        }
        floor.admit()?;
        floor.step()?;
        floor.tell();
    }
}

/// The next command: waits for one when there is nothing else to do. The end of the input ends the work.
fn next(commands: &Receiver<Command>, idle: bool) -> Result<Option<Command>> {
    if idle {
        return commands.recv().map(Some).map_err(|_| ModelError::Cancelled);
    }
    match commands.try_recv() {
        Ok(command) => Ok(Some(command)),
        Err(TryRecvError::Empty) => Ok(None),
        Err(TryRecvError::Disconnected) => Err(ModelError::Cancelled),
    }
}

/// One answer in the making.
struct Row {
    id: u64,
    adapter: Option<String>,
    /// Requests before it.
    arrival: u64,
    /// Tokens of the prompt.
    prompt: usize,
    /// Prompt and answer so far.
    ids: Vec<i64>,
    sampling: Sampling,
}

/// Rows of one adapter with their cache; `next` is each row's token that the network has not seen.
struct Batch {
    cache: Cache,
    rows: Vec<Row>,
    next: Vec<i64>,
}

/// Everything that is being answered or waits to be.
struct Floor<'a> {
    tunings: Tunings,
    events: &'a Events,
    blocks: Blocks,
    /// Under which name the rows of each adapter share blocks.
    roots: BTreeMap<Option<String>, Option<Content>>,
    /// First come, first served.
    waiting: VecDeque<Row>,
    running: BTreeMap<Option<String>, Batch>,
    most_rows: usize,
    context: usize,
    cache_tokens: usize,
    arrivals: u64,
    /// What was last told of the cache.
    told: CacheFill,
    preempted: u64,
}

impl Row {
    /// Tokens it may come to hold.
    fn most(&self) -> usize {
        self.prompt + self.sampling.max_new_tokens
    }
}

impl<'a> Floor<'a> {
    fn new(decoder: Decoder, job: &ServeJob, events: &'a Events) -> Self {
        let context = decoder.config.max_positions;
        let cache_tokens = (job.cache_bytes / token_bytes(&decoder.config, decoder.compute).max(1) as u64) as usize;
        let most_rows = job.rows.max(1);
        let most = match job.cache_bytes {
            u64::MAX => most_rows * blocks_of(context),
            _ => blocks_of(cache_tokens),
        };
        let blocks = Blocks::new(&decoder.config, decoder.compute, most);
        Self {
            tunings: Tunings::new(decoder),
            events,
            blocks,
            roots: BTreeMap::new(),
            waiting: VecDeque::new(),
            running: BTreeMap::new(),
            most_rows,
            context,
            cache_tokens,
            arrivals: 0,
            told: CacheFill::default(),
            preempted: 0,
        }
    }

    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    fn take(&mut self, command: Command) -> Result<()> {
        match command {
            Command::Ask(ask) => match self.objection(&ask) {
                Some(message) => self.end(ask.id, End::Refused { message }),
                None => self.wait(*ask),
            },
            Command::Stop { id } => self.stop(id),
            Command::Attach { name, path } => {
                let refused = self.tunings.add(&name, &path).err().map(|error| error.to_string());
                // What an earlier one of that name had read is not the new one's.
                self.roots.remove(&Some(name.clone()));
                self.events.send(&Event::Attached { name, refused });
            }
            Command::Cancel => return Err(ModelError::Cancelled),
        }
        Ok(())
    }

    fn wait(&mut self, ask: Ask) {
        let Ask { id, adapter, ids, sampling } = ask;
        self.arrivals += 1;
        self.waiting.push_back(Row { id, adapter, arrival: self.arrivals, prompt: ids.len(), ids, sampling });
    }

    /// Why a request cannot be answered, whatever else is running.
    fn objection(&self, ask: &Ask) -> Option<String> {
        let vocabulary = self.tunings.decoder().vocabulary();
        let longest = ask.ids.len() + ask.sampling.max_new_tokens;
        if ask.ids.is_empty() {
            return Some("the prompt is empty; give it at least one token".to_string());
        }
        if let Some(id) = ask.ids.iter().find(|&&id| id < 0 || id >= vocabulary) {
            return Some(format!("token id {id} lies outside the model's vocabulary of {vocabulary}"));
        }
        if longest > self.context {
            return Some(format!("{longest} tokens are more than the model was made for, {}", self.context));
        }
        if longest > self.cache_tokens {
            return Some(format!("{longest} tokens are more than the cache holds, {}", self.cache_tokens));
        }
        if !self.tunings.has(ask.adapter.as_ref()) {
            return Some(format!("there is no adapter {}", ask.adapter.as_deref().unwrap_or_default()));
        }
        None
    }

    fn stop(&mut self, id: u64) {
        let before = self.waiting.len();
        self.waiting.retain(|row| row.id != id);
        let mut found = before > self.waiting.len();
        for batch in self.running.values_mut() {
            if let Some(place) = batch.rows.iter().position(|row| row.id == id) {
                batch.remove(place);
                found = true;
            }
        }
        self.running.retain(|_, batch| !batch.rows.is_empty());
        if found {
            self.end(id, End::Stopped);
        }
    }

    fn end(&self, id: u64, end: End) {
        self.events.send(&Event::Ended { id, end });
    }

    /// Lets waiting requests in, first come first served, as far as rows and blocks allow; reads of their prompts what is not
    /// known and says their first tokens.
    fn admit(&mut self) -> Result<()> {
        let mut read = 0;
        let mut admitted: BTreeMap<Option<String>, Batch> = BTreeMap::new();
        while let Some(row) = self.waiting.pop_front() {
            let root = *self.roots.entry(row.adapter.clone()).or_insert_with(|| self.blocks.root());
            let batch = admitted.entry(row.adapter.clone()).or_insert_with(|| Batch::new(self.blocks.cache(root)));
            let unread = row.ids.len() - batch.cache.known(&row.ids);
            let late = read > 0 && read + unread > PROMPT_TOKENS;
            let cost = batch.cache.cost(&row.ids) + self.promised(&row, blocks_of(row.ids.len()));
            let running = self.running.values().chain(admitted.values());
            let (rows, promised) = running.fold((0, 0), |(rows, promised), batch| {
                let own = batch.rows.iter().enumerate().map(|(place, row)| self.promised(row, batch.cache.held(place)));
                (rows + batch.rows.len(), promised + own.sum::<usize>())
            });
            if rows >= self.most_rows || late || cost + promised > self.blocks.fill().free {
                self.waiting.push_front(row);
                break;
            }
            read += unread;
            if let Some(batch) = admitted.get_mut(&row.adapter) {
                batch.cache.open(&row.ids)?;
                batch.rows.push(row);
            }
        }
        admitted.retain(|_, batch| !batch.rows.is_empty());
        admitted.into_iter().try_for_each(|(adapter, batch)| self.begin(adapter, batch))
    }

    /// Blocks that must stay free for a row beside the `held` it has. One is enough to go on for a while; where reading it
    /// again would not give the same, all that it may ever need.
    fn promised(&self, row: &Row, held: usize) -> usize {
        let rest = blocks_of(row.most()).saturating_sub(held);
        if self.blocks.keys_depend_on_length() { rest } else { rest.min(1) }
    }

    fn begin(&mut self, adapter: Option<String>, mut batch: Batch) -> Result<()> {
        let decoder = self.tunings.wear(adapter.as_ref())?;
        let prompts: Vec<Vec<i64>> = batch.rows.iter().map(|row| row.ids.clone()).collect();
        let logits = decoder.read(&prompts, &mut batch.cache, Pass::INFERENCE)?;
        batch.choose(&logits, self.events)?;
        match self.running.get_mut(&adapter) {
            Some(running) => running.join(batch),
            None if batch.rows.is_empty() => {}
            None => drop(self.running.insert(adapter, batch)),
        }
        Ok(())
    }

    /// One token more for every running answer.
    fn step(&mut self) -> Result<()> {
        self.make_room();
        for (adapter, batch) in &mut self.running {
            let decoder = self.tunings.wear(adapter.as_ref())?;
            let logits = decoder.step(&batch.next, &mut batch.cache, Pass::INFERENCE)?;
            batch.choose(&logits, self.events)?;
        }
        self.running.retain(|_, batch| !batch.rows.is_empty());
        Ok(())
    }

    /// Sends the youngest rows back to wait until every other has room for its next token. The oldest always has: it alone
    /// fits the cache.
    fn make_room(&mut self) {
        while self.running.values().map(|batch| batch.cache.full_rows()).sum::<usize>() > self.blocks.fill().free {
            let all = self.running.values_mut().flat_map(|batch| {
                let places: Vec<(u64, usize)> = batch.rows.iter().map(|row| row.arrival).zip(0..).collect();
                places.into_iter().max().map(|(arrival, place)| (arrival, place, batch))
            });
            let Some((_, place, batch)) = all.max_by_key(|(arrival, ..)| *arrival) else { return };
            if let Some(row) = batch.remove(place) {
                self.waiting.push_front(row);
            }
            self.preempted += 1;
            self.running.retain(|_, batch| !batch.rows.is_empty());
        }
    }

    /// Tells how full the cache is, when that has changed.
    fn tell(&mut self) {
        let fill = self.blocks.fill();
        let now = CacheFill { used: fill.used, free: fill.free, found: fill.found, preempted: self.preempted };
        if std::mem::replace(&mut self.told, now) != now {
            self.events.send(&Event::Cache(now));
        }
    }
}

impl Batch {
    fn new(cache: Cache) -> Self {
        Self { cache, rows: Vec::new(), next: Vec::new() }
    }

    fn join(&mut self, other: Batch) {
        self.cache.join(other.cache);
        self.rows.extend(other.rows);
        self.next.extend(other.next);
    }

    /// Takes a row out.
    fn remove(&mut self, place: usize) -> Option<Row> {
        let kept: Vec<usize> = (0..self.rows.len()).filter(|&other| other != place).collect();
        self.keep(&kept).pop()
    }

    /// Keeps only these rows; the others come back.
    fn keep(&mut self, kept: &[usize]) -> Vec<Row> {
        if kept.len() == self.rows.len() {
            return Vec::new();
        }
        self.cache.keep(kept);
        let mut rows: Vec<Option<Row>> = std::mem::take(&mut self.rows).into_iter().map(Some).collect();
        self.rows = kept.iter().filter_map(|&place| rows[place].take()).collect();
        self.next = kept.iter().filter_map(|&place| self.next.get(place).copied()).collect();
        rows.into_iter().flatten().collect()
    }

    /// Chooses each row's next token from logits `[rows, vocabulary]` and says it; rows that are done leave.
    fn choose(&mut self, logits: &Tensor, events: &Events) -> Result<()> {
        let likeliest = Vec::<i64>::try_from(logits.argmax(1, false))?;
        let (mut said, mut ended, mut kept) = (Vec::new(), Vec::new(), Vec::new());
        self.next.clear();
        for (place, row) in self.rows.iter_mut().enumerate() {
            let token = row.choose(logits, place, likeliest[place])?;
            self.next.push(token);
            if row.sampling.stop.contains(&token) {
                ended.push((row.id, End::Stop));
                continue;
            }
            row.ids.push(token);
            said.push((row.id, token));
            match row.ids.len() < row.most() {
                true => kept.push(place),
                false => ended.push((row.id, End::Length)),
            }
        }
        if !said.is_empty() {
            events.send(&Event::Tokens { tokens: said });
        }
        ended.into_iter().for_each(|(id, end)| events.send(&Event::Ended { id, end }));
        self.keep(&kept);
        Ok(())
    }
}

impl Row {
    /// The next token; `likeliest` is that of the untouched scores. A draw depends on seed and place in the answer alone.
    fn choose(&self, logits: &Tensor, place: usize, likeliest: i64) -> Result<i64> {
        let how = &self.sampling;
        let penalised = how.repetition_penalty != 1.0 || how.presence_penalty != 0.0 || how.frequency_penalty != 0.0;
        if how.temperature <= 0.0 && !penalised {
            return Ok(likeliest);
        }
        let mut scores = Vec::<f32>::try_from(logits.get(place as i64).to_kind(Kind::Float))?;
        sample::penalise(&mut scores, &self.ids, how.repetition_penalty);
        let answer = &self.ids[self.prompt..];
        sample::discourage(&mut scores, answer, how.presence_penalty, how.frequency_penalty);
        if how.temperature <= 0.0 {
            return Ok(sample::largest(&scores));
        }
        let cut = Cut { temperature: how.temperature, top_p: how.top_p, top_k: how.top_k };
        Ok(sample::draw(&scores, cut, random::unit(random::mix(how.seed, 0), answer.len() as u64)))
    }
}
