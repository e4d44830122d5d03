//! Column chunks, page by page, without a value for each cell where the file has a code for it.
//!
//! The Parquet library decodes cells one by one into values. Nearly all columns of an event repeat
//! few values, which the file stores once in a dictionary: reading the codes takes a tenth of the
//! time. This reads what [`super::write`] writes: pages of version 1, plain or with a dictionary.

use std::ops::Range;

use bytes::Bytes;
use hashbrown::HashMap;
use parquet::basic::{Encoding, Type};
use parquet::column::page::{Page, PageReader};
use parquet::errors::{ParquetError, Result};
use parquet::file::reader::RowGroupReader;

use super::super::columns::RawColumn;

pub(super) mod raw;

/// The code of an empty cell.
pub(super) const EMPTY: u32 = u32::MAX;

/// A column chunk of a row group.
pub(super) struct Chunk {
    pages: Box<dyn PageReader>,
    is_optional: bool,
    kind: Type,
    rows: usize,
}

/// The cells of a data page.
struct CellPage {
    cells: usize,
    /// For each cell whether it has a value; `None` if all have one.
    present: Option<Vec<u32>>,
    values: Values,
}

enum Values {
    /// Codes of the dictionary, one for each value.
    Coded(Vec<u32>),
    Plain(Bytes),
}

enum ChunkPage {
    Dictionary(Bytes, usize),
    Cells(CellPage),
}

/// Codes of the cells, and the values that they stand for.
#[derive(Debug, Default)]
pub(super) struct CodedCells {
    pub(super) codes: Vec<u32>,
    pub(super) values: RawColumn,
}

/// Numbers of the cells; those of empty cells are 0.
#[derive(Debug, Default)]
pub(super) struct NumberCells {
    pub(super) numbers: Vec<i64>,
    /// The rows that are not empty; `None` if all are not.
    pub(super) present: Option<Vec<u32>>,
}

impl Chunk {
    /// The chunk of a column; `None` if the group has no such column.
    pub(super) fn open(group: &dyn RowGroupReader, name: &str) -> Result<Option<Self>> {
        let metadata = group.metadata();
        let found =
            metadata.columns().iter().position(|column| column.column_descr().name() == name);
        let Some(at) = found else { return Ok(None) };
        let column = metadata.column(at).column_descr();
        let rows = usize::try_from(metadata.num_rows()).map_err(|e| bad(&e.to_string()))?;
        Ok(Some(Self {
            pages: group.get_column_page_reader(at)?,
            is_optional: column.max_def_level() > 0,
            kind: column.physical_type(),
            rows,
        }))
    }

    /// The chunk of a column that every version has.
    pub(super) fn required(group: &dyn RowGroupReader, name: &str) -> Result<Self> {
        Self::open(group, name)?.ok_or_else(|| bad(&format!("it has no column {name}")))
    }

    fn next_page(&mut self) -> Result<Option<ChunkPage>> {
        match self.pages.get_next_page()? {
            None => Ok(None),
            Some(Page::DictionaryPage { buf, num_values, .. }) => {
                Ok(Some(ChunkPage::Dictionary(buf, num_values as usize)))
            }
            Some(Page::DataPage { buf, num_values, encoding, .. }) => {
                self.cells(buf, num_values as usize, encoding).map(Some)
            }
            Some(Page::DataPageV2 { .. }) => Err(bad("a page of version 2, which we never write")),
        }
    }

    fn cells(&self, mut buf: Bytes, cells: usize, encoding: Encoding) -> Result<ChunkPage> {
        let present = if self.is_optional { present_cells(&mut buf, cells)? } else { None };
        let count = present
            .as_ref()
            .map_or(cells, |levels| levels.iter().map(|level| *level as usize).sum());
        let values = match encoding {
            Encoding::PLAIN => Values::Plain(buf),
            Encoding::RLE_DICTIONARY | Encoding::PLAIN_DICTIONARY => {
                let mut codes = Vec::with_capacity(count);
                // A page without values need not say how wide its codes are.
                if count > 0 {
                    let (width, data) = buf.split_first().ok_or_else(|| bad("a page is empty"))?;
                    decode_runs(data, u32::from(*width), count, &mut codes)
                        .ok_or_else(|| bad("codes end early"))?;
                }
                Values::Coded(codes)
            }
            other => return Err(bad(&format!("encoding {other}, which we never write"))),
        };
        Ok(ChunkPage::Cells(CellPage { cells, present, values }))
    }

    /// Where each value of a plain page lies.
    fn plain_values(&self, page: &Bytes, each: &mut dyn FnMut(Range<usize>)) -> Result<()> {
        let width = match self.kind {
            Type::INT32 => 4,
            Type::INT64 => 8,
            Type::FIXED_LEN_BYTE_ARRAY => 16,
            Type::BYTE_ARRAY => return byte_arrays(page, each),
            other => return Err(bad(&format!("type {other}, which we never write"))),
        };
        (0..page.len() / width).for_each(|at| each(at * width..(at + 1) * width));
        Ok(())
    }

