//! A column of texts that nearly all differ, and that are most of an object: the raw events.
//!
//! Whoever reads them works on a page while it is in the caches of the processor, and then gives
//! its memory back for the next one. A whole row group of them would be written to memory, and read
//! from it again.

use bytes::Bytes;
use parquet::errors::Result;
use parquet::file::reader::RowGroupReader;

use super::super::super::columns::RawColumn;
use super::{Chunk, ChunkPage, Values, bad};

/// The pages of such a column, of a row group. Empty cells have no bytes.
pub(in super::super) struct RawPages {
    chunk: Chunk,
    dictionary: Vec<Bytes>,
    /// Cells that were read, and that nobody has taken.
    read: RawColumn,
    rows: usize,
}

impl RawPages {
    /// The column that every version has.
    pub(in super::super) fn open(group: &dyn RowGroupReader, name: &str) -> Result<Self> {
        let chunk = Chunk::required(group, name)?;
        Ok(Self { chunk, dictionary: Vec::new(), read: RawColumn::default(), rows: 0 })
    }

    /// How many rows have been read.
    pub(in super::super) fn rows(&self) -> usize {
        self.rows
    }

    /// Reads one more page; `false` if there is none.
    pub(in super::super) fn read_page(&mut self) -> Result<bool> {
        loop {
            match self.chunk.next_page()? {
                None => return Ok(false),
                Some(ChunkPage::Dictionary(buf, _)) => {
                    let entries = &mut self.dictionary;
                    self.chunk.plain_values(&buf, &mut |at| entries.push(buf.slice(at)))?;
                }
                Some(ChunkPage::Cells(page)) => {
                    self.rows += page.cells;
                    let places = self.push_values(page.values)?;
                    self.push_cells(page.cells, page.present.as_deref(), places)?;
                    return Ok(true);
                }
            }
        }
    }

    /// Adds a page; answers where its values lie.
    fn push_values(&mut self, values: Values) -> Result<Vec<std::ops::Range<usize>>> {
        let mut places = Vec::new();
        match values {
            Values::Plain(buf) => {
                self.chunk.plain_values(&buf, &mut |at| places.push(at))?;
                self.read.push_page(buf);
            }
            // Older releases may have written dictionaries: their entries become a page.
            Values::Coded(codes) => {
                let mut bytes = Vec::new();
                for code in codes {
                    let value = self.dictionary.get(code as usize);
                    let value = value.ok_or_else(|| bad("a code is not in the dictionary"))?;
                    places.push(bytes.len()..bytes.len() + value.len());
                    bytes.extend_from_slice(value);
                }
                self.read.push_page(bytes.into());
            }
        }
        Ok(places)
    }

    fn push_cells(
        &mut self,
        cells: usize,
        present: Option<&[u32]>,
        places: Vec<std::ops::Range<usize>>,
    ) -> Result<()> {
        let mut places = places.into_iter();
        for at in 0..cells {
            let is_present = present.is_none_or(|levels| levels[at] > 0);
            let place = if is_present { places.next() } else { Some(0..0) };
            self.read.push(place.ok_or_else(|| bad("a page ends early"))?);
        }
        Ok(())
    }

    /// Takes out the first cells of those that were read.
    pub(in super::super) fn take(&mut self, cells: usize) -> RawColumn {
        self.read.take(cells)
    }
}
