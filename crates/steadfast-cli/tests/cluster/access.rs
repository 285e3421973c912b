//! Tokens and certificates: what somebody from outside may do on any node, who it was, and that it ends when it is revoked.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use steadfast_cli::api::token_types::Token;
use steadfast_cli::api::types::KeyStatus;
use steadfast_cli::bed::Host;
use steadfast_cli::events::cloud::CloudEvent;

use super::support::{Trial, builder};

/// Asks a node over TLS, as it is checked against the cluster's authority, and prints the status and the body as it comes.
/// Arguments: address, port, name, authority, certificate or "", method, path, body, token or "", protocol.
const CLIENT: &str = r#"
import socket, ssl, sys
address, port, name, authority, certificate, method, path, body, token, protocol = sys.argv[1:]
context = ssl.create_default_context(cafile=authority)
context.set_alpn_protocols([protocol])
if certificate:
    context.load_cert_chain(certificate)
raw = socket.create_connection((address, int(port)))
stream = context.wrap_socket(raw, server_hostname=name)
head = f"{method} {path} HTTP/1.1\r\nhost: {name}:{port}\r\nconnection: close\r\ncontent-length: {len(body)}\r\n"
if token:
    head += f"authorization: Bearer {token}\r\n"
stream.sendall((head + "\r\n" + body).encode())
answer = stream.makefile("r")
print(answer.readline().split()[1], flush=True)
for line in answer:
    print(line.rstrip(), flush=True)
"#;

/// Somebody from outside, who asks from `beta`.
struct Outside<'a> {
    trial: &'a Trial,
    authority: String,
    certificate: String,
    token: String,
    port: &'static str,
    protocol: &'static str,
}

