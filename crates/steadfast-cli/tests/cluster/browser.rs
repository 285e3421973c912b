//! A real browser on a host of the bed: headless Chromium, driven through chromedriver's WebDriver protocol.
//!
//! It has the few moves that the tests of the page need, in the protocol's own words. Browser and driver are processes of the
//! host and end with it, and with this value. Nothing here knows the page.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use steadfast_cli::bed::{Host, wait_for};

use super::support::PATIENCE;

const DRIVER_PORT: u16 = 9515;
/// The protocol's name of a reference to an element.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// Keys that are no characters, by the protocol's code points.
pub(crate) const TAB: &str = "\u{E004}";
pub(crate) const ENTER: &str = "\u{E007}";
pub(crate) const RIGHT: &str = "\u{E014}";
pub(crate) const DOWN: &str = "\u{E015}";

/// A browser window on a host.
pub(crate) struct Browser<'a> {
    host: &'a Host,
    driver: Child,
    session: String,
}

impl<'a> Browser<'a> {
    /// Starts a browser with one empty window on `host`.
    pub(crate) fn start(host: &'a Host) -> Browser<'a> {
        let mut command = Command::new("chromedriver");
        command.arg(format!("--port={DRIVER_PORT}"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let driver = host.spawn(&mut command).expect("`cargo xtask setup` installs chromedriver");
        let mut browser = Browser { host, driver, session: String::new() };
        let ready = || browser.exchange("GET", "/status", None).ok();
        wait_for("the browser's driver", PATIENCE, ready).unwrap();
        let options = json!({
            "args": ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--hide-scrollbars"],
        });
        let wanted = json!({
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL"},
            "timeouts": {"script": 60_000},
        });
        let made =
            browser.exchange("POST", "/session", Some(&json!({"capabilities": {"alwaysMatch": wanted}})));
        browser.session = made.unwrap()["sessionId"].as_str().unwrap().to_owned();
        browser
    }

    /// Opens an address.
    pub(crate) fn open(&self, address: &str) {
        self.ask("POST", "/url", &json!({ "url": address }));
    }

    /// The address that the window shows.
    pub(crate) fn address(&self) -> String {
        self.ask("GET", "/url", &Value::Null).as_str().unwrap().to_owned()
    }

    /// What a script gives back; it is the body of a function.
    pub(crate) fn script(&self, body: &str) -> Value {
        self.ask("POST", "/execute/sync", &json!({"script": body, "args": []}))
    }

    /// What the promise of a script gives; `body` is the body of an async function.
    pub(crate) fn async_script(&self, body: &str) -> Value {
        let script = format!(
            "const done = arguments[0]; (async () => {{ {body} }})().then(done, error => done('failed: ' + error.stack));"
        );
        self.ask("POST", "/execute/async", &json!({"script": script, "args": []}))
    }

    /// Whether there is an element of this CSS selector.
    pub(crate) fn has(&self, selector: &str) -> bool {
        let found = self.ask("POST", "/elements", &json!({"using": "css selector", "value": selector}));
        found.as_array().is_some_and(|elements| !elements.is_empty())
    }

    /// Waits for an element of this CSS selector.
    pub(crate) fn wait_for(&self, selector: &str) {
        let found = wait_for(selector, PATIENCE, || self.has(selector).then_some(()));
        found.unwrap_or_else(|error| panic!("{error}; the page shows: {}", self.text("body")));
    }

    /// Waits until the element's text contains `words`.
    pub(crate) fn wait_text(&self, selector: &str, words: &str) {
        let told = || (self.has(selector) && self.text(selector).contains(words)).then_some(());
        let found = wait_for(&format!("{words:?} in {selector}"), PATIENCE, told);
        found.unwrap_or_else(|error| panic!("{error}; the page shows: {}", self.text("body")));
    }

    /// The text of the first element of this CSS selector; empty when there is none.
    pub(crate) fn text(&self, selector: &str) -> String {
        // What is drawn has no `innerText`.
        let script = format!(
            "const found = document.querySelector({}); return found?.innerText ?? found?.textContent ?? ''",
            json!(selector)
        );
        self.script(&script).as_str().unwrap_or_default().to_owned()
    }

    /// Clicks as a person does: where the element is, if nothing covers it.
    pub(crate) fn click(&self, selector: &str) {
        let element = self.ask("POST", "/element", &json!({"using": "css selector", "value": selector}));
        let id = element[ELEMENT].as_str().unwrap();
        self.ask("POST", &format!("/element/{id}/click"), &json!({}));
    }

    /// Presses one key after the other, wherever the focus is.
    pub(crate) fn press(&self, keys: &[&str]) {
        let strokes = keys.iter().flat_map(|key| {
            [json!({"type": "keyDown", "value": key}), json!({"type": "keyUp", "value": key})]
        });
        let strokes: Vec<Value> = strokes.collect();
        self.ask(
            "POST",
            "/actions",
            &json!({"actions": [{"type": "key", "id": "keys", "actions": strokes}]}),
        );
    }

    /// Types into whatever has the focus.
    pub(crate) fn write(&self, text: &str) {
        let letters: Vec<String> = text.chars().map(String::from).collect();
        self.press(&letters.iter().map(String::as_str).collect::<Vec<_>>());
    }

    /// Makes the window as wide as a device of so many pixels, in light or dark.
    pub(crate) fn resize(&self, width: u32, scheme: &str) {
        let height = if width < 500 { 740 } else { 860 };
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500});
        self.devtools("Emulation.setDeviceMetricsOverride", &size);
        let media = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.devtools("Emulation.setEmulatedMedia", &media);
    }

    /// Keeps a picture of the whole page as a test artefact.
    pub(crate) fn picture(&self, folder: &Path, name: &str) {
        let size = self.script("return [innerWidth, document.documentElement.scrollHeight]");
        let clip = json!({"x": 0, "y": 0, "width": size[0], "height": size[1].as_f64().unwrap().min(2400.0), "scale": 1});
        let wanted = json!({"format": "png", "captureBeyondViewport": true, "clip": clip});
        let taken = self.devtools("Page.captureScreenshot", &wanted);
        let bytes = from_base64(taken["data"].as_str().unwrap());
        std::fs::create_dir_all(folder).unwrap();
        std::fs::write(folder.join(format!("{name}.png")), bytes).unwrap();
    }

    /// What the browser complained of since the last time: errors of scripts, refused loads.
    pub(crate) fn complaints(&self) -> Vec<String> {
        let lines = self.ask("POST", "/se/log", &json!({"type": "browser"}));
        let lines = lines.as_array().cloned().unwrap_or_default();
        lines.iter().map(|line| format!("{}: {}", line["level"], line["message"])).collect()
    }

    fn devtools(&self, command: &str, parameters: &Value) -> Value {
        self.ask("POST", "/goog/cdp/execute", &json!({"cmd": command, "params": parameters}))
    }

    fn ask(&self, method: &str, path: &str, body: &Value) -> Value {
        let body = (method == "POST").then_some(body);
        let path = format!("/session/{}{path}", self.session);
        self.exchange(method, &path, body).unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    fn exchange(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, String> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, DRIVER_PORT));
        let connected = self.host.with_spaces(|spaces| spaces.tcp_connect(address, Duration::from_secs(5)));
        let mut stream = connected.map_err(|error| error.to_string())?;
        let body = body.map(Value::to_string).unwrap_or_default();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: 127.0.0.1:{DRIVER_PORT}\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let exchanged = stream
            .set_read_timeout(Some(PATIENCE))
            .and_then(|()| stream.write_all(format!("{head}{body}").as_bytes()))
            .and_then(|()| answer_of(stream));
        let text = exchanged.map_err(|error| error.to_string())?;
        let (head, body) =
            text.split_once("\r\n\r\n").ok_or_else(|| format!("an answer without a body: {text}"))?;
        let mut value: Value = serde_json::from_str(body).map_err(|error| format!("{error}: {text}"))?;
        if head.starts_with("HTTP/1.1 200") {
            Ok(value["value"].take())
        } else {
            Err(value["value"].to_string())
        }
    }
}

