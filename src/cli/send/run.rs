//! A run of `send`: reads inputs one after the other, delivers events in batches, then records the
//! position and keeps refused lines.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use std::ops::Range;

use anyhow::{Context, bail};

use super::SendArgs;
use super::delivery::{BatchPoster, BatchResult};
use super::input::{InputCursor, InputItem, SendInput};
use super::input_reader::{self, InputReader, NextChunk};
use super::position::{InputEntry, InputMismatch, STDIN, SendPosition};
use super::rejects::{self, RejectedLine, RejectsWriter};
use super::sources::{self, InputSource};
use super::stop_signal::StopSignal;
use crate::cli::UsageError;
use crate::cli::client::PATIENCE;
use crate::cli::number_format::count_of;
use crate::clock::Stopwatch;

/// Longest time that an event waits for its batch to fill.
const LINGER: Duration = Duration::from_secs(1);
/// How often a stop signal is checked for.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Most notes on inputs that are printed.
const MAX_NOTES: usize = 100;
/// Size at which a batch is sent; a server accepts 20 MiB per request by default.
const BATCH_BYTES: usize = 4 << 20;

/// A record of the batch, sent or refused.
struct BatchItem {
    input: usize,
    line: u64,
    /// Range of its bytes in [`SendBatch::raw`].
    raw: Range<usize>,
    refused: Option<(String, String)>,
}

/// Events that are delivered together, and the refused records among them.
#[derive(Default)]
struct SendBatch {
    body: Vec<u8>,
    /// Lines of the body, including their line feeds.
    lines: Vec<Range<usize>>,
    /// Index into `items` of each line.
    sent: Vec<usize>,
    items: Vec<BatchItem>,
    raw: Vec<u8>,
    since: Option<Stopwatch>,
}

impl SendBatch {
    fn is_full(&self, events: u32) -> bool {
        self.lines.len() >= events as usize
            // Refused records are held until the batch ends, so they count toward its size, too.
            || self.items.len() >= 10_000
            || self.body.len() >= BATCH_BYTES
            || self.raw.len() >= BATCH_BYTES
    }

    fn clear(&mut self) {
        self.body.clear();
        self.lines.clear();
        self.sent.clear();
        self.items.clear();
        self.raw.clear();
        self.since = None;
    }
}

/// What later refusals need to know of an input that has ended.
struct InputInfo {
    name: String,
    header: Option<Vec<u8>>,
}

struct SendRun<'a> {
    args: &'a SendArgs,
    poster: BatchPoster,
    stop: StopSignal,
    position: SendPosition,
    rejects: RejectsWriter,
    batch: SendBatch,
    inputs: Vec<InputInfo>,
    /// Positions of ended inputs whose last events are in the batch.
    cursors: Vec<InputCursor>,
    accepted: u64,
    skipped: u64,
    /// Events that got an id of this run.
    generated_ids: u64,
    notes: Vec<String>,
    /// A signal stopped the run before all inputs were read.
    interrupted: bool,
    read: Arc<AtomicU64>,
    progress: indicatif::ProgressBar,
    sized: bool,
}

pub(in crate::cli) fn run(args: &SendArgs) -> anyhow::Result<()> {
    let mut notes = Vec::new();
    let sources = sources::expand(&args.files, &output_files(args), &mut notes)?;
    let id = getrandom::u64()
        .map_err(|error| anyhow::anyhow!("no randomness for the run's id: {error}"))?;
    let (position, entries) = begin(args, &sources, &format!("{id:016x}"))?;
    let stop = StopSignal::listen()?;
    let poster = BatchPoster::new(
        args.server.server(PATIENCE)?,
        Duration::from_secs(args.patience),
        stop.clone(),
    );
    let (progress, sized) = progress(&sources);
    let mut run = SendRun {
        args,
        poster,
        stop,
        position,
        rejects: RejectsWriter::new(args.rejects.as_deref())?,
        batch: SendBatch::default(),
        inputs: Vec::new(),
        cursors: Vec::new(),
        accepted: 0,
        skipped: 0,
        generated_ids: 0,
        notes,
        interrupted: false,
        read: Arc::new(AtomicU64::new(0)),
        progress,
        sized,
    };
    if let Some(path) = &args.resume {
        // Before anything is sent, because it holds the run's id: after a crash, events that were
        // sent but not recorded must get the same ids again.
        run.position.write(path)?;
    }
    let ended = run.all(&sources, &entries);
    run.progress.finish_and_clear();
    run.report(ended)
}

