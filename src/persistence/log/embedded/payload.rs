//! How the records of a run are stored: as they are, or as one zstd frame if that is smaller.
//!
//! A stored payload that begins with zstd's magic number is compressed. An uncompressed one begins
//! with the length of its first record; read as a length, the magic number would be 4.2 GB, and no
//! record is that long.

use std::cell::RefCell;

use bytes::Bytes;

/// Upper limit for a frame and for a decompressed run. A greater length is damage.
pub(super) const MAX_FRAME: usize = 256 << 20;
/// Shorter runs are not compressed: they compress badly, and disk throughput is not
/// what limits small commits.
const MIN_COMPRESSED_LEN: usize = 4 << 10;
/// Measured: 1.3 s of CPU per GB, for a sixth of the bytes. Level 3 costs twice as much and saves
/// a few hundredths more.
const LEVEL: i32 = 1;

/// Compresses runs. Reuses one zstd context and one buffer.
pub(super) struct RunCompressor {
    zstd: zstd::bulk::Compressor<'static>,
    scratch: Vec<u8>,
}

impl RunCompressor {
    /// A compressor with a context of its own. Fails if zstd cannot allocate its context.
    pub(super) fn new() -> Result<Self, String> {
        let zstd = zstd::bulk::Compressor::new(LEVEL)
            .map_err(|e| format!("no compressor for the log: {e}"))?;
        Ok(Self { zstd, scratch: Vec::new() })
    }

    /// Appends the stored form of `plain`: compressed or as it is, whichever is smaller.
    pub(super) fn compress(&mut self, plain: &[u8], out: &mut Vec<u8>) {
        if plain.len() < MIN_COMPRESSED_LEN {
            return out.extend_from_slice(plain);
        }
        self.scratch.clear();
        self.scratch.reserve(zstd::zstd_safe::compress_bound(plain.len()));
        let packed = self.zstd.compress_to_buffer(plain, &mut self.scratch);
        out.extend_from_slice(if packed.is_ok_and(|len| len < plain.len()) {
            &self.scratch
        } else {
            plain
        });
    }
}

/// The records in a stored payload, or `None` if it is damaged.
pub(super) fn decompress(stored: Bytes) -> Option<Bytes> {
    if !stored.starts_with(&zstd::zstd_safe::MAGICNUMBER.to_le_bytes()) {
        return Some(stored);
    }
    let plain = zstd::zstd_safe::get_frame_content_size(&stored).ok().flatten()?;
    // The size is untrusted: a damaged or crafted frame must not allocate gigabytes.
    let plain = usize::try_from(plain).ok().filter(|len| *len <= MAX_FRAME)?;
    DECOMPRESSOR
        .with_borrow_mut(|zstd| zstd.as_mut()?.decompress(&stored, plain).ok())
        .map(Bytes::from)
}

thread_local! {
    /// Reused, because making a context costs more than decompressing a small run. `None` if zstd
    /// could not allocate it.
    static DECOMPRESSOR: RefCell<Option<zstd::bulk::Decompressor<'static>>> =
        RefCell::new(zstd::bulk::Decompressor::new().ok());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_runs_shrink_short_and_random_ones_stay_and_all_come_back() {
        let mut packer = RunCompressor::new().expect("memory");
        let text = b"\x40\x00\x00\x00{\"metric\":\"page_view\"}".repeat(1_000);
        let noise: Vec<u8> = (0..4_000u32)
            .flat_map(|i| blake3::hash(&i.to_le_bytes()).as_bytes()[..8].to_vec())
            .collect();
        for (plain, shrinks) in [(&text[..], true), (&text[..100], false), (&noise[..], false)] {
            let mut stored = b"before".to_vec();
            packer.compress(plain, &mut stored);
            let stored = Bytes::from(stored.split_off(6));
            assert_eq!(stored.len() < plain.len(), shrinks);
            assert_eq!(decompress(stored).as_deref(), Some(plain));
        }
    }

    #[test]
    fn damage_and_bombs_are_refused() {
        let mut stored = Vec::new();
        RunCompressor::new().expect("memory").compress(&[7; 10_000], &mut stored);
        for cut in 4..stored.len() {
            assert_eq!(decompress(Bytes::copy_from_slice(&stored[..cut])), None, "cut at {cut}");
        }
        let bomb = zstd::bulk::compress(&vec![0; MAX_FRAME + 1], 1).expect("compresses");
        assert_eq!(decompress(bomb.into()), None);
    }
}
