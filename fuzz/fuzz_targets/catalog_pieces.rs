//! The pieces of an image of the catalog, from several members and in any order. What is completed must consist of
//! consecutive pieces of one sender, and have the announced length.
#![no_main]

use libfuzzer_sys::fuzz_target;
use steadfast::catalog::fuzzing::{Piece, pieces};

fuzz_target!(|bytes: &[u8]| {
    let mut rest = bytes;
    let mut plan = Vec::new();
    while let Some((&[sender, offset, total, length], after)) = rest.split_first_chunk() {
        let (data, after) = after.split_at(usize::from(length % 8).min(after.len()));
        let wide = |byte: u8| if byte == 255 { u64::MAX } else { u64::from(byte % 32) };
        plan.push(Piece { from: u64::from(sender % 2), offset: wide(offset), total: wide(total), data });
        rest = after;
    }
    let Some(image) = pieces(&plan) else { return };
    let follows = |first: usize| {
        let (from, total) = (plan[first].from, plan[first].total);
        let mut made = Vec::new();
        for piece in &plan[first..] {
            if piece.from != from || piece.total != total || piece.offset != made.len() as u64 {
                return false;
            }
            made.extend_from_slice(piece.data);
            if made.len() as u64 == total {
                return made == image;
            }
        }
        false
    };
    assert!((0..plan.len()).any(follows), "an image out of nothing: {plan:?}");
});
