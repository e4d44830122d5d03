//! Walks over MessagePack: iterative, and bounded in depth. It never allocates by a declared length
//! before that many bytes are there.

use std::ops::Range;

use rmp::Marker;

use super::event::MAX_PROPERTIES_DEPTH;

/// Walks over MessagePack, forward only.
#[derive(Debug)]
pub struct MsgpackReader<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// The next thing in a MessagePack text: a whole scalar, or the head of an array or a map.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Token<'a> {
    Nil,
    Bool(bool),
    Int(i128),
    Float(f64),
    Float32(f32),
    /// The bytes of a string, which need not be UTF-8.
    Str(&'a [u8]),
    /// Bytes or an extension.
    Other,
    /// The one marker that MessagePack never uses.
    Reserved,
    /// How many elements follow.
    Array(u32),
    /// How many pairs follow.
    Map(u32),
}

impl Token<'_> {
    /// A number as decimal text. Floats by their shortest text, so that 0.1 stays 0.1; NaN and
    /// infinities have none.
    pub fn number_text(&self) -> Option<String> {
        match self {
            Token::Int(n) => Some(n.to_string()),
            Token::Float(f) if f.is_finite() => Some(f.to_string()),
            Token::Float32(f) if f.is_finite() => Some(f.to_string()),
            _ => None,
        }
    }
}

/// Why bytes cannot be read, for people.
pub type DecodeReason = &'static str;

