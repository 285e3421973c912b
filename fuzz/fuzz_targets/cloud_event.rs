//! An event in JSON. Whatever is accepted must be the same event once it is written again, and a refusal must name a
//! problem.
#![no_main]

use libfuzzer_sys::fuzz_target;
use steadfast_cli::events::cloud::CloudEvent;

fuzz_target!(|bytes: &[u8]| {
    let Ok(event) = serde_json::from_slice::<CloudEvent>(bytes) else { return };
    match event.delivery() {
        Ok(delivery) => {
            let (cluster, _) = event.cluster_and_node().expect("a source was read from it");
            let again = CloudEvent::new(cluster, &delivery);
            assert_eq!(again.delivery().as_ref(), Ok(&delivery));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
