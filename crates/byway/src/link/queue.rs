//! Messages waiting to be sent, already in the form in which they go on a stream.

use std::collections::VecDeque;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::datagrams::DatagramQueue;

/// Messages up to this many bytes are copied next to each other: cheaper than a chunk of their own.
const INLINE: usize = 1_024;

/// Memory that small messages share, one behind the other: a chunk ends with it, or where the writer took what was there.
pub(super) const CHUNK: usize = 16 << 10;

/// As [`CHUNK`], while nothing else waits: all that a quiet lane keeps.
pub(super) const QUIET_CHUNK: usize = 2 << 10;

/// The most bytes in front of a message: a variable-length integer (RFC 9000 §16).
pub(crate) const MAX_HEADER: usize = 8;

/// What waits in a lane, in the form in which it leaves.
#[derive(Debug)]
pub(crate) enum Queue {
    /// For a stream.
    Frames(FrameQueue),
    /// For datagrams.
    Datagrams(DatagramQueue),
}

impl From<FrameQueue> for Queue {
    fn from(queue: FrameQueue) -> Self {
        Queue::Frames(queue)
    }
}

impl Queue {
    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        match self {
            Queue::Frames(queue) => queue.is_empty(),
            Queue::Datagrams(queue) => queue.is_empty(),
        }
    }

    /// Bytes that wait.
    pub(super) fn len(&self) -> usize {
        match self {
            Queue::Frames(queue) => queue.bytes,
            Queue::Datagrams(queue) => queue.len(),
        }
    }

    /// Whether one more message finds room.
    pub(super) fn has_room(&self) -> bool {
        match self {
            Queue::Frames(queue) => queue.has_room(),
            Queue::Datagrams(queue) => queue.has_room(),
        }
    }

    /// Messages that wait, and the bytes of what waits. Of raw bytes each piece that was put in counts as a message.
    pub(super) fn waiting(&self) -> (usize, usize) {
        match self {
            Queue::Frames(queue) => (queue.messages, queue.bytes),
            Queue::Datagrams(queue) => queue.waiting(),
        }
    }

    /// Appends a message; `false` if there is no room.
    pub(super) fn push(&mut self, message: &Bytes) -> bool {
        match self {
            Queue::Frames(queue) => queue.push(message),
            Queue::Datagrams(queue) => queue.push(message),
        }
    }

    /// Appends bytes without a length in front; `false` if there is no room.
    pub(super) fn push_raw(&mut self, bytes: &Bytes) -> bool {
        match self {
            Queue::Frames(queue) => queue.push_raw(bytes),
            Queue::Datagrams(queue) => queue.push(bytes),
        }
    }

    /// Takes about `budget` bytes from the front.
    pub(super) fn take(&mut self, budget: usize, out: &mut VecDeque<Bytes>) {
        match self {
            Queue::Frames(queue) => drop(queue.take(budget, out)),
            Queue::Datagrams(queue) => queue.take(budget, out),
        }
    }
}

/// A bounded queue of framed messages: length, then content.
#[derive(Debug)]
pub(crate) struct FrameQueue {
    chunks: VecDeque<(Bytes, usize)>,
    tail: BytesMut,
    tail_messages: usize,
    messages: usize,
    bytes: usize,
    max_messages: usize,
    max_bytes: usize,
}

