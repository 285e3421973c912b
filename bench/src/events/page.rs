//! The page while the cluster has as many nodes as it can have: how soon a browser shows something, and everything, and what it takes in
//! memory.
//!
//! 64 agents in name spaces, and headless Chromium beside the first, driven as the tests of the page drive it. Each
//! round is a load of the whole page, with nothing kept from before but the session.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::{ROUNDS, quantile};
use crate::detect::cluster::Cluster;
use crate::detect::ours::Steadfast;
use crate::detect::systems::System;
use crate::report::{Report, median};

/// The most that a cluster can have.
const NODES: usize = 64;
const DRIVER_PORT: u16 = 9515;
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(50);
/// What the agents are told beside what all benchmarks tell them: so many share the cores of one machine, and where
/// the page is.
const SETTINGS: &str = "[detect]\ninterval = \"300ms\"\n\n[page]\nlisten = \"127.0.0.1:7480\"\n";
/// Notes, from within the page, when all that is known was drawn.
const WATCH: &str = "window.drawn = null; new MutationObserver(() => {
  if (window.drawn === null && document.querySelector('main[aria-busy=false]')
      && document.querySelectorAll('main [data-node]').length >= NODES) window.drawn = performance.now();
}).observe(document, { subtree: true, childList: true, attributes: true });";

/// Starts the cluster, and the rest beside its first agent.
pub fn measure(report: &mut Report) -> anyhow::Result<()> {
    let ours = Arc::new(Steadfast::with_settings(SETTINGS)?);
    let cluster = Cluster::boot(Arc::clone(&ours) as Arc<dyn System>, NODES, 1)?;
    println!("page: {NODES} agents count each other");
    let token = ours.page_token(&cluster)?;
    let mut browser = cluster.hub().inside(0, std::env::current_exe()?);
    let output = browser.args(["events", "page-inside", &token]).stderr(Stdio::inherit()).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!("measuring in the browser failed: {text}");
    }
    for line in text.lines() {
        if line.starts_with("FIGURE ") { report.pass(line) } else { println!("{line}") }
    }
    Ok(())
}

/// The part that runs there: signs in with this address and loads the page again and again.
pub fn inside(address: &str) -> anyhow::Result<()> {
    let browser = Browser::start()?;
    browser.open(address)?;
    browser.wait("document.querySelector('main[aria-busy=false]') !== null")?;
    let watch = WATCH.replace("NODES", &NODES.to_string());
    browser.devtools("Page.addScriptToEvaluateOnNewDocument", &json!({ "source": watch }))?;
    browser.devtools("Network.enable", &json!({}))?;
    browser.devtools("Network.setCacheDisabled", &json!({ "cacheDisabled": true }))?;
    browser.devtools("Performance.enable", &json!({}))?;
    let page = address.split_once('#').map_or(address, |(page, _)| page);
    let mut report = Report::default();
    let [mut paints, mut draws, mut heaps, mut sizes] = [const { Vec::new() }; 4];
    for round in 1..=ROUNDS {
        // A page that differs in its fragment only is not loaded again.
        browser.open("about:blank")?;
        browser.open(&format!("{page}#nodes"))?;
        browser.wait("typeof window.drawn === 'number'")?;
        let paint = "performance.getEntriesByName('first-contentful-paint')[0].startTime";
        paints.push(browser.number(paint)?);
        draws.push(browser.number("window.drawn")?);
        browser.devtools("HeapProfiler.collectGarbage", &json!({}))?;
        heaps.push(browser.heap_mib()?);
        sizes.push(largest_renderer_mib(browser.driver.id())?);
        println!("page round {round}: first paint {:.0} ms", paints.last().copied().unwrap_or(f64::NAN));
    }
    report.figure("events.page_first_paint_ms", median(&paints), "ms");
    report.figure("events.page_first_paint_max_ms", quantile(&paints, 1.0), "ms");
    report.figure("events.page_drawn_ms", median(&draws), "ms");
    report.figure("events.page_memory_mib", median(&sizes), "MiB");
    report.figure("events.page_heap_mib", median(&heaps), "MiB");
    report.print();
    Ok(())
}

/// A window of headless Chromium, by the WebDriver protocol.
struct Browser {
    driver: Child,
    session: String,
}