    fn check_rows(&self, rows: usize) -> Result<()> {
        if rows == self.rows { Ok(()) } else { Err(bad("a column has too few or too many rows")) }
    }

    /// Reads the chunk as codes. Where it has no dictionary, or not for all cells, equal values get
    /// equal codes all the same.
    pub(super) fn coded(mut self) -> Result<CodedCells> {
        let mut read =
            CodedCells { codes: Vec::with_capacity(self.rows), values: RawColumn::default() };
        let mut known: Option<HashMap<Bytes, u32>> = None;
        while let Some(page) = self.next_page()? {
            let page = match page {
                ChunkPage::Dictionary(buf, count) => {
                    read.values.reserve(count);
                    read.values.push_page(buf.clone());
                    self.plain_values(&buf, &mut |at| read.values.push(at))?;
                    continue;
                }
                ChunkPage::Cells(page) => page,
            };
            let codes = match page.values {
                Values::Coded(codes) => codes,
                Values::Plain(buf) => {
                    let numbered =
                        || read.values.iter().map(Bytes::copy_from_slice).zip(0..).collect();
                    let known = known.get_or_insert_with(numbered);
                    let (values, mut codes) = (&mut read.values, Vec::new());
                    values.push_page(buf.clone());
                    self.plain_values(&buf, &mut |at| {
                        let next = values.len() as u32;
                        let code = *known.entry(buf.slice(at.clone())).or_insert(next);
                        if code == next {
                            values.push(at);
                        }
                        codes.push(code);
                    })?;
                    codes
                }
            };
            match page.present {
                None => read.codes.extend_from_slice(&codes),
                Some(levels) => spread(&levels, &codes, EMPTY, &mut read.codes),
            }
        }
        let known = read.values.len() as u32;
        if read.codes.iter().any(|code| *code >= known && *code != EMPTY) {
            return Err(bad("a code is not in the dictionary"));
        }
        self.check_rows(read.codes.len())?;
        Ok(read)
    }

    /// Reads a chunk of numbers.
    pub(super) fn numbers(mut self) -> Result<NumberCells> {
        let mut numbers = Vec::with_capacity(self.rows);
        let (mut present, mut dictionary) = (None::<Vec<u32>>, Vec::new());
        while let Some(page) = self.next_page()? {
            let page = match page {
                ChunkPage::Dictionary(buf, _) => {
                    dictionary = self.plain_numbers(&buf)?;
                    continue;
                }
                ChunkPage::Cells(page) => page,
            };
            let values = match page.values {
                Values::Plain(buf) => self.plain_numbers(&buf)?,
                Values::Coded(codes) => codes
                    .iter()
                    .map(|code| dictionary.get(*code as usize).copied())
                    .collect::<Option<_>>()
                    .ok_or_else(|| bad("a code is not in the dictionary"))?,
            };
            let before = numbers.len() as u32;
            if page.present.is_some() && present.is_none() {
                present = Some((0..before).collect());
            }
            if let Some(rows) = &mut present {
                let levels = page.present.as_deref();
                let has = |at: u32| levels.is_none_or(|levels| levels[at as usize] > 0);
                rows.extend((0..page.cells as u32).filter(|at| has(*at)).map(|at| before + at));
            }
            match page.present {
                None => numbers.extend_from_slice(&values),
                Some(levels) => spread(&levels, &values, 0, &mut numbers),
            }
        }
        self.check_rows(numbers.len())?;
        Ok(NumberCells { numbers, present })
    }

    fn plain_numbers(&self, page: &Bytes) -> Result<Vec<i64>> {
        match self.kind {
            Type::INT64 => {
                let (values, _) = page.as_chunks::<8>();
                Ok(values.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect())
            }
            Type::INT32 => {
                let (values, _) = page.as_chunks::<4>();
                Ok(values.iter().map(|bytes| i64::from(i32::from_le_bytes(*bytes))).collect())
            }
            other => Err(bad(&format!("a number of type {other}"))),
        }
    }
}

/// Takes the definition levels off the front of a page: 1 for each cell with a value, 0 for others.
fn present_cells(buf: &mut Bytes, cells: usize) -> Result<Option<Vec<u32>>> {
    let early = || bad("the levels of a page end early");
    let length = buf.first_chunk::<4>().ok_or_else(early)?;
    let end = 4 + u32::from_le_bytes(*length) as usize;
    let data = buf.get(4..end).ok_or_else(early)?;
    let mut levels = Vec::with_capacity(cells);
    decode_runs(data, 1, cells, &mut levels).ok_or_else(early)?;
    *buf = buf.slice(end..);
    Ok(levels.contains(&0).then_some(levels))
}