/// Files that this command writes, which must not be sent.
fn output_files(args: &SendArgs) -> Vec<PathBuf> {
    let kept = args.rejects.iter().flat_map(|path| [path.clone(), rejects::reasons(path)]);
    kept.chain(args.resume.clone()).collect()
}

/// The position to start from, and the entry of each source in it.
fn begin(
    args: &SendArgs,
    sources: &[InputSource],
    id: &str,
) -> anyhow::Result<(SendPosition, Vec<usize>)> {
    let kept =
        args.resume.as_deref().map(|path| SendPosition::read(path, id)).transpose()?.flatten();
    let mut position = kept.unwrap_or_else(|| SendPosition::new(id.to_owned()));
    if position.old_events.is_some() && sources.len() != 1 {
        let message =
            "the position is one of an earlier release, which knew one input: name that one alone";
        bail!(UsageError(message.to_owned()));
    }
    let named = sources.iter().map(|source| {
        let InputSource::File(path) = source else { return Ok((STDIN.to_owned(), None)) };
        // A later run may start in another directory.
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.clone());
        Ok((absolute.display().to_string(), input_reader::identity_of(source)?))
    });
    let named: Vec<_> = named.collect::<anyhow::Result<_>>()?;
    let entries = position.resolve(&named, |at, entry| starts_with_sent(&sources[at], entry))?;
    Ok((position, entries))
}

/// Whether an input begins with what was sent of it.
fn starts_with_sent(source: &InputSource, entry: &InputEntry) -> anyhow::Result<bool> {
    let feed = InputReader::open(source, Arc::default())?;
    let (mut left, mut hasher) = (entry.offset, blake3::Hasher::new());
    while left > 0 {
        match feed.next(Duration::from_secs(3600)) {
            NextChunk::Chunk(part) => {
                let of_it = usize::try_from(left).unwrap_or(usize::MAX).min(part.len());
                hasher.update(&part[..of_it]);
                left -= of_it as u64;
            }
            NextChunk::Pending => {}
            NextChunk::End => return Ok(false),
            NextChunk::Failed(error) => {
                return Err(error).with_context(|| format!("cannot read {}", source.name()));
            }
        }
    }
    Ok(hasher.finalize().to_hex().as_str() == entry.hash)
}

