//! Disks that come into sight of this node and go out of it, as events.
//!
//! It compares what the room of device names saw with what it saw before; what was there at the start is no news. It never
//! looks at a disk itself.

use std::collections::BTreeMap;
use std::sync::Arc;

use steadfast::events::hub::Hub;
use steadfast_proto::events::{EventType, Fields, Value};

use crate::agent::devices::Room;

/// Tells of disks for as long as the room is kept.
pub(crate) async fn follow(hub: Hub, room: Arc<Room>) {
    let (Ok(appeared), Ok(removed)) =
        ("device.appeared".parse::<EventType>(), "device.removed".parse::<EventType>())
    else {
        return;
    };
    let mut scans = room.scans();
    let mut before: Option<BTreeMap<String, String>> = None;
    loop {
        let is_scanned = *scans.borrow_and_update() > 0;
        let now = seen(&room);
        if let Some(before) = before {
            for (path, device) in now.iter().filter(|(path, device)| before.get(*path) != Some(device)) {
                hub.emit(&appeared, &fields(path, device));
            }
            for (path, device) in before.iter().filter(|(path, device)| now.get(*path) != Some(device)) {
                hub.emit(&removed, &fields(path, device));
            }
        }
        before = is_scanned.then_some(now);
        if scans.changed().await.is_err() {
            return;
        }
    }
}

/// What each block device is, by the kernel's name; one that can't be told from others is not known.
fn seen(room: &Room) -> BTreeMap<String, String> {
    let shown = room.shown();
    let known = shown
        .kernel_names
        .iter()
        .filter_map(|(path, device)| Some((path.clone(), device.as_ref().ok()?.as_str().to_owned())));
    known.collect()
}

fn fields(path: &str, device: &str) -> Fields {
    let all = [("device", device), ("path", path)];
    all.into_iter().map(|(name, text)| (name.to_owned(), Value::Text(text.to_owned()))).collect()
}
