//! The page in a real browser: signing in, every view, the keyboard, an action, and a node that dies while it is open.
//!
//! Pictures at three widths, healthy and during a failure, are kept in `target/pictures`.

use std::path::PathBuf;

use serde_json::{Value, json};
use steadfast_cli::api::episode_types::InstanceList;
use steadfast_cli::api::page_types::PageToken;
use steadfast_cli::bed::{Bed, Host};

use super::browser::{Browser, DOWN, ENTER, RIGHT, TAB};
use super::episodes::deploy_account;
use super::support::{COUNTER, Trial, builder};

/// Where every node of these tests serves its page: each has a loopback of its own.
const LISTEN: &str = "listen = \"127.0.0.1:7480\"";

/// Pictures are taken at these widths.
const WIDTHS: [u32; 3] = [360, 768, 1280];

fn with_page() -> Trial {
    Trial::with(builder().setting("page", LISTEN))
}

fn token(host: &Host, role: &str) -> PageToken {
    host.steadfast_as(&["page", "--role", role, "-o", "json"]).unwrap()
}

fn pictures() -> PathBuf {
    let binary = PathBuf::from(super::support::BINARY);
    binary.parent().and_then(|folder| folder.parent()).unwrap().join("pictures")
}

fn sign_in<'a>(bed: &'a Bed, role: &str) -> Browser<'a> {
    let browser = Browser::start(bed.host(0));
    browser.resize(1280, "light");
    browser.open(&token(bed.host(0), role).address);
    browser.wait_for("main[aria-busy=false]");
    browser
}

fn node_is(host: &Host, state: &str) -> String {
    format!("[data-node={}][data-state={state}]", host.name())
}

/// What the page's own code gets when it asks for something.
fn status_of(browser: &Browser<'_>, method: &str, path: &str) -> u64 {
    let script = format!(
        "const answer = await fetch({}, {{method: {}, body: {}}}); return answer.status;",
        json!(path),
        json!(method),
        if method == "GET" { "undefined" } else { "'{}'" }
    );
    browser.async_script(&script).as_u64().unwrap()
}

fn picture_of_every_view(browser: &Browser<'_>, when: &str) {
    for width in WIDTHS {
        for view in ["overview", "nodes", "links", "views", "containers", "programs", "catalog", "events"] {
            browser.resize(width, if width == 768 { "dark" } else { "light" });
            browser.script(&format!("location.hash = '#{view}'"));
            browser.wait_for(&format!("nav a[href='#{view}'][aria-current]"));
            let content = browser.script("return document.documentElement.scrollWidth").as_u64().unwrap();
            assert!(content <= u64::from(width), "{view} at {width} px needs {content} px");
            browser.picture(&pictures(), &format!("{when}-{view}-{width}"));
        }
    }
    browser.resize(1280, "light");
}

