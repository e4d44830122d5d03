//! One input on its way into batches: opens it, detects its format, splits it into records, and
//! turns each into an event or a refusal.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use anyhow::{Context, bail};

use super::input_reader::{InputReader, MAX_CHUNKS_AHEAD, NextChunk};
use super::position::{InputEntry, InputMismatch};
use super::sniff::{self, FormatHint};
use super::sources::InputSource;
use super::split::{InputFormat, InputRecord, RecordFlaw, Splitter};
use super::table::{ColumnMap, ColumnNames};
use super::times::TimeParser;
use super::{SendArgs, event};

/// How long to wait at a stop for chunks that the reader thread has not delivered yet.
const GRACE: Duration = Duration::from_millis(100);

/// A position to record once the batch that reaches it is delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct InputCursor {
    pub(super) entry: usize,
    pub(super) offset: u64,
    pub(super) hash: String,
}

/// What an input yields next.
pub(super) enum InputItem {
    /// A record. Its event is at the end of the output buffer, unless it was refused.
    Event {
        record: InputRecord,
        id_generated: bool,
        refused: Option<(&'static str, String)>,
    },
    /// Nothing arrived within the wait.
    Pending,
    End,
}

/// An input that is being sent.
pub(super) struct SendInput {
    pub(super) name: String,
    reader: InputReader,
    entry: usize,
    number: u64,
    run: String,
    /// Bytes read before the format is known.
    head: Vec<u8>,
    splitter: Option<Splitter>,
    columns: Option<ColumnNames>,
    hint: FormatHint,
    table: Option<ColumnMap>,
    header: Option<Vec<u8>>,
    pub(super) times: TimeParser,
    /// What an earlier run has sent: number of bytes, and their hash.
    before: InputEntry,
    check: Option<(u64, blake3::Hasher)>,
    /// Number of events already sent, by a position of an earlier release.
    old_events: u64,
    /// Records skipped because an earlier run has sent them.
    pub(super) skipped: u64,
    /// Line of the first record that is sent.
    pub(super) resumed_line: u64,
    pub(super) sent: u64,
    /// Whether the file may still grow: then an unfinished last line is left for the next run.
    pub(super) may_grow: bool,
    pub(super) left: Option<u64>,
    ended: bool,
    stopped: bool,
}

impl SendInput {
    pub(super) fn open(
        args: &SendArgs,
        source: &InputSource,
        entry: (usize, &InputEntry),
        run: &str,
        read: Arc<AtomicU64>,
    ) -> anyhow::Result<Self> {
        let (at, entry) = entry;
        let columns = args.columns();
        Ok(Self {
            name: source.name(),
            reader: InputReader::open(source, read)?,
            entry: at,
            number: entry.source,
            run: run.to_owned(),
            head: Vec::new(),
            splitter: None,
            hint: FormatHint { csv: columns.is_some(), delimiter: args.delimiter },
            columns,
            table: None,
            header: None,
            times: TimeParser::new(args.time_unit, args.tz.clone()),
            check: (entry.offset > 0).then(|| (entry.offset, blake3::Hasher::new())),
            before: entry.clone(),
            old_events: 0,
            skipped: 0,
            resumed_line: 1,
            sent: 0,
            // Without --resume there is no next run that could send the rest.
            may_grow: args.resume.is_some() && matches!(source, InputSource::File(_)),
            left: None,
            ended: false,
            stopped: false,
        })
    }

    pub(super) fn pass_old_events(&mut self, events: u64) {
        self.old_events = events;
    }

    pub(super) fn header(&self) -> Option<&[u8]> {
        self.header.as_deref()
    }

    pub(super) fn bytes(&self, record: &InputRecord) -> &[u8] {
        self.splitter.as_ref().map_or(&[], |splitter| splitter.bytes(record))
    }

    /// How far records have been taken; `None` while still within what was sent before.
    pub(super) fn cursor(&self) -> Option<InputCursor> {
        let (offset, hash) = self.splitter.as_ref()?.cursor();
        (offset >= self.before.offset).then_some(InputCursor { entry: self.entry, offset, hash })
    }

    /// Yields the next event, appending it to `out`.
    pub(super) fn next(&mut self, wait: Duration, out: &mut Vec<u8>) -> anyhow::Result<InputItem> {
        loop {
            while let Some(record) = self.splitter.as_mut().and_then(Splitter::next) {
                if let Some(found) = self.take(record, out)? {
                    return Ok(found);
                }
            }
            if std::mem::take(&mut self.stopped) {
                self.finish_partial();
                continue;
            }
            if self.ended {
                return self.end(out);
            }
            match self.reader.next(wait) {
                NextChunk::Chunk(part) => self.push(&part)?,
                NextChunk::Pending => return Ok(InputItem::Pending),
                NextChunk::End => self.finish()?,
                NextChunk::Failed(error) => {
                    bail!(
                        "cannot read {} behind byte {}: {error}",
                        self.name,
                        self.splitter.as_ref().map_or(0, Splitter::offset)
                    )
                }
            }
        }
    }

    /// Stops reading, but still yields what has been read. An unfinished line is an event only if
    /// it is complete JSON. Returns whether the input was at its end.
    pub(super) fn stop(&mut self) -> anyhow::Result<bool> {
        // No more chunks can exist: the queue is full at this many, and the reader holds one.
        for _ in 0..=MAX_CHUNKS_AHEAD {
            match self.reader.next(GRACE) {
                NextChunk::Chunk(part) => self.push(&part)?,
                NextChunk::End => return self.finish().map(|()| true),
                NextChunk::Pending | NextChunk::Failed(_) => break,
            }
        }
        if self.splitter.is_none() {
            self.detect_format(true)?;
        }
        (self.ended, self.stopped, self.old_events) = (true, true, 0);
        Ok(false)
    }

