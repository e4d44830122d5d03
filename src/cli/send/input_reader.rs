//! Reads and decompresses an input on a thread of its own, so that its consumer can
//! wait with a timeout.

use std::fs::File;
use std::io::{self, BufReader, Cursor, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use anyhow::Context;

use super::sources::InputSource;

/// Size of a chunk, in bytes.
const CHUNK_BYTES: usize = 256 * 1024;
/// Chunks that are read ahead.
pub(super) const MAX_CHUNKS_AHEAD: usize = 4;

/// The result of waiting for a chunk.
pub(super) enum NextChunk {
    Chunk(Vec<u8>),
    /// Nothing arrived within the wait.
    Pending,
    End,
    Failed(io::Error),
}

/// Tells a file from another one of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub(super) struct FileIdentity {
    pub(super) device: u64,
    pub(super) inode: u64,
}

/// An input that is being read.
pub(super) struct InputReader {
    parts: Receiver<io::Result<Vec<u8>>>,
}

impl InputReader {
    /// Opens an input; `read` counts its bytes before decompression.
    pub(super) fn open(source: &InputSource, read: Arc<AtomicU64>) -> anyhow::Result<Self> {
        let raw: Box<dyn Read + Send> = match source {
            InputSource::Stdin => Box::new(io::stdin()),
            InputSource::File(path) if is_pipe(path) => {
                Box::new(NamedPipe { path: path.clone(), opened: None })
            }
            InputSource::File(path) => Box::new(
                File::open(path).with_context(|| format!("cannot open {}", path.display()))?,
            ),
        };
        let (sender, parts) = sync_channel(MAX_CHUNKS_AHEAD);
        let counted = CountingReader(raw, read);
        let work = move || read_all(counted, &sender);
        // Never joined: it may block in a read for ever.
        std::thread::Builder::new()
            .name("read".to_owned())
            .spawn(work)
            .context("cannot start a thread")?;
        Ok(Self { parts })
    }

    /// The next chunk, if it arrives within `wait`.
    pub(super) fn next(&self, wait: Duration) -> NextChunk {
        match self.parts.recv_timeout(wait) {
            Ok(Ok(part)) => NextChunk::Chunk(part),
            Ok(Err(error)) => NextChunk::Failed(error),
            Err(RecvTimeoutError::Timeout) => NextChunk::Pending,
            Err(RecvTimeoutError::Disconnected) => NextChunk::End,
        }
    }
}

/// The identity of a file; `None` for a pipe, whose numbers differ each time.
pub(super) fn identity_of(source: &InputSource) -> anyhow::Result<Option<FileIdentity>> {
    use std::os::unix::fs::MetadataExt;
    let InputSource::File(path) = source else { return Ok(None) };
    let metadata =
        std::fs::metadata(path).with_context(|| format!("cannot open {}", path.display()))?;
    Ok(metadata.is_file().then(|| FileIdentity { device: metadata.dev(), inode: metadata.ino() }))
}

fn is_pipe(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_fifo())
}

/// A named pipe. Opening it blocks until there is a writer, so the reader thread opens it.
struct NamedPipe {
    path: PathBuf,
    opened: Option<File>,
}

impl Read for NamedPipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let file = match &mut self.opened {
            Some(file) => file,
            unopened => unopened.insert(File::open(&self.path)?),
        };
        file.read(buffer)
    }
}

/// Counts the bytes that are read through it.
struct CountingReader<R>(R, Arc<AtomicU64>);

impl<R: Read> Read for CountingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.0.read(buffer)?;
        self.1.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

fn read_all(raw: impl Read + Send + 'static, sender: &SyncSender<io::Result<Vec<u8>>>) {
    let send = |part| sender.send(part).is_ok();
    let mut unpacked = match unpack(raw) {
        Ok(unpacked) => unpacked,
        Err(error) => {
            // The consumer may be gone; then nobody needs the error.
            send(Err(error));
            return;
        }
    };
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        match unpacked.read(&mut buffer) {
            Ok(0) => return,
            Ok(n) if send(Ok(buffer[..n].to_vec())) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(_) => return,
            Err(error) => {
                send(Err(error));
                return;
            }
        }
    }
}

/// Detects compression by the first bytes, whatever the name, and removes it.
fn unpack(mut raw: impl Read + Send + 'static) -> io::Result<Box<dyn Read>> {
    let mut head = vec![0; 4];
    let mut known = 0;
    while known < head.len() {
        let n = raw.read(&mut head[known..])?;
        known += n;
        // Reads on only while this may be a magic number: a short line must not wait for more
        // input.
        if n == 0 || !(GZIP.starts_with(&head[..known.min(2)]) || ZSTD.starts_with(&head[..known]))
        {
            break;
        }
    }
    head.truncate(known);
    let (gzip, zstd) = (head.starts_with(&GZIP), head.starts_with(&ZSTD));
    let whole = Cursor::new(head).chain(raw);
    Ok(if gzip {
        Box::new(flate2::read::MultiGzDecoder::new(BufReader::with_capacity(CHUNK_BYTES, whole)))
    } else if zstd {
        Box::new(zstd::stream::read::Decoder::with_buffer(BufReader::with_capacity(
            CHUNK_BYTES,
            whole,
        ))?)
    } else {
        Box::new(whole)
    })
}

const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// Decompresses from a reader that yields one byte at a time.
    fn unpacked(bytes: &[u8]) -> Vec<u8> {
        struct Slow(Cursor<Vec<u8>>);
        impl Read for Slow {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                let one = buffer.len().min(1);
                self.0.read(&mut buffer[..one])
            }
        }
        let mut out = Vec::new();
        unpack(Slow(Cursor::new(bytes.to_vec())))
            .expect("opened")
            .read_to_end(&mut out)
            .expect("read");
        out
    }

    #[test]
    fn compression_is_told_by_the_first_bytes() {
        let text = b"{\"metric\":\"m\"}\n".repeat(100);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&text).expect("written");
        let gzip = gzip.finish().expect("packed");
        assert_eq!(unpacked(&[gzip.clone(), gzip].concat()), text.repeat(2), "two members");
        assert_eq!(unpacked(&zstd::encode_all(&text[..], 1).expect("packed")), text);
        for plain in [&text[..], b"", b"(", b"\x1f", b"a\n"] {
            assert_eq!(unpacked(plain), plain);
        }
    }
}
