//! A filter of events. Whatever is accepted reads back as it was printed, and a refusal names a problem and a place in the
//! text.
#![no_main]

use libfuzzer_sys::fuzz_target;
use steadfast_cli::events::filter::Filter;

fuzz_target!(|text: &str| {
    match text.parse::<Filter>() {
        Ok(filter) => {
            assert_eq!(filter.to_string().parse::<Filter>().as_ref(), Ok(&filter));
            match filter.registrations() {
                Ok(found) => assert!(!found.list.is_empty() || !found.left_out.is_empty()),
                Err(error) => assert!(!error.to_string().is_empty()),
            }
        }
        Err(error) => assert!(error.at() <= text.len() && !error.to_string().is_empty()),
    }
});