impl Drop for Browser<'_> {
    fn drop(&mut self) {
        if !self.session.is_empty() && !std::thread::panicking() {
            // The window's processes end with it; with the bed they end in any case.
            let _ = self.exchange("DELETE", &format!("/session/{}", self.session), None);
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

/// Head and body of an answer; the driver says how long it is, and does not close the connection.
fn answer_of(stream: TcpStream) -> io::Result<String> {
    let mut reader = BufReader::new(stream);
    let mut text = String::new();
    while !text.ends_with("\r\n\r\n") {
        if reader.read_line(&mut text)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    let mut lengths = lines.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let length = lengths.next().and_then(|(_, value)| value.trim().parse().ok()).unwrap_or(0);
    reader.take(length).read_to_string(&mut text)?;
    Ok(text)
}

/// The bytes of a text in base64.
fn from_base64(text: &str) -> Vec<u8> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let sextets: Vec<u32> = text
        .bytes()
        .filter_map(|byte| DIGITS.iter().position(|digit| *digit == byte))
        .map(|position| u32::try_from(position).unwrap())
        .collect();
    let mut bytes = Vec::with_capacity(sextets.len() * 3 / 4);
    for group in sextets.chunks(4) {
        let bits = group.iter().fold(0, |bits, sextet| bits << 6 | sextet) << (6 * (4 - group.len()));
        bytes.extend(bits.to_be_bytes().into_iter().skip(1).take(group.len() * 6 / 8));
    }
    bytes
}