#[test]
fn the_page_shows_a_node_die_and_a_program_go_on_without_being_loaded_again() {
    let trial = with_page();
    let [alpha, beta, gamma] = trial.bed.hosts() else { panic!("a bed of three") };
    trial.start_counter(2);
    let browser = sign_in(&trial.bed, "operate");
    assert!(!browser.address().contains("token"), "the token stays in no history");
    browser.script("window.loaded = 'once'");

    // A checkpoint from the page, by keyboard: the button, then the dialog's own.
    browser.script("location.hash = '#containers'");
    let button = format!("[data-container={COUNTER}] .actions button:not([disabled])");
    browser.wait_for(&button);
    browser.script(&format!("document.querySelector('{button}').focus()"));
    browser.press(&[ENTER]);
    browser.wait_text("#dialog", "Checkpoint counter now?");
    browser.press(&[TAB, ENTER]);
    browser.wait_text(".messages", "of counter is committed");
    browser.wait_text(&format!("[data-container={COUNTER}]"), "2 of 2 copies");
    browser.click(".message button");
    browser.wait_for(".messages:empty");
    let latest = trial.counter().latest.expect("the page said that it is committed");
    assert_eq!(latest.copies.len(), 2);

    browser.script("location.hash = '#nodes'");
    for host in [alpha, beta, gamma] {
        browser.wait_for(&node_is(host, "member"));
    }
    browser.script("location.hash = '#links'");
    for (from, to) in [(alpha, beta), (beta, gamma), (gamma, alpha)] {
        browser.wait_for(&format!("[data-from={}][data-to={}][data-state=up]", from.name(), to.name()));
    }
    browser.script("location.hash = '#overview'");
    browser.wait_text("#health", "Everything is well");
    picture_of_every_view(&browser, "healthy");

    let epoch = trial.counter().epoch;
    gamma.power_off().unwrap();
    browser.script("location.hash = '#nodes'");
    browser.wait_for(&node_is(gamma, "removed"));
    browser.wait_text(&format!("[data-node={}]", gamma.name()), "Host dead");
    trial.wait_recovered(epoch);
    browser.script("location.hash = '#containers'");
    browser.wait_text(&format!("[data-container={COUNTER}]"), "running");
    browser.script("location.hash = '#overview'");
    browser.wait_text(".banner", gamma.name());
    picture_of_every_view(&browser, "failure");
    browser.script("location.hash = '#views'");
    browser.wait_text(".timeline", "gamma was removed");

    trial.bring_back(gamma);
    browser.script("location.hash = '#nodes'");
    browser.wait_for(&node_is(gamma, "member"));
    assert_eq!(browser.script("return window.loaded"), "once");
    let complaints = browser.complaints();
    assert!(complaints.is_empty(), "{complaints:#?}");
}

#[test]
fn the_page_goes_by_keyboard_and_a_reader_may_only_look() {
    let trial = with_page();
    let [alpha, beta, gamma] = trial.bed.hosts() else { panic!("a bed of three") };
    let browser = Browser::start(alpha);
    browser.resize(1280, "light");

    // Whoever has no token sees no more than how to get one.
    browser.open("http://127.0.0.1:7480/");
    browser.wait_text(".gate", "steadfast page");
    assert_eq!(status_of(&browser, "GET", "/v1/status"), 401);
    let read = token(alpha, "read");
    browser.script("document.getElementById('token').focus()");
    browser.write("wrong");
    browser.press(&[ENTER]);
    browser.wait_text(".gate [role=alert]", "unknown");
    browser.script("document.getElementById('token').value = ''; document.getElementById('token').focus()");
    browser.write(&read.token);
    browser.press(&[ENTER]);
    browser.wait_for("main[aria-busy=false]");

    // The node itself refuses what the page does not offer.
    browser.script("location.hash = '#nodes'");
    browser.wait_for(&node_is(gamma, "member"));
    assert!(!browser.has(".node-card .actions button:not([disabled])"));
    assert_eq!(status_of(&browser, "POST", &format!("/v1/nodes/{}/drain", beta.name())), 403);
    assert_eq!(status_of(&browser, "POST", "/v1/tokens"), 403);
    assert_eq!(status_of(&browser, "GET", "/v1/catalog/backup"), 403);
    assert_eq!(status_of(&browser, "GET", "/v1/nodes"), 200);
    let again = browser.async_script(&format!(
        "const answer = await fetch('/v1/page/session', {{method: 'POST', body: JSON.stringify({{token: '{}'}})}}); return answer.status;",
        read.token
    ));
    assert_eq!(again, Value::from(422), "a token works once");

    // From the top of the page into the matrix with the tabulator alone, then with arrow keys.
    browser.script("location.hash = '#links'");
    browser.wait_for(&format!("[data-from={}][data-to={}][data-state=up]", alpha.name(), beta.name()));
    browser.script("document.activeElement.blur()");
    let focused = || {
        browser.script("return (document.activeElement.dataset.from ?? '') + '>' + (document.activeElement.dataset.to ?? '')")
    };
    let steps = (0..40).find(|_| {
        browser.press(&[TAB]);
        focused() == format!("{}>{}", alpha.name(), beta.name())
    });
    assert!(steps.is_some(), "the tabulator leads into the matrix");
    browser.press(&[RIGHT]);
    assert_eq!(focused(), format!("{}>{}", alpha.name(), gamma.name()));
    browser.wait_text("#told", &format!("{} and {}", alpha.name(), gamma.name()));
    browser.press(&[DOWN]);
    assert_eq!(focused(), format!("{}>{}", beta.name(), gamma.name()));
    let outline = browser.script("return getComputedStyle(document.activeElement).outlineStyle");
    assert_eq!(outline, "solid", "what has the focus is seen");

    let modules = browser.async_script(include_str!("page_modules.js"));
    assert!(modules.as_str().unwrap().ends_with("comparisons hold"), "{modules}");

    // After signing out the cookie is worth nothing.
    browser.click("header button.link");
    browser.wait_text(".gate", "steadfast page");
    assert_eq!(status_of(&browser, "GET", "/v1/status"), 401);
}