impl Outside<'_> {
    fn command(&self, of: &Host, method: &str, path: &str, body: &str) -> Command {
        let nodes = self.trial.bed.host(0).nodes().unwrap();
        let id = &nodes.iter().find(|node| node.name == of.name()).unwrap().id;
        let (address, name) = (of.addresses()[0].ip().to_string(), format!("{id}.node.steadfast"));
        let mut command = Command::new("/usr/bin/python3");
        command.args(["-c", CLIENT, &address, self.port, &name, &self.authority, &self.certificate]);
        command.args([method, path, body, &self.token, self.protocol]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// The status, and everything that follows it.
    fn ask(&self, of: &Host, method: &str, path: &str, body: &str) -> (String, String) {
        let mut command = self.command(of, method, path, body);
        let output = self.trial.bed.host(1).spawn(&mut command).unwrap().wait_with_output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap() + &String::from_utf8_lossy(&output.stderr);
        let (status, rest) = said.split_once('\n').unwrap_or_default();
        (status.to_owned(), rest.to_owned())
    }

    fn wait(&self, of: &Host, method: &str, path: &str, body: &str, expected: &str) -> String {
        self.trial.wait(&format!("{expected} for {method} {path} on {}", of.name()), || {
            let (status, rest) = self.ask(of, method, path, body);
            (status == expected).then_some(rest)
        })
    }
}

#[test]
fn tokens_and_certificates_have_a_role_on_every_node_until_they_are_revoked() {
    let trial = Trial::with(builder());
    let [alpha, beta, gamma] = trial.bed.hosts() else { panic!("a bed of three") };
    for host in [alpha, gamma] {
        let text = std::fs::read_to_string(host.config()).unwrap();
        let page = format!("{text}\n[page]\nlisten = \"{}:7480\"\n", host.addresses()[0].ip());
        std::fs::write(host.config(), page).unwrap();
        host.kill_agent().unwrap();
        host.start_agent().unwrap();
        host.wait_ready().unwrap();
    }
    let base = trial.bed.base();
    let path = |name: &str| base.join(name).to_str().unwrap().to_owned();
    let keys: KeyStatus = alpha.steadfast_as(&["keys", "-o", "json"]).unwrap();
    std::fs::write(path("cluster.pem"), keys.authority).unwrap();
    let outside = |token: &str, certificate: &str| Outside {
        trial: &trial,
        authority: path("cluster.pem"),
        certificate: certificate.to_owned(),
        token: token.to_owned(),
        port: "7480",
        protocol: "http/1.1",
    };

    // A program that measures: it may read on any node, and nothing else.
    let secret = alpha.steadfast_text(&["tokens", "create", "prometheus"]).unwrap();
    let prometheus = outside(secret.trim(), "");
    for host in [alpha, gamma] {
        let metrics = prometheus.wait(host, "GET", "/metrics", "", "200");
        assert!(metrics.contains("steadfast_") && metrics.contains("# EOF"), "{metrics}");
    }
    let (status, why) = prometheus.ask(gamma, "POST", &format!("/v1/nodes/{}/drain", beta.name()), "{}");
    assert!(status == "403" && why.contains("needs the role operate"), "{status} {why}");
    assert_eq!(outside("", "").ask(alpha, "GET", "/metrics", "").0, "401");
    assert_eq!(outside("sft1-0", "").ask(alpha, "GET", "/metrics", "").0, "401");

    // A person with a certificate: it is asked for, and what was done is told with who did it and from where.
    let pem = path("ann.pem");
    alpha.steadfast_text(&["tokens", "create", "ann", "--role", "operate", "--certificate", &pem]).unwrap();
    let ann = outside("", &pem);
    let event = r#"{"type": "user.shift", "fields": {"who": "ann"}}"#;
    ann.wait(gamma, "POST", "/v1/events", event, "200");
    let (status, why) = ann.ask(gamma, "POST", "/v1/tokens", r#"{"name": "more"}"#);
    assert!(status == "403" && why.contains("needs the role admin"), "{status} {why}");
    let told = trial.wait("word of what ann did", || {
        let filter = "type=audit.change and outcome=done and what=/v1/events";
        let told = alpha.steadfast_text(&["-o", "json", "events", "--filter", filter]).ok()?;
        let told: Vec<CloudEvent> = told.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        // That a source begins anew is told as well.
        let is =
            |event: &CloudEvent| event.short_type() == "audit.change" && event.source.ends_with(gamma.name());
        told.into_iter().find(is)
    });
    assert_eq!(told.data["who"], "the certificate of ann with the role operate");
    assert_eq!(told.data["from"], beta.addresses()[0].ip().to_string());

    // It is nobody's among nodes.
    let (port, protocol) = ("7400", "steadfast-api/1");
    let among_nodes = Outside { port, protocol, ..outside("", &pem) };
    let (status, why) = among_nodes.ask(gamma, "GET", "/v1/status", "");
    assert!(status != "200" && why.contains("Error"), "{status} {why}");

    // No token makes another, not even an administrator's.
    let secret = beta.steadfast_text(&["tokens", "create", "root", "--role", "admin"]).unwrap();
    let root = outside(secret.trim(), "");
    let (status, why) = {
        root.wait(alpha, "GET", "/v1/tokens", "", "200");
        root.ask(alpha, "POST", "/v1/tokens", r#"{"name": "more"}"#)
    };
    assert!(status == "422" && why.contains("SF-0032"), "{status} {why}");

    // What was revoked is refused, and what it opened ends.
    let mut follower = prometheus.command(gamma, "GET", "/v1/page/events", "");
    let mut follower = beta.spawn(&mut follower).unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "200");
    let tokens: Vec<Token> = alpha.steadfast_as(&["tokens", "-o", "json"]).unwrap();
    let names: Vec<&str> = tokens.iter().map(|token| token.name.as_str()).collect();
    assert_eq!(names, ["ann", "prometheus", "root"]);
    assert!(tokens.iter().all(|token| token.secret.is_none()));
    alpha.steadfast_text(&["tokens", "revoke", "prometheus"]).unwrap();
    alpha.steadfast_text(&["tokens", "revoke", "ann"]).unwrap();
    prometheus.wait(gamma, "GET", "/metrics", "", "401");
    ann.wait(gamma, "GET", "/v1/status", "", "401");
    trial.wait("the end of the stream", || follower.try_wait().unwrap().map(drop));
    let refused = alpha.steadfast_text(&["tokens", "revoke", "ann"]).unwrap_err().to_string();
    assert!(refused.contains("SF-0057"), "{refused}");
}
