//! Questions about copies of mirrored instances from another node, one behind the other: each can be written the same way again, and
//! whatever they do, a copy is never changed that is fenced. Answers are read too.
#![no_main]

use libfuzzer_sys::fuzz_target;
use steadfast::episodes::mirrored::{Answer, Copies, Question};

fuzz_target!(|questions: Vec<Vec<u8>>| {
    let copies = Copies::default();
    let mut fences = std::collections::BTreeMap::new();
    for bytes in &questions {
        let _ = Answer::decode(bytes);
        let Ok(question) = Question::decode(bytes) else { continue };
        assert_eq!(Question::decode(&question.encode()).as_ref(), Ok(&question));
        let answer = copies.ask(question.clone()).expect("nothing is written to a disk");
        assert_eq!(Answer::decode(&answer.encode()).as_ref(), Ok(&answer));
        match question {
            Question::Fence { homes } if answer == Answer::Done => {
                for (home, generation) in homes {
                    let fence = fences.entry(home).or_insert(0);
                    *fence = generation.number.saturating_add(1).max(*fence);
                }
            }
            Question::Commit { homes, .. } if answer == Answer::Done => {
                let is_free = |(home, generation): &(u32, steadfast::episodes::mirrored::Generation)| {
                    fences.get(home).is_none_or(|fence| generation.number >= *fence)
                };
                assert!(homes.iter().all(is_free), "a fenced copy was changed");
            }
            Question::Stage { .. } | Question::Commit { .. } | Question::Fence { .. } | Question::Read { .. } => {}
        }
    }
});
