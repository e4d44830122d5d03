//! Tracks how much of a WebSocket message has been received, from the bytes on the wire. Pure.
//!
//! The WebSocket library hands out whole messages. An unfinished one sits in the library's buffers,
//! where no limit counts it. So this tracker reads the frame headers before the library does.
//! Control frames between the frames of a message do not count as part of it.

/// Longest frame header: two bytes, eight of length, four of mask.
const MAX_HEAD: usize = 14;

/// Parser state: inside a frame header, or inside a payload.
#[derive(Debug, Default)]
pub(super) struct FrameTracker {
    head: [u8; MAX_HEAD],
    head_bytes: usize,
    /// Bytes of the current frame's payload that have not arrived yet.
    payload_left: u64,
    /// `part`: the frame belongs to a message, not to a control frame. `last`: it ends the message.
    part: bool,
    last: bool,
    /// Payload bytes of the unfinished message; `None` between messages.
    message: Option<u64>,
}

impl FrameTracker {
    /// Advances over received bytes, which may begin and end anywhere in a frame.
    pub(super) fn push(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.payload_left == 0 {
                let (first, rest) = bytes.split_at(1);
                bytes = rest;
                self.head[self.head_bytes] = first[0];
                self.head_bytes += 1;
                if self.head_bytes == self.head_length() {
                    self.begin();
                }
                continue;
            }
            let now = usize::try_from(self.payload_left).unwrap_or(usize::MAX).min(bytes.len());
            bytes = &bytes[now..];
            self.payload_left -= now as u64;
            if self.part {
                self.message = Some(self.message.unwrap_or(0).saturating_add(now as u64));
            }
            self.end_if_done();
        }
    }

    /// Payload bytes of the unfinished message; `None` if every message is complete.
    pub(super) fn unfinished_bytes(&self) -> Option<u64> {
        self.message
    }

    /// Length of the current header; the maximum while too little of it is known.
    fn head_length(&self) -> usize {
        if self.head_bytes < 2 {
            return MAX_HEAD;
        }
        let length = match self.head[1] & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        2 + length + if self.head[1] & 0x80 == 0 { 0 } else { 4 }
    }

    fn begin(&mut self) {
        self.payload_left = match self.head[1] & 0x7f {
            126 => u64::from(u16::from_be_bytes([self.head[2], self.head[3]])),
            127 => self.head[2..10].iter().fold(0, |length, byte| length << 8 | u64::from(*byte)),
            short => u64::from(short),
        };
        // Opcodes from 8 on are control frames.
        self.part = self.head[0] & 0x0f < 8;
        self.last = self.head[0] & 0x80 != 0;
        self.head_bytes = 0;
        if self.part {
            // A message begins with its first header, even before any payload.
            self.message = Some(self.message.unwrap_or(0));
        }
        self.end_if_done();
    }

    fn end_if_done(&mut self) {
        if self.payload_left == 0 && self.part && self.last {
            self.message = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: u8 = 1;
    const MORE: u8 = 0;
    const PING: u8 = 9;

    fn frame(opcode: u8, last: bool, payload: usize) -> Vec<u8> {
        let mut bytes = vec![opcode | if last { 0x80 } else { 0 }];
        match payload {
            0..126 => bytes.push(0x80 | payload as u8),
            126..65_536 => {
                bytes.push(0x80 | 126);
                bytes.extend((payload as u16).to_be_bytes());
            }
            _ => {
                bytes.push(0x80 | 127);
                bytes.extend((payload as u64).to_be_bytes());
            }
        }
        bytes.extend([1, 2, 3, 4]);
        // A payload that looks like frame headers must not be parsed as such.
        bytes.extend(std::iter::repeat_n(0x81, payload));
        bytes
    }

    #[test]
    fn a_message_is_unfinished_from_its_first_head_to_its_last_byte() {
        for payload in [0, 1, 125, 126, 65_535, 65_536, 100_000] {
            let whole = frame(TEXT, true, payload);
            let head = whole.len() - payload;
            let mut frames = FrameTracker::default();
            for (at, byte) in whole.iter().enumerate() {
                frames.push(&[*byte]);
                let came = (at + 1).checked_sub(head).filter(|came| *came < payload);
                assert_eq!(
                    frames.unfinished_bytes(),
                    came.map(|came| came as u64),
                    "byte {at} of {payload}"
                );
            }
        }
    }

    #[test]
    fn pings_are_no_part_of_a_message_and_end_none() {
        let mut frames = FrameTracker::default();
        frames.push(&frame(PING, true, 100));
        assert_eq!(frames.unfinished_bytes(), None);
        frames.push(&frame(TEXT, false, 1_000));
        for _ in 0..10 {
            frames.push(&frame(PING, true, 100));
            assert_eq!(frames.unfinished_bytes(), Some(1_000));
        }
        frames.push(&frame(MORE, false, 500));
        frames.push(&frame(MORE, true, 500)[..100]);
        assert_eq!(frames.unfinished_bytes(), Some(1_592));
        frames.push(&frame(MORE, true, 500)[100..]);
        assert_eq!(frames.unfinished_bytes(), None);
    }

    proptest! {
        #[test]
        fn how_the_bytes_come_in_does_not_matter(
            messages in prop::collection::vec(
                (prop::collection::vec(0_usize..300, 1..4), any::<bool>()),
                1..6,
            ),
            cut in any::<prop::sample::Index>(),
            step in 1_usize..50,
        ) {
            let mut stream = Vec::new();
            for (parts, ping) in &messages {
                for (at, payload) in parts.iter().enumerate() {
                    let opcode = if at == 0 { TEXT } else { MORE };
                    stream.extend(frame(opcode, at + 1 == parts.len(), *payload));
                    stream.extend(ping.then(|| frame(PING, true, 7)).unwrap_or_default());
                }
            }
            let cut = cut.index(stream.len() + 1);
            let (mut whole, mut bytewise) = (FrameTracker::default(), FrameTracker::default());
            whole.push(&stream[..cut]);
            stream[..cut].chunks(step).for_each(|chunk| bytewise.push(chunk));
            prop_assert_eq!(whole.unfinished_bytes(), bytewise.unfinished_bytes());
            whole.push(&stream[cut..]);
            prop_assert_eq!(whole.unfinished_bytes(), None);
        }
    }
}