impl SendRun<'_> {
    fn all(&mut self, sources: &[InputSource], entries: &[usize]) -> anyhow::Result<()> {
        for (at, (source, entry)) in sources.iter().zip(entries).enumerate() {
            let entry = (*entry, &self.position.inputs[*entry]);
            let mut input =
                SendInput::open(self.args, source, entry, &self.position.run, self.read.clone())?;
            input.pass_old_events(self.position.old_events.unwrap_or(0));
            self.inputs.push(InputInfo { name: input.name.clone(), header: None });
            self.one(&mut input)?;
            if self.stop.is_requested() {
                self.interrupted |= at + 1 < sources.len();
                break;
            }
        }
        self.flush(None)
    }

    fn one(&mut self, input: &mut SendInput) -> anyhow::Result<()> {
        let mut stopping = false;
        loop {
            if !stopping && self.stop.is_requested() {
                stopping = true;
                self.interrupted = !input.stop()?;
            }
            let due = self.batch.since.as_ref().map(|since| LINGER.saturating_sub(since.elapsed()));
            let from = self.batch.body.len();
            let next =
                input.next(due.unwrap_or(POLL_INTERVAL).min(POLL_INTERVAL), &mut self.batch.body);
            if next.is_err() {
                // Events before the error are valid and must not be lost.
                self.flush(Some(input))?;
            }
            match next? {
                InputItem::Event { record, id_generated: made_up, refused } => {
                    let raw = self.batch.raw.len();
                    self.batch.raw.extend_from_slice(input.bytes(&record));
                    let refused = refused.map(|(code, message)| (code.to_owned(), message));
                    if refused.is_none() {
                        self.batch.body.push(b'\n');
                        self.batch.lines.push(from..self.batch.body.len());
                        self.batch.sent.push(self.batch.items.len());
                        self.generated_ids += u64::from(made_up);
                    }
                    let item = BatchItem {
                        input: self.inputs.len() - 1,
                        line: record.line,
                        raw: raw..self.batch.raw.len(),
                        refused,
                    };
                    self.batch.items.push(item);
                    self.batch.since.get_or_insert_with(Stopwatch::start);
                    if self.batch.is_full(self.args.batch) {
                        self.flush(Some(input))?;
                    }
                }
                InputItem::Pending => {}
                InputItem::End => break,
            }
            if self.batch.since.as_ref().is_some_and(|since| since.elapsed() >= LINGER) {
                self.flush(Some(input))?;
            }
        }
        self.add_notes(input);
        Ok(())
    }

    /// Adds notes for the summary about an input that has ended.
    fn add_notes(&mut self, input: &SendInput) {
        if let Some(known) = self.inputs.last_mut() {
            known.header = input.header().map(<[u8]>::to_vec);
        }
        self.cursors.extend(input.cursor());
        self.skipped += input.skipped;
        let name = &input.name;
        match (input.skipped, input.sent) {
            (0, _) => {}
            (passed, 0) => {
                self.notes.push(format!("{name}: {} in before, nothing new", are(passed)))
            }
            (passed, new) => {
                let from = input.resumed_line;
                self.notes.push(format!(
                    "{name}: {} in before, {} new, from line {from} on",
                    are(passed),
                    are(new)
                ));
            }
        }
        if let Some(unit) = input.times.guessed() {
            self.notes.push(format!(
                "{name}: times that are numbers were read as {unit} since 1970 (--time-unit)"
            ));
        }
        if let Some(line) = input.left {
            self.notes.push(format!("{name}: line {line} has not ended and was not sent"));
        }
    }

    /// Delivers the batch, keeps its refused lines, then records the position.
    fn flush(&mut self, current: Option<&SendInput>) -> anyhow::Result<()> {
        let mut done = BatchResult::default();
        let delivered = self.poster.deliver(&self.batch.body, &self.batch.lines, &mut done);
        self.accepted += done.accepted;
        delivered?;
        // The position advances only after the refused lines are written: a crash in between
        // repeats a batch, which its ids make harmless, but loses no line.
        for (index, code, message) in done.refused {
            self.batch.items[self.batch.sent[index]].refused = Some((code, message));
        }
        for item in &self.batch.items {
            let Some((code, message)) = &item.refused else { continue };
            let known = &self.inputs[item.input];
            // Only the last input may still be open; its header is not in `inputs` before it ends.
            let last = item.input + 1 == self.inputs.len();
            let header = if last {
                current.and_then(SendInput::header).or(known.header.as_deref())
            } else {
                known.header.as_deref()
            };
            let raw = &self.batch.raw[item.raw.clone()];
            self.rejects.add(&RejectedLine {
                input: &known.name,
                line: item.line,
                code,
                message,
                raw,
                header,
            })?;
        }
        self.batch.clear();
        self.cursors.extend(current.and_then(SendInput::cursor));
        for cursor in self.cursors.drain(..) {
            let entry = &mut self.position.inputs[cursor.entry];
            (entry.offset, entry.hash) = (cursor.offset, cursor.hash);
        }
        if let Some(path) = &self.args.resume {
            self.position.write(path)?;
        }
        self.show();
        Ok(())
    }

    fn show(&self) {
        let events = count_of(self.accepted, "event");
        self.progress.set_message(events);
        if self.sized {
            self.progress.set_position(self.read.load(Ordering::Relaxed));
        } else {
            self.progress.set_position(self.accepted);
        }
    }

    /// Prints the summary and returns how the run ended.
    fn report(&self, ended: anyhow::Result<()>) -> anyhow::Result<()> {
        let extra = [
            (self.skipped > 0).then(|| format!("{} in before", are(self.skipped))),
            (self.poster.retries > 0)
                .then(|| count_of(self.poster.retries, "retry").replace("retrys", "retries")),
        ];
        let extra: String = extra.into_iter().flatten().map(|text| format!(", {text}")).collect();
        let refused = format!(
            "{} refused",
            if self.rejects.count == 1 { "1 was".to_owned() } else { were(self.rejects.count) }
        );
        eprintln!("{} in, {refused}{extra}", are_events(self.accepted));
        self.notes.iter().take(MAX_NOTES).for_each(|note| eprintln!("  {note}"));
        if self.notes.len() > MAX_NOTES {
            eprintln!("  and {} more such lines", self.notes.len() - MAX_NOTES);
        }
        self.rejects.report().iter().for_each(|line| eprintln!("{line}"));
        let waiting = self.batch.lines.len() as u64;
        if let Err(error) = ended {
            // Running again, as the hint below suggests, would not help here.
            if error.is::<InputMismatch>() {
                return Err(error);
            }
            let way = self.resume_hint();
            let lost = if waiting > 0 {
                format!("; {} read and not sent", were_events(waiting))
            } else {
                String::new()
            };
            return Err(error.context(format!("not everything was sent{lost}{way}")));
        }
        if self.args.resume.is_none() && self.generated_ids > 0 {
            eprintln!(
                "  these are new events: sent again, they count again; --resume FILE keeps what \
                 was sent"
            );
        }
        if self.interrupted && !self.is_stream() {
            bail!("ended by a signal before everything was sent{}", self.resume_hint());
        }
        if self.rejects.count > 0 {
            bail!("{} refused", were_events(self.rejects.count));
        }
        Ok(())
    }

    /// Whether the last input was standard input, which only a signal ends.
    fn is_stream(&self) -> bool {
        self.inputs.last().is_some_and(|known| known.name == InputSource::Stdin.name())
    }

    /// Says how to continue. Without `--resume`, it saves a position for that now.
    fn resume_hint(&self) -> String {
        if let Some(path) = &self.args.resume {
            return format!("; run it again to go on ({})", path.display());
        }
        // Nothing was sent, or the input cannot be read a second time.
        if self.accepted == 0 || self.is_stream() {
            return String::new();
        }
        let path = format!("rollmill-{}.sent", self.position.run);
        match self.position.write(Path::new(&path)) {
            Ok(()) => format!("; to go on, run it again with --resume {path}"),
            Err(error) => format!("; and where it stands could not be kept: {error:#}"),
        }
    }
}