#[test]
fn the_page_shows_instances_and_how_far_their_exchanges_have_come() {
    let trial = with_page();
    let [alpha, beta, gamma] = trial.bed.hosts() else { panic!("a bed of three") };
    deploy_account(&trial, alpha);
    let start = |key: &str, next: &str| {
        let (name, input) = (format!("account/{key}"), format!("{{\"next\": \"account/{next}\"}}"));
        beta.steadfast_text(&["episode", "start", &name, &input]).unwrap();
    };
    (0..9).for_each(|key| start(&key.to_string(), &((key + 1) % 9).to_string()));
    (10..60).for_each(|key| start(&format!("x{key}"), "nobody"));
    let pass = |name: &str, hops: u32| {
        let said = format!("{{\"amount\": 7, \"hops\": {hops}}}");
        alpha.steadfast_text(&["episode", "send", name, "pass", &said]).unwrap();
    };
    pass("account/0", 9);

    let browser = sign_in(&trial.bed, "read");
    browser.script("location.hash = '#programs'");
    browser.wait_text("[data-instance='account/1']", "pass, deposit, balance");
    assert!(!browser.has("[data-instance='account/x59']"), "a page has an end");
    let buttons =
        |place: u32| format!("[aria-labelledby=instances-title] .actions button:nth-child({place})");
    browser.click(&buttons(2));
    browser.wait_for("[data-instance='account/x59']");
    assert!(!browser.has("[data-instance='account/1']"), "one page is shown at a time");
    browser.click(&buttons(1));

    // What is over, what a paused instance has not come to, and what was refused.
    let choose = |name: &str| {
        browser.wait_for(&format!("[data-instance='{name}']"));
        browser.click(&format!("[data-instance='{name}'] button"));
        browser.wait_for(&format!("[data-chosen='{name}']"));
    };
    choose("account/1");
    browser.wait_for("[data-chosen='account/1'] .exchange.done[data-made='4']");
    alpha.steadfast_text(&["episode", "pause", "account/1"]).unwrap();
    pass("account/0", 1);
    browser.wait_text("[data-chosen='account/1'] .exchange.warn", "parked: this instance is paused");
    alpha.steadfast_text(&["episode", "retry", "account/1"]).unwrap();
    pass("account/x10", 1);
    choose("account/x10");
    browser.wait_text("[data-chosen='account/x10'] .exchange.bad", "refused");

    // A message to a node that is not there is said, and nothing more, until the node is back.
    let list: InstanceList = alpha.steadfast_as(&["-o", "json", "episode", "list"]).unwrap();
    let is_on_gamma = |key: u32| {
        let name = format!("account/{key}");
        list.instances.iter().any(|row| row.name == name && row.node == gamma.name())
    };
    let sender = (0..9).find(|key| !is_on_gamma(*key) && is_on_gamma((*key + 1) % 9));
    let sender = format!("account/{}", sender.expect("each node keeps some"));
    gamma.kill_agent().unwrap();
    pass(&sender, 1);
    choose(&sender);
    let open = "[data-made='1'] .arrow.open";
    browser.wait_for(open);
    browser.picture(&pictures(), "exchange-1280");
    gamma.start_agent().unwrap();
    gamma.wait_ready().unwrap();
    trial.wait("the exchange to be finished", || (!browser.has(open)).then_some(()));
    browser.wait_text(&format!("[data-chosen='{sender}'] dl"), "nothing is remembered of any message");
}