/// Puts values where the levels say that there is one.
fn spread<T: Copy>(levels: &[u32], values: &[T], empty: T, out: &mut Vec<T>) {
    let mut values = values.iter().copied();
    out.extend(levels.iter().map(|level| match level {
        0 => empty,
        _ => values.next().unwrap_or(empty),
    }));
}

fn byte_arrays(page: &Bytes, each: &mut dyn FnMut(Range<usize>)) -> Result<()> {
    let mut at = 0;
    while at < page.len() {
        let early = || bad("a text ends early");
        let length = page.get(at..).and_then(|rest| rest.first_chunk::<4>()).ok_or_else(early)?;
        let from = at + 4;
        let to = from + u32::from_le_bytes(*length) as usize;
        if to > page.len() {
            return Err(early());
        }
        each(from..to);
        at = to;
    }
    Ok(())
}

/// Decodes `count` numbers of `width` bits, as runs of equal ones and packed ones. `None` if the
/// bytes end early.
fn decode_runs(mut data: &[u8], width: u32, count: usize, out: &mut Vec<u32>) -> Option<()> {
    if width > 32 {
        return None;
    }
    let end = out.len() + count;
    while out.len() < end {
        let left = end - out.len();
        let header = take_varint(&mut data)?;
        let length = usize::try_from(header >> 1).ok()?;
        if header & 1 == 0 {
            let (value, rest) = data.split_at_checked(width.div_ceil(8) as usize)?;
            data = rest;
            let mut bytes = [0; 4];
            bytes[..value.len()].copy_from_slice(value);
            if length == 0 {
                return None;
            }
            out.resize(out.len() + length.min(left), u32::from_le_bytes(bytes));
        } else {
            let bytes = length.checked_mul(width as usize)?;
            let (packed, rest) = data.split_at(bytes.min(data.len()));
            data = rest;
            let packed_count = length.checked_mul(8)?.min(left);
            if packed.len() * 8 < packed_count * width as usize || packed_count == 0 {
                return None;
            }
            unpack(packed, width, packed_count, out);
        }
    }
    Some(())
}

fn unpack(packed: &[u8], width: u32, count: usize, out: &mut Vec<u32>) {
    let mask = (1u64 << width) - 1;
    // Eight bytes hold a number of up to 32 bits at any of the eight positions in its first byte.
    let whole = match width {
        0 => count,
        _ => (packed.len().saturating_sub(7) * 8 / width as usize).min(count),
    };
    out.extend((0..whole).map(|at| {
        let bit = at * width as usize;
        let from = bit / 8;
        let word = packed.get(from..).and_then(|rest| rest.first_chunk()).copied();
        (u64::from_le_bytes(word.unwrap_or_default()) >> (bit % 8) & mask) as u32
    }));
    out.extend((whole..count).map(|at| {
        let bit = at * width as usize;
        let mut bytes = [0; 8];
        let rest = &packed[(bit / 8).min(packed.len())..];
        let rest = &rest[..rest.len().min(8)];
        bytes[..rest.len()].copy_from_slice(rest);
        (u64::from_le_bytes(bytes) >> (bit % 8) & mask) as u32
    }));
}

fn take_varint(data: &mut &[u8]) -> Option<u64> {
    let mut number = 0u64;
    for shift in (0..63).step_by(7) {
        let (byte, rest) = data.split_first()?;
        *data = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

fn bad(why: &str) -> ParquetError {
    ParquetError::General(why.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_all_widths_come_back() {
        for width in 0..=32u32 {
            let largest = ((1u64 << width) - 1) as u32;
            let numbers: Vec<u32> =
                (0..40u32).map(|n| n.wrapping_mul(0x9e37_79b9) & largest).collect();
            // Five groups of eight, packed.
            let mut bytes = vec![5 << 1 | 1];
            let (mut bits, mut filled) = (0u128, 0);
            for number in &numbers {
                bits |= u128::from(*number) << filled;
                filled += width;
                while filled >= 8 {
                    bytes.push(bits as u8);
                    (bits, filled) = (bits >> 8, filled - 8);
                }
            }
            // And a run of seven.
            bytes.push(7 << 1);
            bytes.extend(&largest.to_le_bytes()[..width.div_ceil(8) as usize]);
            let mut read = Vec::new();
            decode_runs(&bytes, width, 46, &mut read).expect("decodes");
            let expected: Vec<u32> = numbers.into_iter().chain([largest; 6]).collect();
            assert_eq!(read, expected, "width {width}");
            if width > 0 {
                let cut = &bytes[..bytes.len() - 1];
                assert_eq!(decode_runs(cut, width, 47, &mut Vec::new()), None, "width {width}");
            }
        }
    }

    #[test]
    fn what_is_no_run_is_refused() {
        for bytes in [&[][..], &[0x80], &[0], &[3], &[0xff; 12]] {
            assert_eq!(decode_runs(bytes, 9, 1, &mut Vec::new()), None, "{bytes:?}");
        }
        assert_eq!(decode_runs(&[2, 0], 33, 1, &mut Vec::new()), None);
    }
}