fn are(n: u64) -> String {
    let verb = if n == 1 { "is" } else { "are" };
    format!("{} {verb}", crate::cli::number_format::grouped(&n.to_string()))
}

fn were(n: u64) -> String {
    format!("{} were", crate::cli::number_format::grouped(&n.to_string()))
}

fn are_events(n: u64) -> String {
    format!("{} {}", count_of(n, "event"), if n == 1 { "is" } else { "are" })
}

fn were_events(n: u64) -> String {
    format!("{} {}", count_of(n, "event"), if n == 1 { "was" } else { "were" })
}

/// A bar over bytes if all inputs are files, else a count of delivered events.
fn progress(sources: &[InputSource]) -> (indicatif::ProgressBar, bool) {
    let size = |source: &InputSource| match source {
        InputSource::Stdin => None,
        InputSource::File(path) => std::fs::metadata(path)
            .ok()
            .filter(std::fs::Metadata::is_file)
            .map(|metadata| metadata.len()),
    };
    let total: Option<u64> = sources.iter().map(size).sum();
    let (bar, template) = match total {
        Some(total) => {
            let template =
                "{bar:40} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}, {msg}";
            (indicatif::ProgressBar::new(total), template)
        }
        None => (indicatif::ProgressBar::no_length(), "{spinner} {msg}, {per_sec}, {elapsed}"),
    };
    let style = indicatif::ProgressStyle::with_template(template);
    (
        bar.with_style(style.unwrap_or_else(|_| indicatif::ProgressStyle::default_bar())),
        total.is_some(),
    )
}