#[test]
fn without_tls_the_page_answers_to_no_other_name_and_no_other_site() {
    let trial = with_page();
    let alpha = trial.bed.host(0);
    let ask = |lines: &[&str]| -> String {
        let script = "import http.client,sys\nc=http.client.HTTPConnection('127.0.0.1',7480)\nm,p,*h=sys.argv[1:]\nc.putrequest(m,p,skip_host=True)\n[c.putheader(*x.split(': ',1)) for x in h]\nc.putheader('content-length','0')\nc.endheaders()\nr=c.getresponse()\nprint(r.status,r.read().decode())";
        let finished = alpha.exec(&[&["python3", "-c", script], lines].concat()).unwrap();
        assert!(finished.success(), "{}", finished.stderr);
        finished.stdout
    };
    let host = "host: 127.0.0.1:7480";
    assert!(ask(&["GET", "/", host]).starts_with("200 <!doctype html>"));
    assert!(ask(&["GET", "/v1/status", host]).starts_with("401 "));
    assert!(ask(&["GET", "/v1/status", "host: rebound.example:7480"]).starts_with("403 "));
    let foreign = "origin: https://elsewhere.example";
    assert!(ask(&["POST", "/v1/page/session", host, foreign]).starts_with("403 "));
    assert!(ask(&["POST", "/v1/page/session", host]).starts_with("403 "), "a request without an origin");
    assert!(ask(&["POST", "/v1/page/session", host, "origin: http://127.0.0.1:7480"]).starts_with("400 "));
    // No other agent makes tokens, whatever its certificate: the path is for the socket's owner.
    assert!(ask(&["POST", "/v1/tokens", host, "origin: http://127.0.0.1:7480"]).starts_with("401 "));
}

#[test]
fn beyond_the_loopback_the_page_has_tls_with_the_certificate_that_the_command_names() {
    let trial = Trial::with(builder());
    let alpha = trial.bed.host(0);
    let refused = alpha.steadfast_text(&["page"]).unwrap_err().to_string();
    assert!(refused.contains("[page]") && refused.contains("SF-0001"), "{refused}");
    let address = alpha.addresses()[0].ip();
    let text = std::fs::read_to_string(alpha.config()).unwrap();
    std::fs::write(alpha.config(), format!("{text}\n[page]\nlisten = \"{address}:7480\"\n")).unwrap();
    alpha.kill_agent().unwrap();
    alpha.start_agent().unwrap();
    alpha.wait_ready().unwrap();
    let made = token(alpha, "read");
    assert!(made.address.starts_with(&format!("https://{address}:7480/#token=")), "{}", made.address);
    let script = "import ssl,sys,hashlib,http.client,json\nx=ssl._create_unverified_context()\nc=http.client.HTTPSConnection(sys.argv[1],7480,context=x)\nc.connect()\nprint(hashlib.sha256(c.sock.getpeercert(True)).hexdigest())\no={'origin':'https://'+sys.argv[1]+':7480'}\nc.request('POST','/v1/page/session',json.dumps({'token':sys.argv[2]}),o)\nr=c.getresponse()\nk=r.getheader('set-cookie')\nr.read()\nprint(k)\nc.request('GET','/v1/page/session',headers={'cookie':k.split(';')[0]})\nprint(c.getresponse().read().decode())";
    let finished =
        trial.bed.host(1).exec(&["python3", "-c", script, &address.to_string(), &made.token]).unwrap();
    assert!(finished.success(), "{}", finished.stderr);
    let lines: Vec<&str> = finished.stdout.lines().collect();
    let fingerprint = made.certificate_sha256.unwrap().replace(':', "").to_lowercase();
    assert_eq!(lines[0], fingerprint);
    assert!(
        lines[1].starts_with("__Host-steadfast-7480=")
            && lines[1].contains("HttpOnly; SameSite=Strict; Secure")
    );
    assert!(lines[2].contains("\"role\":\"read\""), "{}", lines[2]);
}
