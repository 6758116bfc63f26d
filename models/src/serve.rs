//! Many answers at one time: requests join and leave the running batch between tokens.
//!
//! The parent renders, tokenises and reads the answers' text; here are tokens only. Rows of one adapter share a batch; the
//! base is held once. A row is let in when the room it may come to need is free, so the cache never outgrows its limit.

use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc::{Receiver, TryRecvError};

use pipe_files::ModelConfig;
use pipe_job::{Ask, BaseWeights, Command, End, Event, Sampling, ServeJob};
use tch::{Kind, Tensor};

use crate::attention::Cache;
use crate::decoder::Decoder;
use crate::events::Events;
use crate::linear::Pass;
use crate::sample::{self, Cut};
use crate::tunings::Tunings;
use crate::{ModelError, Result, load, random, tuned};

/// Prompt tokens read between two tokens of the running answers, one prompt at least: who answers waits no longer.
const PROMPT_TOKENS: usize = 1024;

/// Below this hidden size the products of a token are done before a second thread has begun.
const SPLIT: usize = 256;

/// Loads the model and answers until the input ends.
pub fn serve(job: &ServeJob, commands: &Receiver<Command>, events: &Events) -> Result<()> {
    let mut decoder = load::load(&job.model.path, job.model.base, job.model.compute, events)?;
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
    waiting: VecDeque<Ask>,
    running: BTreeMap<Option<String>, Batch>,
    most_rows: usize,
    context: usize,
    cache_tokens: usize,
}

impl Row {
    fn new(ask: Ask) -> Self {
        Self { id: ask.id, prompt: ask.ids.len(), ids: ask.ids, sampling: ask.sampling }
    }

    /// Tokens it may come to hold.
    fn most(&self) -> usize {
        self.prompt + self.sampling.max_new_tokens
    }
}

impl<'a> Floor<'a> {
    fn new(decoder: Decoder, job: &ServeJob, events: &'a Events) -> Self {
        let context = decoder.config.max_positions;
        let token = token_bytes(&decoder.config, decoder.compute);
        Self {
            tunings: Tunings::new(decoder),
            events,
            waiting: VecDeque::new(),
            running: BTreeMap::new(),
            most_rows: job.rows.max(1),
            context,
            cache_tokens: (job.cache_bytes / token.max(1)) as usize,
        }
    }

    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    fn take(&mut self, command: Command) -> Result<()> {
        match command {
            Command::Ask(ask) => match self.objection(&ask) {
                Some(message) => self.end(ask.id, End::Refused { message }),
                None => self.waiting.push_back(*ask),
            },
            Command::Stop { id } => self.stop(id),
            Command::Attach { name, path } => {
                let refused = self.tunings.add(&name, &path).err().map(|error| error.to_string());
                self.events.send(&Event::Attached { name, refused });
            }
            Command::Cancel => return Err(ModelError::Cancelled),
        }
        Ok(())
    }

    /// Why a request cannot be answered, whatever else is running.
    fn objection(&self, ask: &Ask) -> Option<String> {
        let vocabulary = self.tunings.decoder().embedding.size()[0];
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
        self.waiting.retain(|ask| ask.id != id);
        let mut found = before > self.waiting.len();
        for batch in self.running.values_mut() {
            if let Some(place) = batch.rows.iter().position(|row| row.id == id) {
                let kept: Vec<usize> = (0..batch.rows.len()).filter(|&other| other != place).collect();
                batch.keep(&kept);
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

    /// Lets waiting requests in, first come first served, as far as rows and cache allow; reads their prompts and says
    /// their first tokens.
    fn admit(&mut self) -> Result<()> {
        let mut read = 0;
        let mut admitted: BTreeMap<Option<String>, Vec<Row>> = BTreeMap::new();
        while let Some(ask) = self.waiting.front() {
            let rows: usize = admitted.values().map(Vec::len).sum::<usize>() + self.rows();
            let late = read > 0 && read + ask.ids.len() > PROMPT_TOKENS;
            if rows >= self.most_rows || late || !self.has_room(&admitted, ask) {
                break;
            }
            let Some(ask) = self.waiting.pop_front() else { break };
            read += ask.ids.len();
            admitted.entry(ask.adapter.clone()).or_default().push(Row::new(ask));
        }
        for (adapter, rows) in admitted {
            self.begin(adapter, rows)?;
        }
        Ok(())
    }

    fn rows(&self) -> usize {
        self.running.values().map(|batch| batch.rows.len()).sum()
    }

    /// Whether the cache holds `ask` beside everything else, each row as long as the longest of its batch may become.
    fn has_room(&self, admitted: &BTreeMap<Option<String>, Vec<Row>>, ask: &Ask) -> bool {
        let mut shapes: BTreeMap<&Option<String>, (usize, usize)> = BTreeMap::new();
        let mut count = |adapter, most: usize| {
            let (rows, longest) = shapes.entry(adapter).or_default();
            *rows += 1;
            *longest = most.max(*longest);
        };
        for (adapter, batch) in &self.running {
            batch.rows.iter().for_each(|row| count(adapter, row.most()));
        }
        for (adapter, rows) in admitted {
            rows.iter().for_each(|row| count(adapter, row.most()));
        }
        count(&ask.adapter, ask.ids.len() + ask.sampling.max_new_tokens);
        shapes.values().map(|(rows, longest)| rows * longest).sum::<usize>() <= self.cache_tokens
    }

    fn begin(&mut self, adapter: Option<String>, rows: Vec<Row>) -> Result<()> {
        let decoder = self.tunings.wear(adapter.as_ref())?;
        let mut cache = decoder.cache();
        cache.bound(rows.iter().map(Row::most).max().unwrap_or(0) as i64);
        let prompts: Vec<Vec<i64>> = rows.iter().map(|row| row.ids.clone()).collect();
        let logits = decoder.prefill(&prompts, &mut cache, Pass::INFERENCE)?;
        let mut batch = Batch { cache, rows, next: Vec::new() };
        batch.choose(&logits, self.events)?;
        match self.running.get_mut(&adapter) {
            Some(running) => running.join(batch, &decoder.config),
            None if batch.rows.is_empty() => {}
            None => drop(self.running.insert(adapter, batch)),
        }
        Ok(())
    }

    /// One token more for every running answer.
    fn step(&mut self) -> Result<()> {
        for (adapter, batch) in &mut self.running {
            let decoder = self.tunings.wear(adapter.as_ref())?;
            let logits = decoder.step(&batch.next, &mut batch.cache, Pass::INFERENCE)?;
            batch.choose(&logits, self.events)?;
        }
        self.running.retain(|_, batch| !batch.rows.is_empty());
        Ok(())
    }
}

impl Batch {
    fn join(&mut self, other: Batch, config: &ModelConfig) {
        if !other.rows.is_empty() {
            self.cache.join(other.cache, config);
            self.rows.extend(other.rows);
            self.next.extend(other.next);
        }
    }

    /// Keeps only these rows.
    fn keep(&mut self, kept: &[usize]) {
        if kept.len() == self.rows.len() {
            return;
        }
        self.cache.keep(kept);
        let mut rows: Vec<Option<Row>> = std::mem::take(&mut self.rows).into_iter().map(Some).collect();
        self.rows = kept.iter().filter_map(|&place| rows[place].take()).collect();
        self.next = kept.iter().filter_map(|&place| self.next.get(place).copied()).collect();
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

/// Bytes of one token's keys and values in all layers.
fn token_bytes(config: &ModelConfig, kind: Kind) -> u64 {
    (2 * config.layers * config.kv_heads * config.head_dim * kind.elt_size_in_bytes()) as u64
}