impl<'a> MsgpackReader<'a> {
    /// A reader at the beginning of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }
    /// How many bytes were read.
    pub fn position(&self) -> usize {
        self.at
    }
    /// Reads on from an earlier position.
    pub fn rewind(&mut self, position: usize) {
        self.at = position.min(self.at);
    }
    fn take(&mut self, n: usize) -> Result<&'a [u8], DecodeReason> {
        let rest = &self.bytes[self.at..];
        let (taken, _) = rest.split_at_checked(n).ok_or("cut off")?;
        self.at += n;
        Ok(taken)
    }
    fn uint(&mut self, n: usize) -> Result<u64, DecodeReason> {
        Ok(self.take(n)?.iter().fold(0, |v, &b| (v << 8) | u64::from(b)))
    }
    fn blob(&mut self, width: usize, extra: usize) -> Result<&'a [u8], DecodeReason> {
        let len = usize::try_from(self.uint(width)?).map_err(|_| "a length is too long")?;
        self.take(len.saturating_add(extra))
    }
    /// Reads a scalar, or the head of an array or a map.
    ///
    /// # Errors
    /// If the bytes are cut off.
    pub fn token(&mut self) -> Result<Token<'a>, DecodeReason> {
        let marker = Marker::from_u8(self.take(1)?[0]);
        Ok(match marker {
            Marker::Null => Token::Nil,
            Marker::True => Token::Bool(true),
            Marker::False => Token::Bool(false),
            // Consumed as one byte: only the event that holds it is refused, and the walk can
            // continue.
            Marker::Reserved => Token::Reserved,
            Marker::FixPos(n) => Token::Int(i128::from(n)),
            Marker::FixNeg(n) => Token::Int(i128::from(n)),
            Marker::U8 => Token::Int(i128::from(self.uint(1)?)),
            Marker::U16 => Token::Int(i128::from(self.uint(2)?)),
            Marker::U32 => Token::Int(i128::from(self.uint(4)?)),
            Marker::U64 => Token::Int(i128::from(self.uint(8)?)),
            Marker::I8 => Token::Int(i128::from(self.uint(1)? as i8)),
            Marker::I16 => Token::Int(i128::from(self.uint(2)? as i16)),
            Marker::I32 => Token::Int(i128::from(self.uint(4)? as i32)),
            Marker::I64 => Token::Int(i128::from(self.uint(8)? as i64)),
            Marker::F32 => Token::Float32(f32::from_bits(self.uint(4)? as u32)),
            Marker::F64 => Token::Float(f64::from_bits(self.uint(8)?)),
            Marker::FixStr(n) => Token::Str(self.take(usize::from(n))?),
            Marker::Str8 => Token::Str(self.blob(1, 0)?),
            Marker::Str16 => Token::Str(self.blob(2, 0)?),
            Marker::Str32 => Token::Str(self.blob(4, 0)?),
            Marker::Bin8 => self.blob(1, 0).map(|_| Token::Other)?,
            Marker::Bin16 => self.blob(2, 0).map(|_| Token::Other)?,
            Marker::Bin32 => self.blob(4, 0).map(|_| Token::Other)?,
            Marker::Ext8 => self.blob(1, 1).map(|_| Token::Other)?,
            Marker::Ext16 => self.blob(2, 1).map(|_| Token::Other)?,
            Marker::Ext32 => self.blob(4, 1).map(|_| Token::Other)?,
            Marker::FixExt1 => self.take(2).map(|_| Token::Other)?,
            Marker::FixExt2 => self.take(3).map(|_| Token::Other)?,
            Marker::FixExt4 => self.take(5).map(|_| Token::Other)?,
            Marker::FixExt8 => self.take(9).map(|_| Token::Other)?,
            Marker::FixExt16 => self.take(17).map(|_| Token::Other)?,
            Marker::FixArray(n) => Token::Array(u32::from(n)),
            Marker::Array16 => Token::Array(self.uint(2)? as u32),
            Marker::Array32 => Token::Array(self.uint(4)? as u32),
            Marker::FixMap(n) => Token::Map(u32::from(n)),
            Marker::Map16 => Token::Map(self.uint(2)? as u32),
            Marker::Map32 => Token::Map(self.uint(4)? as u32),
        })
    }
    /// Skips one value of any depth. Keeps a single count of the values still missing, so it needs
    /// no stack. Every value takes at least one byte, so a huge declared count ends with the body.
    ///
    /// # Errors
    /// If the bytes are cut off.
    pub fn skip_value(&mut self) -> Result<Range<usize>, DecodeReason> {
        let (start, mut missing) = (self.at, 1u64);
        while missing > 0 {
            missing = missing.saturating_sub(1).saturating_add(match self.token()? {
                Token::Array(n) => u64::from(n),
                Token::Map(n) => u64::from(n) * 2,
                _ => 0,
            });
        }
        Ok(start..self.at)
    }
    /// Skips one value that will be stored: it must be well-formed, and shallow enough for later
    /// readers of the archive.
    ///
    /// # Errors
    /// If the bytes are cut off, hold a reserved marker, or are nested too deeply.
    pub fn skip_checked(&mut self) -> Result<Range<usize>, DecodeReason> {
        let start = self.at;
        let mut open: smallvec::SmallVec<[u64; 16]> = smallvec::smallvec![1];
        while let Some(left) = open.last_mut() {
            if *left == 0 {
                open.pop();
                continue;
            }
            *left -= 1;
            match self.token()? {
                Token::Array(n) => open.push(u64::from(n)),
                Token::Map(n) => open.push(u64::from(n) * 2),
                Token::Reserved => return Err("a reserved marker"),
                _ => {}
            }
            if open.len() > MAX_PROPERTIES_DEPTH {
                return Err("nested too deeply");
            }
        }
        Ok(start..self.at)
    }
    /// Checks that every string in a stored value is UTF-8, as readers of the archive expect.
    /// Arbitrary bytes have the type `bin`.
    ///
    /// # Errors
    /// If the bytes are cut off, or a string is not UTF-8.
    pub fn check_text(&mut self) -> Result<(), DecodeReason> {
        while self.at < self.bytes.len() {
            if let Token::Str(text) = self.token()? {
                std::str::from_utf8(text).map_err(|_| "a string in the properties is not UTF-8")?;
            }
        }
        Ok(())
    }
    /// Reads a scalar; an array or map is skipped and read as [`Token::Other`].
    ///
    /// # Errors
    /// If the bytes are cut off, or the value is one that [`Self::skip_checked`] refuses.
    pub fn token_of_scalar(&mut self) -> Result<Token<'a>, DecodeReason> {
        let start = self.at;
        match self.token()? {
            Token::Array(_) | Token::Map(_) => {
                self.at = start;
                self.skip_checked().map(|_| Token::Other)
            }
            Token::Reserved => Err("a reserved marker"),
            scalar => Ok(scalar),
        }
    }
}