    /// Handles an unfinished line after a stop: it is an event if it is complete JSON.
    fn finish_partial(&mut self) {
        let Some(splitter) = &mut self.splitter else { return };
        let pending = splitter.pending().trim_ascii();
        if splitter.format() == InputFormat::Ndjson && is_json(pending) {
            splitter.finish();
        } else if !pending.is_empty() {
            self.left = Some(splitter.line_number());
        }
    }

    fn push(&mut self, part: &[u8]) -> anyhow::Result<()> {
        // A stream cannot be checked in advance, so the part sent before is hashed while it is
        // skipped.
        if let Some((left, hasher)) = &mut self.check {
            let of_it = usize::try_from(*left).unwrap_or(usize::MAX).min(part.len());
            hasher.update(&part[..of_it]);
            *left -= of_it as u64;
            if *left == 0 {
                if hasher.finalize().to_hex().as_str() != self.before.hash {
                    bail!(self.before.mismatch());
                }
                self.check = None;
            }
        }
        match &mut self.splitter {
            Some(splitter) => splitter.push(part),
            None => {
                self.head.extend_from_slice(part);
                self.detect_format(false)?;
            }
        }
        Ok(())
    }

    /// Detects the format, once enough bytes have been read.
    fn detect_format(&mut self, complete: bool) -> anyhow::Result<()> {
        let detected = sniff::format_of(&self.head, complete, self.hint);
        let detected = detected
            .map_err(anyhow::Error::msg)
            .with_context(|| format!("{} cannot be sent", self.name))?;
        if let Some(format) = detected {
            self.splitter = Some(Splitter::new(format, std::mem::take(&mut self.head)));
        }
        Ok(())
    }

    fn finish(&mut self) -> anyhow::Result<()> {
        self.ended = true;
        if self.check.is_some() {
            bail!(self.before.mismatch());
        }
        if self.splitter.is_none() {
            self.detect_format(true)?;
        }
        let Some(splitter) = &mut self.splitter else { return Ok(()) };
        let pending = splitter.pending().trim_ascii();
        if self.may_grow
            && splitter.format() == InputFormat::Ndjson
            && !pending.is_empty()
            && !is_json(pending)
        {
            self.left = Some(splitter.line_number());
            return Ok(());
        }
        splitter.finish();
        Ok(())
    }

    /// Ends the input. An array that is not closed is refused, even if all of its elements were
    /// read: the file is probably truncated.
    fn end(&mut self, out: &mut Vec<u8>) -> anyhow::Result<InputItem> {
        if self.old_events > self.skipped {
            bail!(
                "{} holds {} events, and the position says that {} are in: it belongs to another \
                 input",
                self.name,
                self.skipped,
                self.old_events
            );
        }
        let open = self.splitter.as_mut().and_then(Splitter::take_open_array);
        let Some(record) = open else { return Ok(InputItem::End) };
        Ok(self.take(record, out)?.unwrap_or(InputItem::End))
    }

    fn take(
        &mut self,
        record: InputRecord,
        out: &mut Vec<u8>,
    ) -> anyhow::Result<Option<InputItem>> {
        let Some(splitter) = &self.splitter else { return Ok(None) };
        let bytes = splitter.bytes(&record);
        if let (Some(columns), InputFormat::Csv(delimiter), None) =
            (&self.columns, splitter.format(), &self.table)
        {
            let table = ColumnMap::new(bytes, delimiter, columns).map_err(anyhow::Error::msg);
            self.table = Some(table.with_context(|| format!("{} cannot be sent", self.name))?);
            self.header = Some(bytes.to_vec());
            return Ok(None);
        }
        let known = record.offset < self.before.offset || self.skipped < self.old_events;
        if known && record.flaw != Some(RecordFlaw::OpenArray) {
            if self.before.offset > 0
                && record.offset + record.range.len() as u64 > self.before.offset
            {
                let why = format!(
                    "{}: line {} was sent as it stood at the end of the file, and has grown since",
                    self.name, record.line
                );
                bail!(InputMismatch(why));
            }
            self.skipped += 1;
            return Ok(None);
        }
        if self.sent == 0 {
            self.resumed_line = record.line;
        }
        self.sent += 1;
        if let Some(flaw) = record.flaw {
            let refused = Some(("event_unreadable", flaw.reason().to_owned()));
            return Ok(Some(InputItem::Event { record, id_generated: false, refused }));
            // The offset makes the id the same whenever this input is read again.
        }
        let made_up = format!("{}-{:x}-{:x}", self.run, self.number, record.offset);
        let before = out.len();
        let made = match &self.table {
            Some(table) => table.event(bytes, &made_up, &mut self.times, out),
            None => event::one_line(bytes, &made_up, &mut self.times, out),
        };
        Ok(Some(match made {
            Ok(made_up) => InputItem::Event { record, id_generated: made_up, refused: None },
            Err(refused) => {
                // Part of the event may have been written before the error.
                out.truncate(before);
                InputItem::Event { record, id_generated: false, refused: Some(refused) }
            }
        }))
    }
}

fn is_json(bytes: &[u8]) -> bool {
    serde_json::from_slice::<serde::de::IgnoredAny>(bytes).is_ok()
}
