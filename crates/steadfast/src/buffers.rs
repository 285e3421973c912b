//! Large buffers that are used again: fresh pages cost several times the copy into them.
//!
//! It decides only how many are kept. A buffer that is shared comes back when the last holder drops it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

/// Largest buffer that is kept.
const KEPT_BYTES_MAX: usize = 2 << 20;
/// Most buffers that are kept.
const KEPT_MAX: usize = 32;

/// A set of buffers that wait for their next use. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Buffers {
    free: Arc<Mutex<Vec<Vec<u8>>>>,
}

/// A buffer that is shared.
struct Lent {
    buffer: Vec<u8>,
    buffers: Buffers,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.buffers.give(std::mem::take(&mut self.buffer));
    }
}

impl Buffers {
    /// An empty buffer with room for `capacity` bytes.
    pub(crate) fn take(&self, capacity: usize) -> Vec<u8> {
        let mut buffer = self.lock().pop().unwrap_or_default();
        buffer.clear();
        buffer.reserve(capacity);
        buffer
    }

    /// Takes a buffer back.
    pub(crate) fn give(&self, buffer: Vec<u8>) {
        let mut free = self.lock();
        if free.len() < KEPT_MAX && buffer.capacity() <= KEPT_BYTES_MAX {
            free.push(buffer);
        }
    }

    /// Shares a filled buffer; it comes back by itself.
    pub(crate) fn share(&self, buffer: Vec<u8>) -> Bytes {
        Bytes::from_owner(Lent { buffer, buffers: self.clone() })
    }

    /// Whether any buffer waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Gives the memory of waiting buffers back to the system.
    pub(crate) fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_buffer_comes_back_when_the_last_holder_drops_it() {
        let buffers = Buffers::default();
        let mut buffer = buffers.take(100);
        buffer.extend_from_slice(b"chunk");
        let place = buffer.as_ptr();
        let first = buffers.share(buffer);
        let second = first.slice(1..);
        drop(first);
        assert!(buffers.is_empty());
        assert_eq!(second, &b"hunk"[..]);
        drop(second);
        let again = buffers.take(50);
        assert_eq!((again.as_ptr(), again.len()), (place, 0));
    }
}
