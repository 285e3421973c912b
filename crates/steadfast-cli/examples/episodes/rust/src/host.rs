//! Host interface version 1 for Rust: what the agent offers, as functions of texts and bytes.
//!
//! All `unsafe` of the module is here. A call that the host refuses does not return.

#[link(wasm_import_module = "steadfast_1")]
unsafe extern "C" {
    safe fn instance_len() -> usize;
    fn instance_read(to: *mut u8);
    safe fn state_len() -> usize;
    fn state_read(to: *mut u8);
    fn state_write(at: *const u8, len: usize);
    safe fn event_len(part: u32) -> i32;
    fn event_read(part: u32, to: *mut u8);
    fn send(
        to_at: *const u8,
        to_len: usize,
        kind_at: *const u8,
        kind_len: usize,
        correlation_at: *const u8,
        correlation_len: usize,
        payload_at: *const u8,
        payload_len: usize,
        flags: u32,
        within_ms: i64,
    );
    fn wait(
        kind_at: *const u8,
        kind_len: usize,
        source_at: *const u8,
        source_len: usize,
        correlation_at: *const u8,
        correlation_len: usize,
        filter_at: *const u8,
        filter_len: usize,
    );
    safe fn deadline(ms: i64);
    fn end(at: *const u8, len: usize);
    fn log(at: *const u8, len: usize);
    fn fail(at: *const u8, len: usize, lasting: u32);
}

/// The parts of the event.
const KIND: u32 = 0;
const SOURCE: u32 = 1;
const PAYLOAD: u32 = 3;
/// The flag that begins a receiver that does not exist.
const BEGINS: u32 = 1;

/// Says for which version the module was compiled.
#[unsafe(no_mangle)]
pub extern "C" fn steadfast_version_1() {}

fn filled(len: usize, read: impl FnOnce(*mut u8)) -> Vec<u8> {
    let mut bytes = vec![0; len];
    read(bytes.as_mut_ptr());
    bytes
}

fn event_part(part: u32) -> Vec<u8> {
    let len = usize::try_from(event_len(part)).unwrap_or(0);
    // SAFETY: the host writes as many bytes as the length of the part.
    filled(len, |to| unsafe { event_read(part, to) })
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).expect("names and kinds are UTF-8")
}

/// The instance's name, `PROGRAM/KEY`.
pub fn instance() -> String {
    // SAFETY: the host writes as many bytes as the name has.
    text(filled(instance_len(), |to| unsafe { instance_read(to) }))
}

/// What the last episode left.
pub fn state() -> Vec<u8> {
    // SAFETY: the host writes as many bytes as the state has.
    filled(state_len(), |to| unsafe { state_read(to) })
}

/// What the next episode finds.
pub fn set_state(state: &[u8]) {
    // SAFETY: the host reads these bytes and keeps no address.
    unsafe { state_write(state.as_ptr(), state.len()) }
}

/// What has come.
pub fn event_kind() -> String {
    text(event_part(KIND))
}

/// From whom it has come; empty if from nobody.
pub fn event_source() -> String {
    text(event_part(SOURCE))
}

/// What it says.
pub fn event_payload() -> Vec<u8> {
    event_part(PAYLOAD)
}

/// Begins a child with a message, or sends it to one that exists.
pub fn begin(to: &str, kind: &str, payload: &[u8]) {
    // SAFETY: the host reads these bytes and keeps no address.
    unsafe {
        send(
            to.as_ptr(),
            to.len(),
            kind.as_ptr(),
            kind.len(),
            std::ptr::null(),
            0,
            payload.as_ptr(),
            payload.len(),
            BEGINS,
            0,
        );
    }
}

/// Waits for an event of this kind from this instance, as one of several.
pub fn wait_for(kind: &str, source: &str) {
    let none = std::ptr::null();
    // SAFETY: the host reads these bytes and keeps no address.
    unsafe { wait(kind.as_ptr(), kind.len(), source.as_ptr(), source.len(), none, 0, none, 0) }
}

/// Waits no longer than this.
pub fn wait_at_most_ms(ms: i64) {
    deadline(ms);
}

/// Ends the instance.
pub fn end_with(answer: &[u8]) {
    // SAFETY: the host reads these bytes and keeps no address.
    unsafe { end(answer.as_ptr(), answer.len()) }
}

/// Logs a line.
pub fn log_line(line: &str) {
    // SAFETY: the host reads these bytes and keeps no address.
    unsafe { log(line.as_ptr(), line.len()) }
}

/// Gives up for good: a person has to see to it.
pub fn give_up(why: &str) {
    // SAFETY: the host reads these bytes and keeps no address; it does not return.
    unsafe { fail(why.as_ptr(), why.len(), 1) }
}