impl FrameQueue {
    /// A queue that takes messages while it holds fewer than `max_messages` and `max_bytes`.
    pub(crate) fn new(max_messages: usize, max_bytes: usize) -> Self {
        FrameQueue {
            chunks: VecDeque::new(),
            tail: BytesMut::new(),
            tail_messages: 0,
            messages: 0,
            bytes: 0,
            max_messages,
            max_bytes,
        }
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Whether one more message finds room.
    pub(crate) fn has_room(&self) -> bool {
        self.messages < self.max_messages && self.bytes < self.max_bytes
    }

    /// Appends a message with its length in front; `false` if there is no room.
    pub(crate) fn push(&mut self, message: &Bytes) -> bool {
        if !self.has_room() {
            return false;
        }
        self.make_room(MAX_HEADER + message.len());
        let before = self.tail.len();
        put_varint(&mut self.tail, message.len() as u64);
        self.bytes += self.tail.len() - before;
        self.append(message);
        true
    }

    /// Appends bytes as they are; `false` if there is no room.
    pub(crate) fn push_raw(&mut self, bytes: &Bytes) -> bool {
        if !self.has_room() {
            return false;
        }
        self.make_room(bytes.len());
        self.append(bytes);
        true
    }

    /// Takes about `budget` bytes from the front, at least one chunk's piece; returns how many.
    pub(crate) fn take(&mut self, budget: usize, out: &mut VecDeque<Bytes>) -> usize {
        let mut taken = 0;
        while taken < budget {
            let Some((chunk, messages)) = self.chunks.front_mut() else {
                if self.tail.is_empty() {
                    break;
                }
                self.flush();
                continue;
            };
            let left = budget - taken;
            if chunk.len() <= left {
                taken += chunk.len();
                self.messages -= *messages;
                out.push_back(std::mem::take(chunk));
                self.chunks.pop_front();
            } else {
                taken += left;
                out.push_back(chunk.split_to(left));
            }
        }
        self.bytes -= taken;
        taken
    }

    fn append(&mut self, bytes: &Bytes) {
        self.bytes += bytes.len();
        self.messages += 1;
        self.tail_messages += 1;
        if bytes.len() <= INLINE {
            self.tail.extend_from_slice(bytes);
        } else {
            let messages = std::mem::take(&mut self.tail_messages);
            self.flush();
            self.chunks.push_back((bytes.clone(), messages));
        }
    }

    /// Makes the tail take `len` more bytes, or the header of what is too large for it, without moving what it holds.
    fn make_room(&mut self, len: usize) {
        let len = len.min(MAX_HEADER + INLINE);
        if self.tail.capacity() - self.tail.len() < len {
            self.flush();
            self.tail = BytesMut::with_capacity(if self.chunks.is_empty() { QUIET_CHUNK } else { CHUNK });
        }
    }

    fn flush(&mut self) {
        if !self.tail.is_empty() {
            let messages = std::mem::take(&mut self.tail_messages);
            self.chunks.push_back((self.tail.split().freeze(), messages));
        }
    }
}

/// Writes a variable-length integer (RFC 9000 §16); values from 2⁶² on do not occur.
pub(crate) fn put_varint(out: &mut BytesMut, value: u64) {
    match value {
        0..0x40 => out.put_u8(value as u8),
        0x40..0x4000 => out.put_u16(0x4000 | value as u16),
        0x4000..0x4000_0000 => out.put_u32(0x8000_0000 | value as u32),
        _ => out.put_u64(0xc000_0000_0000_0000 | value),
    }
}

/// Reads a variable-length integer from the front of `bytes`; `None` if it is not all there yet.
pub(crate) fn take_varint(bytes: &mut Bytes) -> Option<u64> {
    let first = *bytes.first()?;
    let len = 1 << (first >> 6);
    if bytes.len() < len {
        return None;
    }
    let mut value = u64::from(first & 0x3f);
    bytes.advance(1);
    for _ in 1..len {
        value = value << 8 | u64::from(bytes.get_u8());
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(queue: &mut FrameQueue, budget: usize) -> Vec<u8> {
        let mut out = VecDeque::new();
        while !queue.is_empty() {
            assert!(queue.take(budget, &mut out) > 0);
        }
        out.into_iter().flatten().collect()
    }

    #[test]
    fn messages_of_all_sizes_come_out_framed_and_in_order() {
        for budget in [1, 100, 4_096, 1 << 20] {
            let mut queue = FrameQueue::new(100, 1 << 20);
            let sizes = [0, 1, 63, 64, 1_024, 1_025, 20_000, 5, 16_384, 3];
            for (n, size) in sizes.iter().enumerate() {
                assert!(queue.push(&Bytes::from(vec![n as u8; *size])));
            }
            assert_eq!(queue.messages, sizes.len());
            let mut all = Bytes::from(drain(&mut queue, budget));
            for (n, size) in sizes.iter().enumerate() {
                let len = take_varint(&mut all).unwrap() as usize;
                assert_eq!(len, *size);
                assert!(all.split_to(len).iter().all(|byte| *byte == n as u8));
            }
            assert!(all.is_empty());
            assert_eq!(queue.messages, 0);
        }
    }

    #[test]
    fn headers_of_large_messages_share_their_memory() {
        let mut queue = FrameQueue::new(100, 1 << 20);
        for _ in 0..3 {
            assert!(queue.push(&Bytes::from(vec![0; 65_536])));
        }
        let headers: Vec<_> = queue.chunks.iter().step_by(2).map(|(header, _)| header.as_ptr()).collect();
        assert!(headers.windows(2).all(|pair| pair[1] as usize == pair[0] as usize + 4), "{headers:?}");
    }

    #[test]
    fn a_quiet_lane_keeps_little_memory_and_a_busy_one_moves_nothing() {
        let mut queue = FrameQueue::new(10_000, 1 << 20);
        let message = Bytes::from_static(&[7; 100]);
        for _ in 0..100 {
            assert!(queue.push(&message));
            assert!(queue.tail.capacity() <= QUIET_CHUNK);
            queue.take(usize::MAX, &mut VecDeque::new());
        }
        assert!(queue.push(&message));
        let mut start = queue.tail.as_ptr();
        for _ in 0..1_000 {
            let chunks = queue.chunks.len();
            assert!(queue.push(&message));
            assert!(queue.chunks.len() > chunks || queue.tail.as_ptr() == start);
            start = queue.tail.as_ptr();
        }
        assert!(queue.chunks.iter().all(|(chunk, _)| chunk.len() <= CHUNK));
    }

    #[test]
    fn a_full_queue_takes_no_more_until_something_left() {
        let mut queue = FrameQueue::new(2, 1 << 20);
        let message = Bytes::from_static(b"message");
        assert!(queue.push(&message) && queue.push(&message));
        assert!(!queue.push(&message));
        queue.take(usize::MAX, &mut VecDeque::new());
        assert!(queue.push(&message));
    }

    #[test]
    fn varints_survive_the_round_trip_and_wait_for_missing_bytes() {
        for value in [0, 63, 64, 16_383, 16_384, 1 << 30, (1 << 30) - 1, (1 << 62) - 1] {
            let mut out = BytesMut::new();
            put_varint(&mut out, value);
            let whole = out.freeze();
            assert_eq!(take_varint(&mut whole.slice(..whole.len() - 1)), None);
            assert_eq!(take_varint(&mut whole.clone()), Some(value));
        }
    }
}