impl Browser {
    fn start() -> anyhow::Result<Browser> {
        let mut command = Command::new("chromedriver");
        command.arg(format!("--port={DRIVER_PORT}"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let driver = command.spawn().context("`cargo xtask setup` installs chromedriver")?;
        let mut browser = Browser { driver, session: String::new() };
        let started = Instant::now();
        while let Err(error) = exchange("GET", "/status", None) {
            if started.elapsed() > PATIENCE {
                return Err(error.context("the browser's driver does not answer"));
            }
            std::thread::sleep(LOOK);
        }
        let arguments = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"];
        let wanted = json!({ "goog:chromeOptions": { "args": arguments } });
        let wanted = json!({ "capabilities": { "alwaysMatch": wanted } });
        let made = exchange("POST", "/session", Some(&wanted))?;
        browser.session = text_of(&made, "sessionId")?;
        Ok(browser)
    }

    fn open(&self, address: &str) -> anyhow::Result<()> {
        self.ask("/url", &json!({ "url": address })).map(drop)
    }

    fn script(&self, expression: &str) -> anyhow::Result<Value> {
        self.ask("/execute/sync", &json!({ "script": format!("return {expression}"), "args": [] }))
    }

    fn number(&self, expression: &str) -> anyhow::Result<f64> {
        self.script(expression)?.as_f64().with_context(|| format!("{expression} is a number"))
    }

    fn wait(&self, condition: &str) -> anyhow::Result<()> {
        let asked = Instant::now();
        while self.script(condition)? != Value::Bool(true) {
            if asked.elapsed() > PATIENCE {
                let shown = self.script("document.body.innerText.slice(0, 500)")?;
                bail!("the page does not come to {condition}; it shows {shown}");
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// What the page's own objects take.
    fn heap_mib(&self) -> anyhow::Result<f64> {
        let metrics = self.devtools("Performance.getMetrics", &json!({}))?;
        let metrics = metrics.get("metrics").and_then(Value::as_array).context("there are metrics")?;
        let used = metrics.iter().find(|metric| metric.get("name") == Some(&json!("JSHeapUsedSize")));
        let used = used.and_then(|metric| metric.get("value")).and_then(Value::as_f64);
        Ok(used.context("the heap has a size")? / f64::from(1 << 20))
    }

    fn devtools(&self, command: &str, parameters: &Value) -> anyhow::Result<Value> {
        self.ask("/goog/cdp/execute", &json!({ "cmd": command, "params": parameters }))
    }

    fn ask(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        exchange("POST", &format!("/session/{}{path}", self.session), Some(body))
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The window's processes end with it.
        let _ = exchange("DELETE", &format!("/session/{}", self.session), None);
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

fn text_of(value: &Value, name: &str) -> anyhow::Result<String> {
    let text = value.get(name).and_then(Value::as_str);
    text.map(str::to_owned).with_context(|| format!("the answer has a {name}"))
}

/// One request to the driver.
fn exchange(method: &str, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
    let mut stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, DRIVER_PORT)))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let body = body.map(Value::to_string).unwrap_or_default();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: 127.0.0.1:{DRIVER_PORT}\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes())?;
    let mut reader = BufReader::new(stream);
    let (mut status, mut length) = (String::new(), 0);
    reader.read_line(&mut status)?;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line == "\r\n" {
            break;
        }
        if let Some(given) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = given.trim().parse()?;
        }
    }
    let mut text = vec![0; length];
    reader.read_exact(&mut text)?;
    let mut value: Value = serde_json::from_slice(&text)?;
    let answer = value.get_mut("value").map(Value::take).unwrap_or_default();
    if !status.contains(" 200 ") {
        bail!("{method} {path}: {answer}");
    }
    Ok(answer)
}

/// The memory of the window's process, as its share of what it maps, among the processes below `root`.
fn largest_renderer_mib(root: u32) -> anyhow::Result<f64> {
    let sizes = below(root).into_iter().filter(|pid| {
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split('\0').any(|word| word == "--type=renderer")
    });
    let sizes: Vec<f64> = sizes.filter_map(pss_mib).collect();
    let largest = sizes.into_iter().max_by(f64::total_cmp);
    largest.context("the browser has a process for its window")
}

/// All processes that come from this one.
fn below(root: u32) -> Vec<u32> {
    let mut found = vec![root];
    let mut next = 0;
    while let Some(pid) = found.get(next).copied() {
        next += 1;
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        for task in tasks {
            let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            found.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
    }
    found
}

fn pss_mib(pid: u32) -> Option<f64> {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kib / 1024.0)
}
